import contextlib
import csv
import hashlib
import os
import shutil
import threading
import time
from collections import namedtuple
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_dqn import (
    Boltzmann,
    DQNLightningModule,
    EpisodeDecay,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    EZGreedy,
    Greedy,
    LinearSchedule,
    MLPTorso,
    NoisyLinear,
    PrioritizedReplayBuffer,
    ReplayBatch,
    ReplayBuffer,
    Transition,
    checkpoint_io,
)
from lightning_dqn.experience import checkpoint
from lightning_dqn.experience.atari_scores import ReferenceScores
from lightning_dqn.experience.checkpoint import load_snapshot
from lightning_dqn.experience.faults import EnvironmentFailure
from tests.environments import (
    Chain,
    MaskedChain,
    Noise,
    OffsetActions,
    RecordingBuffer,
    assert_masks_are_right,
)
from tests.runs import snapshot, steps_saved


def make_data(env_id="Noise-v0", **kwargs):
    """A run of 20 random steps, then 40 an epoch."""
    defaults = {
        "num_envs": 2,
        "buffer": RecordingBuffer(500),
        "batch_size": 4,
        "train_frequency": 8,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 40,
        "eval_episodes": 3,
        "eval_num_envs": 2,
        "seed": 0,
    }
    return ExperienceDataModule(env_id, **(defaults | kwargs))


class Clock(Callback):
    """Notes the counters at the start of every iteration and at the end."""

    def __init__(self):
        self.ticks = []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.ticks.append((trainer.datamodule.env_steps, pl_module.gradient_steps))

    def on_train_end(self, trainer, pl_module):
        self.ticks.append((trainer.datamodule.env_steps, pl_module.gradient_steps))


def up_to(number, multiple):
    """The smallest multiple that is at least ``number``."""
    return -(-number // multiple) * multiple


# -- counting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_steps", [1, 2, 8])
@pytest.mark.parametrize("train_frequency", [1, 4, 6, 16])
@pytest.mark.parametrize("num_envs", [1, 2, 3, 8])
def test_environment_and_gradient_steps_are_counted_exactly(
    make_trainer, make_model, num_envs, train_frequency, gradient_steps
):
    data = make_data(
        num_envs=num_envs,
        train_frequency=train_frequency,
        gradient_steps=gradient_steps,
        learning_starts=6,
        steps_per_epoch=6 * train_frequency,
    )
    clock, collector = Clock(), ExperienceCollector()
    make_trainer(callbacks=[clock, collector], limit_val_batches=0).fit(make_model(data), data)
    assert clock.ticks == [(up_to(6 + i * train_frequency, num_envs), i * gradient_steps) for i in range(7)]
    assert collector.iterations == 6
    assert len(data.buffer.all_added.action) == clock.ticks[-1][0]


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_native_environment_that_loses_steps_to_resets_keeps_the_same_pace(make_trainer, make_model, n_step):
    data = make_data("CartPole-v1", vectorization="native", num_envs=4, n_step=n_step, learning_starts=200)
    clock = Clock()
    make_trainer(callbacks=[clock], limit_val_batches=0, max_epochs=5).fit(make_model(data), data)
    for i, (env_steps, gradient_steps) in enumerate(clock.ticks):
        assert 0 <= env_steps - (200 + 8 * i) < 4
        assert gradient_steps == 2 * i


def test_the_first_batch_is_there_though_every_window_may_still_be_open(make_trainer, make_model):
    data = make_data(Chain, env_kwargs={"limits": (None,)}, n_step=7, batch_size=1, learning_starts=0, num_envs=2)
    clock = Clock()
    make_trainer(callbacks=[clock], limit_val_batches=0).fit(make_model(data), data)
    assert clock.ticks[0] == (14, 0)


def test_epochs_are_counted_in_environment_steps(make_trainer, make_model):
    data = make_data(steps_per_epoch=50)  # seven iterations of eight steps
    seen = []

    class Epochs(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(data.env_steps)

    make_trainer(max_epochs=3, callbacks=[Epochs()], limit_val_batches=0).fit(make_model(data), data)
    assert seen == [20 + 56, 20 + 112, 20 + 168]


@pytest.mark.parametrize(("n_step", "stored"), [(1, 60), (4, 56)])
def test_fitting_again_starts_again(make_trainer, make_model, n_step, stored):
    data = make_data(Chain, env_kwargs={"limits": (None,)}, n_step=n_step)
    clock, collector = Clock(), ExperienceCollector()
    for _ in range(2):
        clock.ticks.clear()
        make_trainer(callbacks=[clock, collector], limit_val_batches=0).fit(make_model(data), data)
        assert [env_steps for env_steps, _ in clock.ticks] == [20, 28, 36, 44, 52, 60]
        # each environment is two steps into its fifth episode; the windows of these are open, and forgotten
        assert len(data.buffer) == stored


def test_episodes_and_their_returns_are_counted(make_trainer, make_model, tmp_path):
    collector = ExperienceCollector()
    data = make_data(Chain, env_kwargs={"limits": (3,)}, num_envs=4, steps_per_epoch=80)
    logger = CSVLogger(tmp_path)
    make_trainer(callbacks=[collector], logger=logger, log_every_n_steps=1, limit_val_batches=0).fit(
        make_model(data), data
    )
    assert collector.episodes == data.env_steps // 12 * 4
    for row in rows_of(logger):
        assert (row["collect/return"], row["collect/episode_length"]) == ("6.0", "3.0")


def test_rows_of_a_run_that_skips_no_update_have_no_column_for_skipped_updates(make_trainer, make_model, tmp_path):
    data, logger = make_data(Chain, num_envs=4, steps_per_epoch=80), CSVLogger(tmp_path)
    make_trainer(logger=logger, log_every_n_steps=1, limit_val_batches=0).fit(make_model(data), data)
    rows = rows_of(logger)
    assert rows
    assert not any("train/skipped_updates" in row for row in rows)


# -- what is done when -------------------------------------------------------------------------------------------------


def test_each_batch_is_drawn_after_the_steps_of_the_iteration_before(make_trainer, make_model):
    data, order = make_data(num_envs=1, learning_starts=5, train_frequency=2, steps_per_epoch=8), []

    class Order(RecordingBuffer):
        def add(self, transition):
            order.append("step")
            super().add(transition)

        def sample(self, *args):
            order.append("draw")
            return super().sample(*args)

        def update_priorities(self, index, td_error):
            assert index.shape == td_error.shape == (2, 4)
            assert (td_error >= 0).all()
            order.append("priorities")

    class Learn(Callback):
        def on_train_batch_start(self, *args):
            order.append("learn")

    data.buffer = Order(500)
    make_trainer(callbacks=[Learn()], limit_val_batches=0).fit(make_model(data), data)
    assert order == ["step"] * 5 + ["draw", "learn", "priorities", "step", "step"] * 4
    assert data.buffer.added_before_sample == [5, 7, 9, 11]


def test_actions_before_learning_are_uniformly_random(make_trainer, make_model):
    data = make_data(OffsetActions, num_envs=3, learning_starts=600, steps_per_epoch=600)
    make_trainer(callbacks=[ExperienceCollector(Greedy())], limit_val_batches=0).fit(make_model(data), data)
    actions = data.buffer.all_added.action
    counts = np.bincount(actions[:600], minlength=3)
    assert ((counts - 200) ** 2 / 200).sum() < 13.8  # 2 degrees of freedom, probability .999
    assert (actions.reshape(-1, 3)[:200, :2] == actions.reshape(-1, 3)[:200, 1:]).mean() == pytest.approx(
        1 / 3, abs=0.09
    )
    # in the only observation there is, the greedy action is the same for all environments
    assert (actions[600:].reshape(-1, 3) == actions[600:].reshape(-1, 3)[:, :1]).all()


def test_stored_actions_are_indices(make_trainer, make_model):
    data = make_data(OffsetActions)
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    stored = data.buffer.all_added
    assert set(stored.action.tolist()) == {0, 1, 2}
    assert (stored.reward == stored.action - 3).all()


def test_the_target_network_never_acts(make_trainer, make_model):
    data, calls = make_data(), {"online": [], "target": []}
    model = make_model(data)
    for name, seen in calls.items():
        getattr(model, name).register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0].shape))
    make_trainer(limit_val_batches=0).fit(model, data)
    assert calls["target"] == [(4, 2)] * 10  # once for every gradient step, and for nothing else
    assert len(calls["online"]) == 2 * 10 + 40 // 2


