"""What only the mutants of ``tests/mutants`` brought to light: mistakes that no other test noticed."""

import csv
import inspect
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import Adam

from lightning_dqn import (
    Boltzmann,
    DoubleQLearning,
    DQNLightningModule,
    EpisodeDecay,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    ExponentialSchedule,
    EZGreedy,
    LinearSchedule,
    MLPTorso,
    ReplayBuffer,
)
from lightning_dqn.experience.evaluation import PlayedEpisodes
from lightning_dqn.functional import project_categorical
from tests.environments import Chain, RecordingBuffer, seeded
from tests.runs import steps_saved


class Asking:
    """A batch of episodes that asks the policy about many observations and keeps the answer."""

    def __init__(self, observation):
        self.observation = observation

    def play(self, policy):
        self.actions = policy(self.observation, None)
        return PlayedEpisodes(np.zeros(1, np.int64), np.zeros(1), np.ones(1, np.int64))


def test_evaluation_takes_the_best_action_every_time():
    torch.manual_seed(0)
    model = DQNLightningModule([4], 3, torso=partial(MLPTorso, hidden_sizes=(8,)))
    observation = torch.randn(5000, 4)
    best = model(observation).argmax(dim=1).tolist()
    assert len(set(best)) > 1

    for step in (model.validation_step, model.test_step, model.predict_step):
        asking = Asking(observation.numpy())
        step(asking, 0)
        assert asking.actions.tolist() == best


def test_no_probability_becomes_negative_where_rounding_moves_an_atom_beyond_the_last():
    # in float32 the length of this support times its intervals over its length is more than its intervals
    support = torch.linspace(0, 58.77788, 11)
    assert (support[-1] - support[0]) * (10 / (support[-1] - support[0])) > 10

    projected = project_categorical(torch.ones(1, 1), support[None, -1:], support)

    assert projected.tolist() == [[0.0] * 10 + [1.0]]


def make_data(kind=ExperienceDataModule, **kwargs):
    defaults = {"num_envs": 2, "batch_size": 4, "learning_starts": 20, "train_frequency": 8, "steps_per_epoch": 40}
    return kind(Chain, **(defaults | kwargs), buffer=RecordingBuffer(500), gradient_steps=2, seed=0)


def test_the_clock_counts_the_steps_of_all_processes(make_trainer, make_model):
    class OneOfThree(ExperienceDataModule):
        world_size = 3

    data = make_data(OneOfThree)
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    # six steps at a time, until 20 and then 60 are passed; a third of them is ours
    assert data.env_steps == 60
    assert len(data.buffer.all_added.action) == 20


def test_a_collector_remembers_the_latest_episodes_over_a_checkpoint(make_trainer, make_model):
    data, before, after = make_data(), ExperienceCollector(), ExperienceCollector()
    make_trainer(callbacks=[before], limit_val_batches=0).fit(make_model(data), data)
    assert len(before.state_dict()["recent"]) == before.episodes > 1
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == before.state_dict()


def test_acting_has_the_precision_of_the_run(make_trainer, make_model):
    data, seen = make_data(), {}
    model = make_model(data)
    model.online.register_forward_hook(
        lambda module, args, output: seen.setdefault(len(args[0]), set()).add(torch.is_autocast_enabled("cpu"))
    )
    make_trainer(precision="bf16-mixed", limit_val_batches=0).fit(model, data)
    assert seen == {2: {True}, 4: {True}}  # two environments act, minibatches of four are learned from


