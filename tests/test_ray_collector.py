"""Collection by actors on a real Ray instance of this machine, through ``Trainer.fit``."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_dqn import EpsilonLadder, ExperienceCollector, ExperienceDataModule, PrioritizedReplayBuffer
from lightning_dqn.experience.faults import EnvironmentFailure
from lightning_dqn.ray import RayCollector
from lightning_dqn.ray.cluster import connect
from tests.environments import Chain, RecordingBuffer, chain_steps
from tests.test_data_path import ENVIRONMENTS, GAMMA, assert_rows_are_right, expected_starts, started

NUM_ENVS = 4


@pytest.fixture(scope="module")
def _ray():
    disconnect = connect()
    yield
    disconnect()


on_ray = pytest.mark.usefixtures("_ray")


class Watched(RayCollector):
    """Notes how old weights were, how much was unanswered, and the clock after every iteration."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lags, self.unanswered, self.clock, self.versions = [], [], [], []

    def _keep(self, data, inbox, message):
        self.lags.append(self.iterations - message.version)
        self.versions.append(message.version)
        self.unanswered.append(max(len(seat.requests) for seat in self._pool.seats))
        super()._keep(data, inbox, message)

    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        self.clock.append((trainer.datamodule.env_steps, self._due))


def make_data(env_id=Chain, log=None, **kwargs):
    if log is not None:
        log.mkdir()
        kwargs["env_kwargs"] = {"log": str(log), **kwargs.get("env_kwargs", {})}
    defaults = {
        "num_envs": NUM_ENVS,
        "buffer": RecordingBuffer(5000),
        "n_step": 3,
        "gamma": GAMMA,
        "batch_size": 5,
        "train_frequency": 8,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 400,
        "eval_episodes": 2,
        "eval_num_envs": 2,
        "seed": 0,
    }
    return ExperienceDataModule(env_id, **(defaults | kwargs))


def assert_all_is_there_once(rows, steps, n_step, env_steps, open_windows):
    """Everything stored is exact and was really done; of every episode it is the beginning, without a gap.

    Args:
        rows: All that was ever stored.
        steps: All that actors did, also what was never sent.
        n_step: Longest window.
        env_steps: What the learner has counted.
        open_windows: How many steps may have been counted whose windows were still open.
    """
    assert_rows_are_right(rows, n_step)
    starts = started(rows)
    assert max(starts.values()) == 1
    assert not starts - expected_starts(steps, n_step)
    episodes = defaultdict(list)
    for episode, t, _ in starts:
        episodes[episode].append(t)
    assert all(sorted(times) == list(range(len(times))) for times in episodes.values())
    assert env_steps - open_windows <= len(rows.action) <= env_steps


class Priorities(PrioritizedReplayBuffer, RecordingBuffer):
    """Remembers transitions, and what it was told of new ones."""

    def __init__(self, capacity, observations=None):
        PrioritizedReplayBuffer.__init__(self, capacity, observations=observations)
        self.added, self.sampled, self.added_before_sample, self.told = [], [], [], []

    def update_priorities(self, index, td_error):
        if index.dim() == 1:
            self.told.append((index.numpy(), td_error.numpy()))
        super().update_priorities(index, td_error)


@on_ray
@pytest.mark.parametrize(
    ("source", "n_step", "prioritized"),
    [
        pytest.param("sync, masked", 3, False, marks=pytest.mark.slow),
        pytest.param("sync, in pictures", 1, False, marks=pytest.mark.slow),
        ("sync", 3, True),
    ],
)
def test_every_step_that_is_received_starts_one_row_and_every_row_is_exact(
    make_trainer, make_model, tmp_path, source, n_step, prioritized
):
    chosen = dict(ENVIRONMENTS[source])
    buffer = chosen.pop("buffer", Priorities if prioritized else RecordingBuffer)(5000)
    data = make_data(log=tmp_path / "log", n_step=n_step, buffer=buffer, **chosen)
    collector = Watched(EpsilonLadder(), steps_per_message=3, broadcast_every=4)
    make_trainer(limit_val_batches=0, callbacks=[collector]).fit(make_model(data), data)
    assert len(data.buffer) == len(buffer.all_added.action)
    open_windows = 2 * NUM_ENVS * (n_step - 1)
    assert_all_is_there_once(buffer.all_added, chain_steps(tmp_path / "log"), n_step, data.env_steps, open_windows)
    for batch in buffer.sampled:
        assert_rows_are_right(batch, n_step)
    # the replay ratio is that of the configuration: what is due is there, and no more than a message beyond
    assert len(collector.clock) == 50
    assert all(due <= env_steps < due + 3 * NUM_ENVS for env_steps, due in collector.clock)
    assert [due for _, due in collector.clock] == [20 + 8 * k for k in range(1, 51)]
    # two actors, of at most two requests each, and twice as many that may overtake
    assert max(collector.unanswered) <= 2
    assert max(collector.lags) <= 4 + (2 * 2 * 2 + 1) * 3 * NUM_ENVS / 8 + 1
    # weights are new every fourth iteration, or seldom enough later that somebody asks
    sent = sorted(set(collector.versions))
    assert len(sent) > 3
    assert all(later - earlier >= 4 for earlier, later in pairwise(sent))
    if prioritized:
        names = np.concatenate([index for index, _ in buffer.told])
        assert names.tolist() == list(range(buffer.count))
        errors = np.concatenate([td_error for _, td_error in buffer.told])
        assert len(set(errors.tolist())) > 100