def test_the_network_acts_without_gradients(make_trainer, make_model):
    data, seen = make_data(), []
    model = make_model(data)
    model.online.register_forward_hook(
        lambda module, args, output: seen.append((len(args[0]), output.q_values.requires_grad))
    )
    make_trainer(limit_val_batches=0).fit(model, data)
    assert {grad for size, grad in seen if size == 2} == {False}


def test_the_network_acts_greedily_on_what_it_has_learned(make_trainer, make_model):
    """With a Greedy explorer each action is the best one under the weights of that very moment."""
    data, checked = make_data(), []

    class Check(Greedy):
        def __call__(self, q_values, env_steps, episodes, rng):
            observation = torch.from_numpy(np.stack(data.envs.envs._env_obs))
            assert np.array_equal(q_values, model(observation).detach().numpy())
            checked.append(env_steps)
            return super().__call__(q_values, env_steps, episodes, rng)

    model = make_model(data)
    make_trainer(callbacks=[ExperienceCollector(Check())], limit_val_batches=0).fit(model, data)
    assert checked == list(range(20, 60, 2))


# -- environments that fail --------------------------------------------------------------------------------------------


class FailsToReset(Chain):
    """Breaks down at the third reset after it was made, a few times.

    Args:
        blind: Whether all its observations are the same.
    """

    left = 0

    def __init__(self, blind=False, **kwargs):
        super().__init__(**kwargs)
        self.blind, self.resets = blind, 0

    def reset(self, **keywords):
        self.resets += 1
        if self.resets >= 3 and FailsToReset.left > 0:
            FailsToReset.left -= 1
            raise OSError("cable")
        observation, info = super().reset(**keywords)
        return observation * (not self.blind), info

    def step(self, action):
        observation, *rest = super().step(action)
        return observation * (not self.blind), *rest


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("blind", [False, True])
def test_where_a_reset_fails_the_others_are_brought_back_and_no_window_misses_a_step(
    make_trainer, make_model, recwarn, monkeypatch, blind, overlap
):
    monkeypatch.setattr(FailsToReset, "left", 3)
    limits = (None, 4, 5)
    data = make_data(
        FailsToReset,
        env_kwargs={"blind": blind, "limits": limits},
        n_step=3,
        gamma=0.9,
        train_frequency=2,
        on_env_error="restart",
    )
    collector = ExperienceCollector(overlap=overlap)
    make_trainer(callbacks=[collector], limit_val_batches=0, max_epochs=2).fit(make_model(data), data)
    restarts = [str(warning.message) for warning in recwarn if "were made again" in str(warning.message)]
    assert len(restarts) == 3
    assert all("1 of 2 began a new episode" in text for text in restarts)
    windows = [range(t + 1, min(t + 3, limit or 7) + 1) for limit in limits for t in range(limit or 7)]
    right = [sum(0.9**k * reward for k, reward in enumerate(window)) for window in windows]
    rewards = data.buffer.all_added.reward
    assert len(rewards) > 80
    assert np.abs(rewards[:, None] - right).min(axis=1).max() < 1e-5