def test_a_run_gives_back_the_threads_that_its_network_is_not_worth(make_trainer, make_model, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        data = make_data()
        model = make_model(data)
        model.online.register_forward_hook(lambda module, args, output: seen.add(torch.get_num_threads()))
        make_trainer(limit_val_batches=0).fit(model, data)
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_ordinary_run_leaves_the_hooks_around_single_updates_out(make_trainer, make_model):
    data = make_data()
    model = make_model(data)
    plain = []
    model._gradients = lambda *args: plain.append(1) or DQNLightningModule._gradients(model, *args)
    make_trainer(limit_val_batches=0).fit(model, data)
    assert len(plain) == model.gradient_steps // 2 > 0  # of two updates in an iteration the first


def train(make_trainer, make_model, folder, max_epochs, ckpt_path=None, **kwargs):
    """Trains with a checkpoint after every epoch; returns its path."""
    data = make_data(**kwargs)
    checkpoint = ModelCheckpoint(folder, "latest", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = make_trainer(
        max_epochs=max_epochs, callbacks=[checkpoint], enable_checkpointing=True, limit_val_batches=0
    )
    trainer.fit(make_model(data), data, ckpt_path=ckpt_path)
    return folder / "latest.ckpt"


@pytest.mark.parametrize("changed", [{"gamma": 0.9}, {"n_step": 2}, {}])
def test_going_on_with_another_gamma_or_window_than_the_replay_holds_is_warned_of(
    make_trainer, make_model, tmp_path, recwarn, changed
):
    path = train(make_trainer, make_model, tmp_path, 1)
    recwarn.clear()
    train(make_trainer, make_model, tmp_path, 2, path, **changed)
    warned = [str(warning.message) for warning in recwarn if "keeps the old returns" in str(warning.message)]
    assert [text.split()[0] for text in warned] == [f"data.{name}" for name in changed]


def test_the_replay_that_was_resumed_from_stays_until_the_next_checkpoint_is_written(
    make_trainer, make_model, tmp_path
):
    path = train(make_trainer, make_model, tmp_path, 1)
    assert steps_saved(tmp_path) == [60]
    train(make_trainer, make_model, tmp_path, 2, path)
    assert steps_saved(tmp_path) == [60, 100]


def test_the_speed_of_collection_is_that_of_training_without_the_time_of_validation(
    make_trainer, make_model, tmp_path, monkeypatch
):
    data, validations = make_data(eval_episodes=2, eval_num_envs=2), []
    # fifty environment steps a second, and a thousand seconds for every validation
    monkeypatch.setattr(time, "monotonic", lambda: data.env_steps / 50 + 1000 * len(validations))

    class Validations(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            validations.append(1)

    logger = CSVLogger(tmp_path)
    trainer = make_trainer(max_epochs=3, callbacks=[Validations()], logger=logger, log_every_n_steps=1)
    trainer.fit(make_model(data), data)
    assert len(validations) == 3
    logger.save()
    with Path(logger.experiment.metrics_file_path).open() as file:
        speeds = [float(row["collect/env_steps_per_second"] or 0) for row in csv.DictReader(file)]
    assert [speed for speed in speeds if speed] == pytest.approx([50.0] * 15)


def test_no_more_processes_evaluate_than_train(monkeypatch):
    made = []
    monkeypatch.setattr(
        "lightning_dqn.experience.datamodule.make_envs",
        lambda env_id, count, *args: made.append(count) or seeded(Chain, count).envs,
    )
    for vectorization in ("async", "sync"):
        data = make_data(vectorization=vectorization, eval_episodes=5, eval_num_envs=4)
        next(iter(data.val_dataloader())).envs()
        data.close()
    assert made == [2, 4]


def test_the_arguments_of_a_data_module_are_hyper_parameters():
    data = ExperienceDataModule("CartPole-v1", num_envs=3, buffer=ReplayBuffer(500))
    assert data.hparams["env_id"] == "CartPole-v1"
    assert data.hparams["num_envs"] == 3
    assert data.hparams["buffer"] == {
        "class_path": "lightning_dqn.experience.replay.ReplayBuffer",
        "init_args": {
            "capacity": 500,
            "observations": {
                "class_path": "lightning_dqn.experience.observations.WholeObservations",
                "init_args": {},
            },
        },
    }


def test_the_episodes_of_evaluation_are_what_they_were():
    data = ExperienceDataModule("CartPole-v1", eval_episodes=3)
    (validation,), (test,) = data.val_dataloader(), data.test_dataloader()
    assert validation.seeds == [1557083817, 1641761315, 2037541297]
    assert test.seeds == [534990184, 2130535770, 1664782339]


DEFAULTS = {
    DQNLightningModule: {
        "torso": MLPTorso,
        "head": ExpectedHead,
        "optimizer": Adam,
        "lr_scheduler": None,
        "target_update_period": 1,
        "target_update_rate": 0.005,
        "max_skipped_updates": 10,
        "compile_updates": False,
    },
    ExperienceDataModule: {
        "num_envs": 8,
        "vectorization": "sync",
        "n_step": 1,
        "gamma": 0.99,
        "batch_size": 64,
        "train_frequency": 16,
        "gradient_steps": 8,
        "learning_starts": 1_000,
        "steps_per_epoch": 2_500,
        "eval_episodes": 10,
        "eval_num_envs": 10,
        "max_eval_steps": 27_000,
        "eval_seed": 0,
        "seed": None,
    },
    ReplayBuffer: {"capacity": 100_000},
    LinearSchedule: {"start": 1.0, "end": 0.05, "decay_steps": 10_000},
    ExponentialSchedule: {"start": 1.0, "end": 0.05, "decay_steps": 5_000},
    EpisodeDecay: {"start": 1.0, "end": 0.01, "factor": 0.995},
    EZGreedy: {"epsilon": LinearSchedule(1.0, 0.05, 10_000), "exponent": 2.0},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_what_they_were(kind):
    parameters = inspect.signature(kind).parameters
    assert {name: parameters[name].default for name in DEFAULTS[kind]} == DEFAULTS[kind]


def test_the_rule_of_a_model_and_the_schedules_of_explorers_are_what_they_were():
    assert type(DQNLightningModule([1], 1).target_rule) is DoubleQLearning
    assert EpsilonGreedy().epsilon == LinearSchedule(1.0, 0.05, 10_000)
    assert Boltzmann().temperature == LinearSchedule(1.0, 0.1, 10_000)
