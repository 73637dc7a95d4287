import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_dqn import ExperienceDataModule, GracefulInterrupt, MLPTorso
from lightning_dqn.experience.snapshots import SnapshotKeeper
from lightning_dqn.loggers import OneCurve, never_stop_training, read_rows
from tests.environments import Chain

_RUN = """
if __name__ == "__main__":
    import json, multiprocessing, signal, sys
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning_dqn import DQNLightningModule, ExperienceDataModule, GracefulInterrupt

    class Report(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                print("running", flush=True)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.learned = data.gradient_steps * (batch_idx + 1)

    multiprocessing.set_forkserver_preload(["lightning_dqn"])
    data = ExperienceDataModule(
        "CartPole-v1", num_envs=2, vectorization=sys.argv[1], learning_starts=64, train_frequency=4, gradient_steps=2,
        steps_per_epoch=4_000_000, eval_episodes=2, seed=0,
    )
    model = DQNLightningModule(data.observation_shape, data.num_actions)
    latest = ModelCheckpoint(
        ".", "latest", every_n_epochs=1, save_on_train_epoch_end=False, enable_version_counter=False
    )
    interrupt, report, before = GracefulInterrupt(), Report(), signal.getsignal(signal.SIGINT)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[interrupt, report, latest], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    print(json.dumps({
        "interrupted": interrupt.interrupted,
        "restored": signal.getsignal(signal.SIGINT) is before,
        "env_steps": data.env_steps,
        "gradient_steps": model.gradient_steps,
        "learned": report.learned,
        "validated": "val/return" in trainer.callback_metrics,
    }), flush=True)
"""


@contextmanager
def running(folder, vectorization):
    """A run in a process and a process group of its own, as under a terminal, from its fourth batch on."""
    (folder / "run.py").write_text(_RUN)
    variables = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    run = subprocess.Popen(
        [sys.executable, "run.py", vectorization],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for line in run.stdout:
            if line == "running\n":
                break
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def test_ctrl_c_ends_a_run_at_a_step_boundary_with_a_checkpoint_that_resumes(make_trainer, make_model, tmp_path):
    with running(tmp_path, "sync") as run:
        run.send_signal(signal.SIGINT)
        output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    report = json.loads(output.splitlines()[-1])
    assert report["interrupted"]
    assert report["restored"]
    assert not report["validated"], "it would take who knows how long"
    # the iteration was finished: all its gradient steps, then all its environment steps
    assert report["gradient_steps"] == report["learned"] > 0
    assert report["env_steps"] == 64 + report["gradient_steps"] // 2 * 4

    checkpoint = torch.load(tmp_path / "latest.ckpt", weights_only=True)
    assert checkpoint["ExperienceDataModule"]["env_steps"] == report["env_steps"]
    assert checkpoint["gradient_steps"] == report["gradient_steps"]
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=2,
        learning_starts=64,
        train_frequency=4,
        gradient_steps=2,
        steps_per_epoch=400,
        eval_episodes=2,
        seed=0,
    )
    model = make_model(data, torso=MLPTorso)
    first = First()
    make_trainer(callbacks=[first], max_epochs=3).fit(model, data, ckpt_path=tmp_path / "latest.ckpt")
    assert (first.env_steps, first.gradient_steps) == (report["env_steps"], report["gradient_steps"])
    assert first.stored == min(report["env_steps"], 100_000)
    assert data.env_steps > report["env_steps"]


class First(Callback):
    """Notes the counters at the first batch."""

    env_steps = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.env_steps is None:
            self.env_steps, self.gradient_steps = trainer.datamodule.env_steps, pl_module.gradient_steps
            self.stored = len(trainer.datamodule.buffer)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_environment_processes_too_and_does_not_break_them(tmp_path):
    with running(tmp_path, "async") as run:
        os.killpg(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["interrupted"]
    assert (tmp_path / "latest.ckpt").is_file()


class Interrupt(Callback):
    """Presses Ctrl-C at the start of the third batch, and counts the batches that were learned."""

    def __init__(self, times=1):
        self.times, self.learned, self.handlers = times, 0, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.handlers.append(signal.getsignal(signal.SIGINT))
        if batch_idx == 2:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)

    def on_train_batch_end(self, *args):
        self.learned += 1


def make_data():
    return ExperienceDataModule(
        Chain, num_envs=2, learning_starts=64, train_frequency=4, steps_per_epoch=400, eval_episodes=2, seed=0
    )


def test_the_first_ctrl_c_finishes_the_iteration_and_saves(make_trainer, make_model, tmp_path):
    data, interrupt, graceful = make_data(), Interrupt(), GracefulInterrupt()
    latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False)
    trainer = make_trainer(callbacks=[graceful, interrupt, latest], enable_checkpointing=True, max_epochs=5)
    trainer.fit(make_model(data), data)
    assert graceful.interrupted
    assert interrupt.learned == 3
    assert data.env_steps == 64 + 3 * 4
    assert "val/return" not in trainer.callback_metrics
    assert trainer.limit_val_batches == 1.0
    assert (
        torch.load(tmp_path / "latest.ckpt", weights_only=True)["ExperienceDataModule"]["env_steps"] == data.env_steps
    )