class Breaks(Chain):
    """Breaks down at its first step, a few times."""

    left = 0

    def step(self, action):
        if Breaks.left > 0:
            Breaks.left -= 1
            raise OSError("cable")
        return super().step(action)


@pytest.mark.filterwarnings("ignore:.*The environments were made again")
def test_failures_of_one_fit_do_not_count_in_the_next(make_trainer, make_model, monkeypatch):
    data, collector = make_data(Breaks, on_env_error="restart"), ExperienceCollector()
    for failures in (4, 3):
        monkeypatch.setattr(Breaks, "left", failures)
        with pytest.raises(EnvironmentFailure, match="cable") if failures == 4 else contextlib.nullcontext():
            make_trainer(callbacks=[collector], limit_val_batches=0).fit(make_model(data), data)
        assert Breaks.left == 0
    assert data.env_steps == 60


# -- collectors --------------------------------------------------------------------------------------------------------


def test_two_collectors_are_refused(make_trainer):
    with pytest.raises((RuntimeError, ValueError), match="ExperienceCollector"):
        make_trainer(callbacks=[ExperienceCollector(), ExperienceCollector()])


def test_two_collectors_of_different_classes_are_refused_too(make_trainer, make_model):
    class Other(ExperienceCollector):
        pass

    data = make_data()
    model = make_model(data)
    with pytest.raises(ValueError, match=r"trainer\.callbacks: two ExperienceCollectors"):
        make_trainer(callbacks=[ExperienceCollector(), Other()]).fit(model, data)


def test_the_model_brings_a_collector_unless_the_trainer_has_one(make_trainer, make_model):
    data = make_data()
    trainer = make_trainer(limit_val_batches=0)
    trainer.fit(make_model(data), data)
    assert sum(isinstance(callback, ExperienceCollector) for callback in trainer.callbacks) == 1

    collector = ExperienceCollector(Greedy())
    trainer = make_trainer(callbacks=[collector], limit_val_batches=0)
    trainer.fit(make_model(data), data)
    assert [callback for callback in trainer.callbacks if isinstance(callback, ExperienceCollector)] == [collector]
    assert collector.iterations == 5


def test_learning_from_other_data_leaves_the_collector_idle(make_trainer, tmp_path, recwarn):
    model = DQNLightningModule([2], 3, torso=partial(MLPTorso, hidden_sizes=(8,)))
    random = torch.Generator().manual_seed(0)
    batch = ReplayBatch(
        Transition(
            torch.rand(2, 4, 2, generator=random),
            torch.zeros(2, 4, dtype=torch.int64),
            torch.ones(2, 4),
            torch.full((2, 4), 0.9),
            torch.rand(2, 4, 2, generator=random),
        ),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.ones(2, 4),
    )
    loader = DataLoader([batch] * 3, batch_size=None)
    trainer = make_trainer(max_epochs=2, enable_checkpointing=True)
    trainer.fit(model, loader)
    assert model.gradient_steps == 2 * 3 * 2
    assert not (tmp_path / "replay").exists()
    make_trainer(max_epochs=3).fit(model, loader, ckpt_path=trainer.checkpoint_callback.best_model_path)
    assert model.gradient_steps == 3 * 3 * 2
    assert not [warning for warning in recwarn if "replay" in str(warning.message)]


def test_a_fast_development_run_works(make_trainer, make_model):
    data = make_data(learning_starts=10_000)
    trainer = make_trainer(fast_dev_run=True)
    trainer.fit(make_model(data), data)
    assert data.env_steps == 4 + 8
    trainer.validate(make_model(data), data, verbose=False)


# -- evaluation and logs -----------------------------------------------------------------------------------------------


def digest(model, buffer):
    """A hash of all weights and of everything stored."""
    state = hashlib.sha256()
    for tensor in model.state_dict().values():
        state.update(tensor.numpy().tobytes())
    for array in buffer.state_arrays().values():
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def test_evaluation_does_not_change_training(make_trainer, make_model):
    digests = []
    for kwargs in ({"limit_val_batches": 0}, {}, {"check_val_every_n_epoch": 2}, {"num_sanity_val_steps": 1}):
        data = make_data()
        model = make_model(data)
        make_trainer(max_epochs=4, **kwargs).fit(model, data)
        digests.append(digest(model, data.buffer))
    assert len(set(digests)) == 1
    data = make_data(seed=1)
    model = make_model(data)
    make_trainer(max_epochs=4).fit(model, data)
    assert digest(model, data.buffer) not in digests


def rows_of(logger):
    logger.save()
    with Path(logger.experiment.metrics_file_path).open() as file:
        return list(csv.DictReader(file))


def test_the_clock_stands_in_every_row(make_trainer, make_model, tmp_path):
    data, logger = make_data(), CSVLogger(tmp_path)
    trainer = make_trainer(max_epochs=3, logger=logger, log_every_n_steps=2)
    trainer.fit(make_model(data), data)
    rows = rows_of(logger)
    kinds = {"train/loss": [], "collect/epsilon": [], "val/return": []}
    for row in rows:
        assert row["env_steps"], row
        for name, seen in kinds.items():
            if row[name]:
                seen.append(float(row["env_steps"]))
        assert bool(row["train/loss"]) == bool(row["train/td_error"]) == bool(row["train/q_value"])
        assert bool(row["val/return"]) == bool(row["val/return_iqm"]) == bool(row["val/episode_length"])
    # an iteration is eight steps, every second is logged; an epoch is five
    assert kinds["train/loss"] == kinds["collect/epsilon"] == [20 + 16 * i for i in range(1, 8)]
    assert kinds["val/return"] == [60, 100, 140]