@pytest.mark.slow
@on_ray
def test_a_slow_learner_is_waited_for(make_trainer, make_model, tmp_path):
    class Slow(Callback):
        def on_train_batch_start(self, *args):
            time.sleep(0.1)

    data = make_data(log=tmp_path / "log", steps_per_epoch=160)
    collector = Watched(steps_per_message=2, in_flight=1)
    make_trainer(limit_val_batches=0, callbacks=[collector, Slow()]).fit(make_model(data), data)
    assert max(collector.unanswered) <= 1
    # what was done and never received is at most what both were asked for
    assert 0 <= len(chain_steps(tmp_path / "log")) - data.env_steps <= 2 * 2 * NUM_ENVS


class Killing(Callback):
    """Kills an actor in every so many iterations, whatever it is doing."""

    def __init__(self, log, count, every):
        self.folder, self.left, self.every = log, count, every
        self.dead = {os.getpid()}  # whose environment was there to be looked at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.left and batch_idx % self.every == self.every - 1:
            alive = sorted({int(path.name.split("-")[0]) for path in self.folder.iterdir()} - self.dead)
            victim = alive[self.left % len(alive)]
            self.dead.add(victim)
            self.left -= 1
            os.kill(victim, signal.SIGKILL)


def kill_actors(make_trainer, make_model, tmp_path, count, every):
    data = make_data(log=tmp_path / "log", steps_per_epoch=8 * every * (count + 1), buffer=Priorities(50_000))
    collector, killing = Watched(steps_per_message=2), Killing(tmp_path / "log", count, every)
    with pytest.warns(UserWarning, match="died and was replaced; what it had sent is kept"):
        make_trainer(limit_val_batches=0, callbacks=[collector, killing]).fit(make_model(data), data)
    assert killing.left == 0
    assert len(collector.clock) == every * (count + 1)
    open_windows = (2 + count) * NUM_ENVS * 2
    steps = chain_steps(tmp_path / "log")
    assert_all_is_there_once(data.buffer.all_added, steps, 3, data.env_steps, open_windows)
    assert not [
        pid for pid in killing.dead - {os.getpid()} if Path(f"/proc/{pid}/cmdline").exists() and is_running(pid)
    ]


def is_running(pid):
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
@on_ray
def test_actors_that_are_killed_are_replaced_and_nothing_received_is_lost(make_trainer, make_model, tmp_path):
    kill_actors(make_trainer, make_model, tmp_path, count=3, every=10)


@on_ray
@pytest.mark.slow
def test_fifty_actors_are_killed(make_trainer, make_model, tmp_path):
    kill_actors(make_trainer, make_model, tmp_path, count=50, every=10)


@pytest.mark.slow
@on_ray
def test_a_resumed_run_goes_on_with_what_was_received(make_trainer, make_model, tmp_path, recwarn):
    def fit(collector, max_epochs, **kwargs):
        data = make_data(buffer=RecordingBuffer(5000), steps_per_epoch=80)
        saver = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
        trainer = make_trainer(max_epochs=max_epochs, callbacks=[collector, saver], enable_checkpointing=True)
        model = make_model(data)
        trainer.fit(model, data, **kwargs)
        return trainer, data, collector

    _, data, collector = fit(RayCollector(), 1)
    stored, env_steps, episodes = data.buffer.all_added, data.env_steps, collector.episodes
    assert episodes > 0
    going_on = Watched()
    recwarn.clear()
    _, data, _ = fit(going_on, 2, ckpt_path=tmp_path / "latest.ckpt")
    assert not [str(warning.message) for warning in recwarn if "could not be brought back" in str(warning.message)]
    assert going_on.clock[0][1] == 20 + 80 + 8
    assert going_on.clock[0][0] >= env_steps
    assert going_on.iterations == 20
    assert going_on.episodes > episodes
    # no second warm-up, and the first rows are those that were there
    kept = data.buffer.storage
    assert len(data.buffer) == len(stored.action) + len(data.buffer.all_added.action)
    for field, before in zip(kept, stored, strict=True):
        assert field is None or (field[: len(before)].numpy() == before.astype(field.numpy().dtype)).all()
    # the episodes are others than those of the first run
    assert not set(started(stored)) & set(started(data.buffer.all_added))
    # and the in-process collector can take over
    with pytest.warns(UserWarning, match="4 of 4 environments could not be brought back"):
        _, data, collector = fit(ExperienceCollector(), 3, ckpt_path=tmp_path / "latest.ckpt")
    assert collector.iterations == 30
    assert_rows_are_right(data.buffer.all_added, 3)


