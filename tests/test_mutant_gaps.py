"""What only the mutants of ``tests/mutants`` brought to light: mistakes that no other test noticed."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
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
from lightning_dqn.evaluation import PlayedEpisodes
from lightning_dqn.functional import project_categorical
from tests.environments import Chain, RecordingBuffer


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


DEFAULTS = {
    DQNLightningModule: {
        "torso": MLPTorso,
        "head": ExpectedHead,
        "optimizer": Adam,
        "lr_scheduler": None,
        "target_update_period": 1,
        "target_update_rate": 0.005,
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