@pytest.mark.parametrize("stage", ["val", "test"])
def test_the_return_is_logged_on_the_scale_from_chance_to_human_where_that_is_known(
    make_trainer, make_model, monkeypatch, stage
):
    def evaluate():
        data = make_data()
        trainer, model = make_trainer(), make_model(data)
        return (trainer.validate if stage == "val" else trainer.test)(model, data, verbose=False)[0]

    assert f"{stage}/human_normalized" not in evaluate()
    monkeypatch.setattr(ExperienceDataModule, "reference_scores", ReferenceScores(random=-2.0, human=6.0))
    scores = evaluate()
    assert scores[f"{stage}/human_normalized"] == pytest.approx((scores[f"{stage}/return"] + 2) / 8)
    assert scores[f"{stage}/return"] != 0


def test_the_clock_stands_beside_the_test_scores(make_trainer, make_model):
    data = make_data()
    model, trainer = make_model(data), make_trainer()
    trainer.fit(model, data)
    (scores,) = trainer.test(model, data, verbose=False)
    assert scores["env_steps"] == 60
    assert "test/return" in scores


@pytest.mark.parametrize("schedule", [LinearSchedule(1.0, 0.1, 77), EpisodeDecay(1.0, 0.01, 0.9)])
def test_epsilon_is_logged_as_it_is(make_trainer, make_model, tmp_path, schedule):
    data, logger = make_data(Chain, env_kwargs={"limits": (4,)}, num_envs=4), CSVLogger(tmp_path)
    collector = ExperienceCollector(EpsilonGreedy(schedule))
    make_trainer(max_epochs=3, logger=logger, log_every_n_steps=1, callbacks=[collector]).fit(make_model(data), data)
    rows = [row for row in rows_of(logger) if row["collect/epsilon"]]
    assert len(rows) == 15
    for row in rows:
        env_steps = int(float(row["env_steps"]))
        assert float(row["collect/epsilon"]) == schedule(env_steps, env_steps // 16 * 4)


def test_the_clock_is_exact_beyond_what_float32_can_count(make_trainer, make_model, tmp_path):
    class Later(Callback):
        def on_train_start(self, trainer, pl_module):
            data.env_steps = 2**24 + 1

    data, logger = make_data(num_envs=1, learning_starts=4), CSVLogger(tmp_path)
    trainer = make_trainer(callbacks=[Later()], logger=logger, log_every_n_steps=1)
    trainer.fit(make_model(data), data)
    expected = [2**24 + 5 + 8 * i for i in range(1, 6)]
    assert [int(float(row["env_steps"])) for row in rows_of(logger)] == [*expected, expected[-1]]
    assert trainer.callback_metrics["env_steps"].item() == expected[-1]


METRICS = {
    *("env_steps", "collect/env_steps_per_second", "collect/epsilon", "collect/return", "collect/episode_length"),
    *("train/loss", "train/td_error", "train/q_value", "train/skipped_updates"),
}


class Looks(Checkpoint):
    """Notes the metrics that a checkpoint callback finds at the end of a validation and of an epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(dict(trainer.callback_metrics))

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(dict(trainer.callback_metrics))


@pytest.mark.parametrize(
    ("options", "looks", "validations"),
    [
        ({}, 4, 2),
        ({"limit_val_batches": 0}, 2, 0),
        ({"check_val_every_n_epoch": 2}, 3, 1),
        ({"val_check_interval": 2}, 6, 4),
        ({"max_steps": 7}, 3, 1),
    ],
)
def test_metrics_are_available_whenever_callbacks_look_and_write_no_rows(
    make_trainer, make_model, tmp_path, options, looks, validations
):
    data, logger, looking = make_data(Chain, env_kwargs={"limits": (4,)}), CSVLogger(tmp_path), Looks()
    options |= {"max_epochs": 2, "log_every_n_steps": 50, "enable_checkpointing": True}
    trainer = make_trainer(logger=logger, callbacks=[ExperienceCollector(), looking], **options)
    trainer.fit(make_model(data), data)
    assert len(looking.seen) == looks
    for metrics in looking.seen:
        assert metrics.keys() >= METRICS
    assert looking.seen[-1]["env_steps"] == data.env_steps
    path = Path(logger.log_dir, "metrics.csv")
    written = rows_of(logger) if path.exists() else []
    assert [bool(row["val/return"]) for row in written] == [True] * validations


@pytest.mark.parametrize("log_every", [1, 2, 3, 5, 50])
def test_speed_is_right_in_rows_and_for_callbacks_at_every_logging_interval(
    make_trainer, make_model, tmp_path, monkeypatch, log_every
):
    class Validation(Looks):
        hours = 0

        def on_validation_batch_start(self, *args):
            self.hours += 1

    data, logger, looking = make_data(), CSVLogger(tmp_path), Validation()
    clock = SimpleNamespace(monotonic=lambda: data.env_steps / 100 + 3600 * looking.hours)
    monkeypatch.setattr("lightning_dqn.collector.time", clock)
    callbacks = [ExperienceCollector(), looking]
    options = {"max_epochs": 3, "log_every_n_steps": log_every, "enable_checkpointing": True}
    make_trainer(logger=logger, callbacks=callbacks, **options).fit(make_model(data), data)
    speeds = [metrics["collect/env_steps_per_second"].item() for metrics in looking.seen]
    speeds += [float(row["collect/env_steps_per_second"]) for row in rows_of(logger) if row.get("train/loss")]
    assert len(speeds) == 6 + 15 // log_every
    assert speeds == pytest.approx([100] * len(speeds))


@pytest.mark.parametrize("monitor", ["val/return", "train/loss", "collect/return"])
def test_monitored_metric_after_a_resume_at_the_end_of_an_epoch_is_that_of_the_whole_run(
    make_trainer, make_model, tmp_path, monitor
):
    def fit(max_epochs, ckpt_path=None):
        data, stop = make_data(Chain, env_kwargs={"limits": (4,)}), EarlyStopping(monitor, patience=9)
        make_trainer(
            max_epochs=max_epochs, log_every_n_steps=50, enable_checkpointing=True, callbacks=[stop, latest(tmp_path)]
        ).fit(make_model(data), data, ckpt_path=ckpt_path)
        return stop.state_dict()

    whole = fit(4)
    fit(2)
    assert fit(4, tmp_path / "latest.ckpt") == whole


# -- checkpoints -------------------------------------------------------------------------------------------------------


def latest(folder):
    return ModelCheckpoint(
        folder, "latest", every_n_epochs=1, save_on_train_epoch_end=False, enable_version_counter=False
    )


class Moment(Callback):
    """Looks at a run when everything has been put back and nothing has been learned yet."""

    def __init__(self):
        self.first_batch = None

    def on_train_start(self, trainer, pl_module):
        data = trainer.datamodule
        self.env_steps, self.gradient_steps = data.env_steps, pl_module.gradient_steps
        self.arrays = {name: array.copy() for name, array in data.buffer.state_arrays().items()}
        self.observation_seeds = data.envs.episode_seed.tolist()
        self.next_seeds = data.episode_rng.bit_generator.state

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.first_batch is None:
            self.first_batch = batch


def train(make_trainer, make_model, folder, max_epochs, ckpt_path=None, **kwargs):
    """One process's worth of training; returns everything that took part in it."""
    data, moment = make_data(**kwargs), Moment()
    model = make_model(data)
    collector = ExperienceCollector(EpsilonGreedy(LinearSchedule(1.0, 0.1, 200)))
    trainer = make_trainer(
        max_epochs=max_epochs,
        callbacks=[collector, moment, latest(folder)],
        enable_checkpointing=True,
        logger=CSVLogger(folder, name=None, version=f"log{max_epochs}"),
        log_every_n_steps=1,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer, model, data, collector, moment


MASKED = {"env_id": MaskedChain, "action_mask": "legal"}


@pytest.mark.parametrize(
    ("capacity", "n_step", "source"), [(500, 1, {}), (70, 1, {}), (70, 3, {}), (70, 1, MASKED), (70, 3, MASKED)]
)
def test_a_resumed_run_goes_on_where_it_was(make_trainer, make_model, tmp_path, capacity, n_step, source):
    kwargs = {"n_step": n_step} | source
    _, model, data, collector, _ = train(
        make_trainer, make_model, tmp_path, 2, buffer=RecordingBuffer(capacity), **kwargs
    )
    env_steps, gradient_steps, episodes = data.env_steps, model.gradient_steps, collector.episodes
    assert (env_steps, gradient_steps) == (20 + 80, 20)
    arrays = {name: array.copy() for name, array in data.buffer.state_arrays().items()}
    next_seeds, next_draws = data.episode_rng.bit_generator.state, data.dataset.rng.bit_generator.state
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    episode_seeds = collector._envs.episode_seed.tolist()

    resumed = train(
        make_trainer, make_model, tmp_path, 3, tmp_path / "latest.ckpt", buffer=RecordingBuffer(capacity), **kwargs
    )
    trainer, model, data, collector, moment = resumed
    # the counters and the replay, and no second warm-up
    assert (moment.env_steps, moment.gradient_steps) == (env_steps, gradient_steps)
    assert moment.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (moment.arrays[name] == array).all()
    # the masks are those of what was restored, and of what came after
    assert ("action_mask" in arrays) == ("next_action_mask" in arrays) == (source == MASKED)
    for rows in (moment.arrays, data.buffer.state_arrays()) if source == MASKED else ():
        assert_masks_are_right(Transition(**{name: rows[name] for name in Transition._fields}))
    # the episodes, and the generators: the next episodes, the next batch
    assert moment.observation_seeds == episode_seeds
    assert moment.next_seeds == next_seeds
    replay = np.random.default_rng()
    replay.bit_generator.state = next_draws
    oldest = max(0, int(arrays["count"]) - capacity)
    expected_names = oldest + replay.integers(len(arrays["action"]), size=8)
    assert moment.first_batch.index.flatten().tolist() == expected_names.tolist()
    # and how it goes on
    assert (data.env_steps, model.gradient_steps, collector.iterations) == (20 + 120, 30, 15)
    assert collector.episodes > episodes
    assert any(not torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    logged = [row for row in rows_of(trainer.logger) if row["collect/epsilon"]]
    assert [float(row["env_steps"]) for row in logged] == [100 + 8 * i for i in range(1, 6)]
    for row in logged:
        assert float(row["collect/epsilon"]) == LinearSchedule(1.0, 0.1, 200)(int(float(row["env_steps"])), 0)


def test_exploration_goes_on_with_the_same_random_numbers(make_trainer, make_model, tmp_path):
    _, _, data, collector, _ = train(make_trainer, make_model, tmp_path, 1)
    expected = collector.rng.bit_generator.state

    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            assert resumed.rng.bit_generator.state == expected
            trainer.should_stop = True

    data, resumed = make_data(), ExperienceCollector()
    make_trainer(callbacks=[resumed, Stop()], max_epochs=2, limit_val_batches=0).fit(
        make_model(data), data, ckpt_path=tmp_path / "latest.ckpt"
    )
    assert data.env_steps == 60


def test_what_an_explorer_remembers_is_saved_with_a_run_and_not_carried_into_another(
    make_trainer, make_model, tmp_path
):
    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(collector.explorer.state_dict())

    def collect():
        return ExperienceCollector(EZGreedy(LinearSchedule(1.0, 1.0), exponent=1.1))

    def fit(max_epochs, ckpt_path=None):
        data = make_data()
        trainer = make_trainer(
            max_epochs=max_epochs, callbacks=[collector, Look(), latest(tmp_path)], enable_checkpointing=True
        )
        trainer.fit(make_model(data), data, ckpt_path=ckpt_path)

    seen, collector = [], collect()
    fit(1)
    remembered = collector.explorer.state_dict()
    assert sum(remembered["remaining"]) > 0
    fit(1)
    assert collector.explorer.state_dict() == remembered  # as the same fit again
    collector = collect()
    fit(2, tmp_path / "latest.ckpt")
    nothing = {"action": [], "remaining": []}
    assert seen == [nothing, nothing, remembered]


def test_a_checkpoint_holds_nothing_but_tensors_and_plain_values(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 2)
    checkpoint = torch.load(tmp_path / "latest.ckpt", weights_only=True)
    assert checkpoint["gradient_steps"] == 20
    assert checkpoint["ExperienceDataModule"]["env_steps"] == 100


def test_the_replay_stands_beside_the_checkpoint_and_only_the_last_two_are_kept(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 4)
    assert steps_saved(tmp_path) == [140, 180]
    assert (tmp_path / "latest.ckpt").stat().st_size < 100_000


def test_a_run_can_be_moved_to_another_folder(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path / "here", 1)
    shutil.move(tmp_path / "here", tmp_path / "there")
    *_, moment = train(make_trainer, make_model, tmp_path / "new", 2, tmp_path / "there" / "latest.ckpt")
    assert moment.env_steps == 60
    assert len(moment.arrays["action"]) == 60


def damage(folder):
    (folder / "action.0.npy").write_bytes(b"nonsense")


def test_without_any_replay_a_resumed_run_warns_and_collects_anew(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 2)
    damage(snapshot(tmp_path, 100))
    shutil.rmtree(snapshot(tmp_path, 60))
    with pytest.warns(UserWarning, match="experience is collected anew"):
        _, model, data, collector, moment = train(make_trainer, make_model, tmp_path, 3, tmp_path / "latest.ckpt")
    assert (moment.env_steps, moment.gradient_steps) == (100 + 20, 20)
    assert len(moment.arrays["action"]) == 20
    assert (data.env_steps, model.gradient_steps, collector.iterations) == (100 + 20 + 40, 30, 15)


@pytest.mark.parametrize("what", ["replay", "checkpoint"])
def test_where_anything_is_damaged_a_run_goes_on_from_the_checkpoint_before(make_trainer, make_model, tmp_path, what):
    train(make_trainer, make_model, tmp_path, 2)
    if what == "replay":
        damage(snapshot(tmp_path, 100))
    else:
        os.truncate(tmp_path / "latest.ckpt", 1000)
    with pytest.warns(UserWarning, match=r"Taking the one before, .*latest\.previous\.ckpt \(epoch 0, step 5\)"):
        _, model, data, collector, moment = train(make_trainer, make_model, tmp_path, 3, tmp_path / "latest.ckpt")
    assert (moment.env_steps, moment.gradient_steps, len(moment.arrays["action"])) == (60, 10, 60)
    assert (data.env_steps, model.gradient_steps, collector.iterations) == (60 + 80, 30, 15)
    # what was damaged was not kept as the one before, and its name was free for the new
    *_, moment = train(make_trainer, make_model, tmp_path, 4, tmp_path / "latest.previous.ckpt")
    assert moment.env_steps == 100


def test_a_replay_that_does_not_fit_on_the_disk_stops_nothing(make_trainer, make_model, tmp_path, monkeypatch):
    free = [10**9, 10**9, 0]
    usage = namedtuple("usage", ["free"])
    real = checkpoint.check_space

    def check_space(directory, num_bytes):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: usage(free.pop(0) if free else 10**9))
            real(directory, num_bytes)

    monkeypatch.setattr(checkpoint, "check_space", check_space)
    with pytest.warns(UserWarning, match=r"The replay could not be saved.*needed: .* MiB, free: 0\.0 MiB"):
        train(make_trainer, make_model, tmp_path, 3)
    assert "replay" not in torch.load(tmp_path / "latest.ckpt", weights_only=True)
    assert steps_saved(tmp_path) == [60, 100]
    *_, moment = train(make_trainer, make_model, tmp_path, 4, tmp_path / "latest.previous.ckpt")
    assert (moment.env_steps, len(moment.arrays["action"])) == (100, 100)


def test_a_checkpoint_that_could_not_be_written_keeps_its_predecessors_and_their_replays(
    make_trainer, make_model, tmp_path, monkeypatch
):
    full, real = [False, False, True, True], checkpoint_io.check_space

    def check_space(directory, num_bytes):
        if full.pop(0):
            raise OSError(28, "No space left on device")
        real(directory, num_bytes)

    monkeypatch.setattr(checkpoint_io, "check_space", check_space)
    with pytest.warns(UserWarning, match=r"latest\.ckpt could not be saved, training goes on"):
        train(make_trainer, make_model, tmp_path, 4)
    for name, env_steps in (("latest.ckpt", 100), ("latest.previous.ckpt", 60)):
        replay = torch.load(tmp_path / name, weights_only=True)["replay"]
        assert replay["name"].endswith(f"-{env_steps}")
        assert load_snapshot(tmp_path / replay["name"] / "rank0", replay["sha256"])[0]["count"] == env_steps


def test_saving_the_replay_can_be_switched_off(make_trainer, make_model, tmp_path):
    data = make_data()
    make_trainer(callbacks=[ExperienceCollector(save_replay=False), latest(tmp_path)], enable_checkpointing=True).fit(
        make_model(data), data
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.ckpt", "latest.ckpt.sha256"]
    with pytest.warns(UserWarning, match="experience is collected anew"):
        *_, moment = train(make_trainer, make_model, tmp_path, 2, tmp_path / "latest.ckpt")
    assert moment.env_steps == 60 + 20


def test_a_checkpoint_of_weights_alone_has_no_replay(make_trainer, make_model, tmp_path):
    data = make_data()
    best = ModelCheckpoint(
        tmp_path, "best", monitor="val/return", mode="max", save_weights_only=True, save_on_train_epoch_end=False
    )
    make_trainer(max_epochs=2, callbacks=[best], enable_checkpointing=True).fit(make_model(data), data)
    assert {path.name for path in tmp_path.iterdir()} <= {"best.ckpt", "best.ckpt.sha256", "best.previous.ckpt"}


def test_another_run_in_the_same_folder_saves_its_own_replay(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 1, seed=0)
    _, _, data, *_ = train(make_trainer, make_model, tmp_path, 1, seed=1)
    arrays = {name: array.copy() for name, array in data.buffer.state_arrays().items()}
    *_, moment = train(make_trainer, make_model, tmp_path, 2, tmp_path / "latest.ckpt", seed=1)
    for name, array in arrays.items():
        assert (moment.arrays[name] == array).all()


def test_a_buffer_of_another_size_is_refused_by_name(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 1, buffer=ReplayBuffer(30))
    with pytest.raises(ValueError, match=r"data\.buffer"):
        train(make_trainer, make_model, tmp_path, 2, tmp_path / "latest.ckpt", buffer=ReplayBuffer(40))


def test_a_checkpoint_of_another_environment_is_refused(make_trainer, make_model, tmp_path):
    train(make_trainer, make_model, tmp_path, 1)
    with pytest.raises(ValueError, match=r"ckpt_path: .*data\.env_id"):
        train(make_trainer, make_model, tmp_path, 2, tmp_path / "latest.ckpt", env_id=Noise)


def test_evaluating_a_checkpoint_needs_no_replay(make_trainer, make_model, tmp_path, recwarn):
    train(make_trainer, make_model, tmp_path, 1)
    shutil.rmtree(tmp_path / "replay")
    data = make_data()
    (scores,) = make_trainer().test(make_model(data), data, ckpt_path=tmp_path / "latest.ckpt", verbose=False)
    assert scores["env_steps"] == 60
    assert not [warning for warning in recwarn if "replay" in str(warning.message)]


class EpsilonValues(Callback):
    """Notes epsilon and the clock after each iteration."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        collector = next(callback for callback in trainer.callbacks if isinstance(callback, ExperienceCollector))
        env_steps = trainer.datamodule.env_steps
        epsilon = collector.explorer.schedules(env_steps, collector.episodes)["epsilon"]
        self.values.append((env_steps, collector.iterations, epsilon))


def fit_in_parts(folder, parts, compile_updates=False, num_envs=2, overlap=False):
    """Train one Trainer for several fits; return it, what it trained, and the state of everything."""
    torch.manual_seed(0)
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=num_envs,
        learning_starts=40,
        steps_per_epoch=60,
        train_frequency=num_envs if overlap else 4,
        n_step=3,
        batch_size=8,
        buffer=PrioritizedReplayBuffer(150),
        eval_episodes=2,
        seed=0,
    )
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        head=partial(ExpectedHead, layer=NoisyLinear),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=50),
        compile_updates=compile_updates,
    )
    epsilons, logger = EpsilonValues(), CSVLogger(folder)
    explorer = EpsilonGreedy(LinearSchedule(1.0, 0.1, 300))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=0,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[epsilons, ExperienceCollector(explorer, overlap=overlap)],
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    for max_epochs in parts:
        trainer.fit_loop.max_epochs = max_epochs
        trainer.fit(model, datamodule=data)
    optimizer = trainer.optimizers[0].state_dict()
    return {
        "epsilons": epsilons.values,
        "rows": [{k: v for k, v in row.items() if "per_second" not in k} for row in rows_of(logger)],
        "weights": model.state_dict(),
        "moments": optimizer["state"],
        "lr": optimizer["param_groups"][0]["lr"],
        "replay": {name: array.copy() for name, array in data.buffer.state_arrays().items()},
        "windows": {name: array.copy() for name, array in data.accumulator.state_arrays().items()},
        "generators": [data.dataset.rng.bit_generator.state, data.episode_rng.bit_generator.state],
        "gradient_steps": model.gradient_steps,
    }


def assert_equal(one, other):
    """Compare two states to the bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name])
    elif isinstance(one, torch.Tensor | np.ndarray):
        assert (np.asarray(one) == np.asarray(other)).all()
    else:
        assert one == other


@pytest.mark.parametrize("settings", [{}, {"num_envs": 1}, {"overlap": True}], ids=["plain", "one", "overlap"])
def test_second_fit_of_the_same_trainer_continues_the_first_exactly(tmp_path, settings):
    whole = fit_in_parts(tmp_path / "whole", [6], **settings)
    for name, parts in {"halves": [3, 6], "thirds": [1, 2, 6]}.items():
        assert_equal(whole, fit_in_parts(tmp_path / name, parts, **settings))


def test_second_fit_with_another_data_module_starts_again_with_a_warning(make_trainer, make_model):
    first, second = make_data(), make_data()
    model, trainer = make_model(first), make_trainer(callbacks=[ExperienceCollector()], limit_val_batches=0)
    trainer.fit(model, first)
    trainer.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="replay, clock and exploration start again"):
        trainer.fit(model, second)
    assert second.env_steps == first.env_steps