@pytest.mark.parametrize(("least", "asked"), [({"min_epochs": 4}, (4, None)), ({"min_steps": 300}, (1, 300))])
def test_a_run_that_has_to_go_on_for_long_stops_as_well(make_trainer, make_model, least, asked):
    data, interrupt = make_data(), Interrupt()
    trainer = make_trainer(callbacks=[GracefulInterrupt(), interrupt], max_epochs=5, **least)
    trainer.fit(make_model(data), data)
    assert interrupt.learned == 3
    assert (trainer.min_epochs, trainer.min_steps) == asked


@pytest.mark.slow
def test_an_interrupted_run_that_is_resumed_takes_as_many_steps_as_one_that_was_not(make_trainer, make_model, tmp_path):
    def fit(ckpt_path=None, times=0):
        data = make_data()
        model = make_model(data)
        latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
        callbacks = [GracefulInterrupt(), Interrupt(times), latest]
        trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True, max_epochs=2)
        trainer.fit(model, data, ckpt_path=ckpt_path)
        return data.env_steps, model.gradient_steps, trainer.current_epoch

    fit(times=1)
    assert fit(tmp_path / "latest.ckpt") == fit() == (64 + 800, 1600, 2)


def test_the_second_ctrl_c_stops_at_once(make_trainer, make_model):
    data, interrupt = make_data(), Interrupt(times=2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_trainer(callbacks=[GracefulInterrupt(), interrupt]).fit(make_model(data), data)
    assert interrupt.learned == 2
    assert data.env_steps == 64 + 2 * 4
    assert data.envs is None


def test_a_run_that_was_not_interrupted_says_so_and_puts_the_handler_back(make_trainer, make_model):
    def mine(signum, frame):
        raise AssertionError

    signal.signal(signal.SIGINT, mine)
    data, graceful, interrupt = make_data(), GracefulInterrupt(), Interrupt(times=0)
    make_trainer(callbacks=[graceful, interrupt], limit_val_batches=0).fit(make_model(data), data)
    assert not graceful.interrupted
    assert set(interrupt.handlers) != {mine}
    assert len(set(interrupt.handlers)) == 1
    assert signal.getsignal(signal.SIGINT) is mine


def test_after_an_exception_the_handler_is_put_back(make_trainer, make_model):
    class Break(Callback):
        def on_train_batch_end(self, *args):
            raise RuntimeError("broken on purpose")

    before, data = signal.getsignal(signal.SIGINT), make_data()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(callbacks=[GracefulInterrupt(), Break()]).fit(make_model(data), data)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_callback_can_be_used_again(make_trainer, make_model):
    graceful = GracefulInterrupt()
    for _ in range(2):
        data, interrupt = make_data(), Interrupt()
        make_trainer(callbacks=[graceful, interrupt], limit_val_batches=0).fit(make_model(data), data)
        assert interrupt.learned == 3
    data = make_data()
    make_trainer(callbacks=[graceful], limit_val_batches=0).fit(make_model(data), data)
    assert not graceful.interrupted


def test_outside_the_main_thread_no_handler_is_installed(make_trainer, make_model):
    before, data, interrupt, failures = signal.getsignal(signal.SIGINT), make_data(), Interrupt(times=0), []

    def fit():
        try:
            make_trainer(callbacks=[GracefulInterrupt(), interrupt], limit_val_batches=0).fit(make_model(data), data)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join(60)
    assert failures == []
    assert interrupt.learned == 100
    assert set(interrupt.handlers) == {before}
    assert signal.getsignal(signal.SIGINT) is before


class Terminated(Chain):
    """Asks for an end to the process at its tenth step."""

    steps = 0

    def step(self, action):
        Terminated.steps += 1
        if Terminated.steps == 10:
            signal.raise_signal(signal.SIGTERM)
        return super().step(action)


def test_sigterm_while_the_first_experience_is_collected_ends_the_run_at_once(make_trainer, make_model, tmp_path):
    Terminated.steps = 0
    data = ExperienceDataModule(
        Terminated, num_envs=2, learning_starts=64, train_frequency=4, steps_per_epoch=400, eval_episodes=2, seed=0
    )
    latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False)
    trainer = make_trainer(callbacks=[GracefulInterrupt(), latest], enable_checkpointing=True)
    with pytest.raises(SystemExit) as ended:
        trainer.fit(make_model(data), data)
    assert ended.value.code == 143
    assert Terminated.steps == 10  # of two environments, the second step of both
    assert list(tmp_path.glob("*.ckpt")) == []