@pytest.mark.slow
@on_ray
def test_how_old_weights_were_is_logged(make_trainer, make_model, tmp_path):
    data = make_data("CartPole-v1", gamma=0.99)
    logger = CSVLogger(tmp_path, name="", version="run")
    collector = Watched()
    trainer = make_trainer(limit_val_batches=0, callbacks=[collector], logger=logger, log_every_n_steps=10)
    trainer.fit(make_model(data), data)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["collect/weight_lag"]]
    assert rows
    lags = [float(row["collect/weight_lag"]) for row in rows]
    assert 0 <= min(lags) <= max(lags) <= max(collector.lags)
    assert all(float(row["collect/return"]) > 0 for row in rows)


class Broken(Chain):
    """Breaks down at its third step."""

    def step(self, action):
        if self.t == 2:
            raise OSError("cable")
        return super().step(action)


@pytest.mark.slow
@on_ray
@pytest.mark.parametrize("what", ["raise", "restart"])
def test_environments_that_break_down_end_the_run_with_their_error(make_trainer, make_model, what):
    data = make_data(Broken, on_env_error=what, env_kwargs={"limits": (None,)}, learning_starts=100)
    collector = RayCollector()
    with pytest.raises(EnvironmentFailure, match=r"environment \d broke down with OSError: cable; at step 2 of"):
        make_trainer(limit_val_batches=0, callbacks=[collector]).fit(make_model(data), data)
    assert collector._pool is None


# -- however a run ends ------------------------------------------------------------------------------------------------

ENVIRONMENT = """
import gymnasium as gym, numpy as np

class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, False, {}
"""

PROGRAM = """
import pathlib, sys
from lightning.pytorch import Callback, Trainer
from lightning_dqn import DQNLightningModule, ExperienceDataModule
from lightning_dqn.ray import RayCollector

class Started(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 20:
            pathlib.Path("started").touch()

if __name__ == "__main__":
    data = ExperienceDataModule("own_environment.Endless", num_envs=2, vectorization="async", steps_per_epoch=10**7)
    model = DQNLightningModule(data.observation_shape, data.num_actions)
    Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[RayCollector(), Started()],
    ).fit(model, data)
"""


def processes_with(mark):
    """Those that have it in their environment, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() and is_running(int(folder.name)):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    assert condition()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_however_a_run_is_ended_no_process_is_left(tmp_path, number, code):
    (tmp_path / "own_environment.py").write_text(ENVIRONMENT)
    (tmp_path / "program.py").write_text(PROGRAM)
    mark = f"MARK_OF_{os.getpid()}_{number}=1"
    name, _, value = mark.partition("=")
    variables = {**os.environ, name: value, "RAY_ADDRESS": ""}
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=variables,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_until(lambda: (tmp_path / "started").exists() or process.poll() is not None, 240)
        assert process.poll() is None, (tmp_path / "output").read_text()
        # the program, Ray's own, two actors, and two environments of each
        assert len([line for line in processes_with(mark.encode()).values() if "ray::Actor" in line]) == 2
        if number == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
        assert process.wait(120) == code, (tmp_path / "output").read_text()
        wait_until(lambda: not processes_with(mark.encode()), 30)
    finally:
        for pid in processes_with(mark.encode()):
            os.kill(pid, signal.SIGKILL)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_actors": 0}, r"^collect\.num_actors must be at least 1, got 0$"),
        ({"steps_per_message": 0}, r"^collect\.steps_per_message must be at least 1, got 0$"),
        ({"broadcast_every": -1}, r"^collect\.broadcast_every must be at least 1, got -1$"),
        ({"in_flight": 0}, r"^collect\.in_flight must be at least 1, got 0$"),
        ({"cpus_per_actor": -0.5}, r"^collect\.cpus_per_actor must be at least 0 and finite, got -0\.5$"),
        ({"cpus_per_actor": math.inf}, r"^collect\.cpus_per_actor must be at least 0 and finite, got inf$"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        RayCollector(**arguments)


def test_a_message_that_does_not_fit_into_the_buffer_is_refused(make_trainer, make_model):
    data = make_data(buffer=RecordingBuffer(43))
    said = r"^collect\.steps_per_message: a message may bring 44 transitions at once, .*data\.buffer\.capacity \(43\)$"
    with pytest.raises(ValueError, match=said):
        make_trainer(callbacks=[RayCollector()]).fit(make_model(data), data)


def test_it_is_the_collector_of_its_run(make_trainer, make_model):
    data = make_data()
    # either goes on where the other has stopped, so for Lightning they are two of one kind
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ExperienceCollector`"):
        make_trainer(callbacks=[RayCollector(), ExperienceCollector()]).fit(make_model(data), data)
    trainer = make_trainer(callbacks=[RayCollector()])
    model = make_model(data)
    model.trainer = trainer
    assert not any(isinstance(callback, ExperienceCollector) for callback in model.configure_callbacks())