def test_second_fit_after_an_exception_starts_again_with_a_warning(make_trainer, make_model):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.max_epochs == 1:
                raise RuntimeError("stop")

    data = make_data()
    model = make_model(data)
    trainer = make_trainer(callbacks=[ExperienceCollector(), Fail()], limit_val_batches=0)
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(model, data)
    trainer.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="replay, clock and exploration start again"):
        trainer.fit(model, data)


def test_second_fit_of_the_same_trainer_saves_its_own_replay(tmp_path):
    data = ExperienceDataModule("CartPole-v1", num_envs=2, learning_starts=64, steps_per_epoch=64, seed=0)
    model = DQNLightningModule(data.observation_shape, data.num_actions)
    latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[latest],
        limit_val_batches=0,
        enable_progress_bar=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, datamodule=data)
    assert data.env_steps == 64 + 2 * 64
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    arrays, _ = load_snapshot(snapshot(tmp_path, 192))
    assert (arrays["observation"] == data.buffer.state_arrays()["observation"]).all()


# -- environments that step while the learner learns -------------------------------------------------------------------


class Meeting(Noise):
    """Waits in every step but those of the warm-up until the learner learns."""

    learning = threading.Event()
    waits = False

    def step(self, action):
        if self.waits:
            assert Meeting.learning.wait(timeout=30), "the learner waits for the environments"
        return super().step(action)