@pytest.mark.parametrize(
    ("number", "hurries"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGUSR1, False)]
)
def test_only_a_save_that_ends_the_run_is_in_a_hurry(make_trainer, make_model, tmp_path, monkeypatch, number, hurries):
    class Send(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                signal.raise_signal(number)

    seen, save = [], SnapshotKeeper.save

    def noted(self, *args):
        seen.append(args[6])
        return save(self, *args)

    monkeypatch.setattr(SnapshotKeeper, "save", noted)
    data = ExperienceDataModule(
        "CartPole-v1", num_envs=1, learning_starts=50, batch_size=4, steps_per_epoch=100, eval_episodes=1
    )
    latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False, every_n_epochs=9)
    trainer = make_trainer(callbacks=[Send(), latest], enable_checkpointing=True, limit_val_batches=0)
    with suppress(SystemExit):
        trainer.fit(make_model(data), data)
    assert seen == [hurries]


class Send(Callback):
    """Sends the process a signal in an iteration, counted over the whole run."""

    def __init__(self, number, iteration):
        self.number, self.iteration = number, iteration

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.iteration:
            signal.raise_signal(self.number)


def short_data():
    """Return the data of a run of 10 iterations an epoch."""
    return ExperienceDataModule(
        Chain, num_envs=2, learning_starts=32, train_frequency=4, steps_per_epoch=40, eval_episodes=2, seed=0
    )


def rows_after_a_stop(make_trainer, make_model, folder, number, iteration, **options):
    """Return the rows of a run that a signal stops, or only saves, and that is resumed; all but the speed."""

    def fit(ckpt_path=None, *callbacks):
        data, logger = short_data(), CSVLogger(folder, "log", "version")
        never_stop_training(logger)
        latest = ModelCheckpoint(folder, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
        callbacks = [OneCurve(), latest, *callbacks]
        trainer = make_trainer(callbacks=callbacks, logger=logger, enable_checkpointing=True, max_epochs=2, **options)
        with suppress(SystemExit):
            trainer.fit(make_model(data), data, ckpt_path=ckpt_path)
        return trainer

    interrupted = fit(None, Send(number, iteration))
    assert iteration < 0 or interrupted.log_every_n_steps == options["log_every_n_steps"]
    if iteration >= 0:
        fit(folder / "latest.ckpt")
    rows = read_rows(folder / "log" / "version" / "metrics.csv")
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]


# in the first iteration, off the schedule, on it, in the last iteration of an epoch, in the first of the next
@pytest.mark.parametrize(
    ("log_every", "iteration", "number"),
    [
        (3, 3, signal.SIGTERM),
        (3, 5, signal.SIGINT),
        (7, 0, signal.SIGTERM),
        (50, 4, signal.SIGTERM),
        *(
            pytest.param(every, iteration, number, marks=pytest.mark.slow)
            for every in (1, 2, 3, 7, 50)
            for iteration in (0, 2, 5, 6, 9, 10, 13, 18)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        ),
    ],
)
def test_rows_of_a_run_that_was_stopped_and_resumed_are_those_of_the_whole_run(
    make_trainer, make_model, tmp_path, log_every, iteration, number
):
    whole = rows_after_a_stop(make_trainer, make_model, tmp_path / "whole", number, -1, log_every_n_steps=log_every)
    parts = rows_after_a_stop(
        make_trainer, make_model, tmp_path / "parts", number, iteration, log_every_n_steps=log_every
    )
    assert parts == whole


def test_stop_in_the_iteration_before_a_validation_within_an_epoch_validates_first(make_trainer, make_model, tmp_path):
    options = {"log_every_n_steps": 3, "val_check_interval": 5}
    whole = rows_after_a_stop(make_trainer, make_model, tmp_path / "whole", signal.SIGTERM, -1, **options)
    parts = rows_after_a_stop(make_trainer, make_model, tmp_path / "parts", signal.SIGTERM, 4, **options)
    assert parts == whole
    assert [int(row["step"]) for row in whole if "val/return" in row] == [4, 9, 14, 19]


class Memory(Logger):
    """Keeps the steps of the training rows that any logger is given."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        if "train/loss" in metrics:
            self.steps.append(step)

    def log_hyperparams(self, *args, **kwargs):
        pass


class Stop(Callback):
    """Asks the Trainer to stop after a number of iterations, as a limit of time does."""

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 5


@pytest.mark.parametrize(
    ("callback", "options", "steps"),
    [
        (Stop, {}, [2]),
        (Stop, {"min_steps": 12}, [2, 5, 8, 11]),
        (lambda: EarlyStopping("val/return", patience=1, min_delta=1e9), {"min_epochs": 3}, list(range(2, 30, 3))),
    ],
)
def test_stop_of_any_kind_adds_no_rows_to_the_schedule(make_trainer, make_model, callback, options, steps):
    data, logger = short_data(), Memory()
    trainer = make_trainer(callbacks=[callback()], logger=logger, log_every_n_steps=3, max_epochs=9, **options)
    trainer.fit(make_model(data), data)
    assert logger.steps == steps
    assert trainer.log_every_n_steps == 3