def overlapping(**kwargs):
    return make_data(**({"train_frequency": 2} | kwargs))


def test_environments_step_while_the_learner_learns(make_trainer, make_model, monkeypatch):
    data, steps = overlapping(env_id=Meeting), []
    model = make_model(data)
    learn = model.training_step

    def training_step(*args):
        steps.append(data.env_steps)
        Meeting.learning.set()
        return learn(*args)

    class Wait(Callback):
        def on_train_batch_start(self, *args):
            monkeypatch.setattr(Meeting, "waits", True)
            Meeting.learning.clear()

    monkeypatch.setattr(model, "training_step", training_step)
    collector = ExperienceCollector(overlap=True)
    make_trainer(callbacks=[Wait(), collector], limit_val_batches=0).fit(model, data)
    # two updates an iteration, before its steps count
    assert steps == [step for step in range(20, 60, 2) for _ in range(2)]


def test_with_overlap_actions_are_those_of_the_weights_before_the_updates(make_trainer, make_model):
    weights, acted = [], []

    class Check(Greedy):
        def __call__(self, q_values, env_steps, episodes, rng):
            acted.append((env_steps, model.gradient_steps))
            weights.append(model.online.torso.layers[1][0].weight.detach().clone())
            return super().__call__(q_values, env_steps, episodes, rng)

    data = overlapping()
    model = make_model(data)
    make_trainer(callbacks=[ExperienceCollector(Check(), overlap=True)], limit_val_batches=0).fit(model, data)
    assert acted == [(20 + 2 * i, 2 * i) for i in range(20)]
    assert all(not torch.equal(one, other) for one, other in pairwise(weights))


@pytest.mark.parametrize("kwargs", [{}, {"env_id": MaskedChain, "action_mask": "legal"}, {"num_envs": 3, "n_step": 3}])
def test_with_overlap_a_run_is_reproducible_and_keeps_pace(make_trainer, make_model, kwargs):
    digests = []
    for _ in range(2):
        data, clock = overlapping(**kwargs), Clock()
        model = make_model(data)
        callbacks = [ExperienceCollector(Boltzmann(), overlap=True), clock]
        make_trainer(callbacks=callbacks, max_epochs=2, limit_val_batches=0).fit(model, data)
        digests.append(digest(model, data.buffer))
        assert [steps for steps, _ in clock.ticks] == [up_to(20 + 2 * i, data.num_envs) for i in range(41)]
        assert "environments" not in {thread.name.split("_")[0] for thread in threading.enumerate()}
    assert digests[0] == digests[1]


def test_with_overlap_an_iteration_is_at_most_one_step_of_all(make_trainer, make_model):
    data = overlapping(train_frequency=3)
    with pytest.raises(ValueError, match=r"^collect\.overlap: .*data\.train_frequency \(3\).*data\.num_envs \(2\)"):
        make_trainer(callbacks=[ExperienceCollector(overlap=True)]).fit(make_model(data), data)


@pytest.mark.parametrize("who", ["learner", "environment"])
def test_whoever_fails_the_environments_are_closed_after_their_step(make_trainer, make_model, monkeypatch, who):
    events = []

    class Slow(Noise):
        steps = 0

        def step(self, action):
            Slow.steps += 1
            if Slow.steps > 30:
                time.sleep(0.2)
                if who == "environment":
                    raise RuntimeError("the environment failed")
            events.append("step")
            return super().step(action)

        def close(self):
            events.append("close")

    data = overlapping(env_id=Slow)
    model = make_model(data)

    def training_step(*args):
        if Slow.steps > 30:
            raise RuntimeError("the learner failed")
        return DQNLightningModule.training_step(model, *args)

    monkeypatch.setattr(model, "training_step", training_step if who == "learner" else model.training_step)
    with pytest.raises(RuntimeError, match=f"the {who} failed"):
        make_trainer(callbacks=[ExperienceCollector(overlap=True)], limit_val_batches=0).fit(model, data)
    assert "step" not in events[events.index("close", events.index("step")) :]
    assert "environments" not in {thread.name.split("_")[0] for thread in threading.enumerate()}
