"""Every choice of every slot beside every choice of every other."""

from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_dqn import (
    Boltzmann,
    CategoricalHead,
    DoubleQLearning,
    DQNLightningModule,
    DuelingStream,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    Greedy,
    ImplicitQuantileHead,
    LinearStream,
    MLPTorso,
    MunchausenQLearning,
    NoisyLinear,
    PrioritizedReplayBuffer,
    QLearning,
    QuantileHead,
    ReplayBuffer,
)
from tests.environments import Chain

SLOTS = {
    "head": {
        "expected": ExpectedHead,
        "categorical": partial(CategoricalHead, num_atoms=5, v_min=0.0, v_max=30.0),
        "quantile": partial(QuantileHead, num_quantiles=4),
        "implicit": partial(ImplicitQuantileHead, num_samples=3, num_target_samples=4, num_policy_samples=5),
    },
    "rule": {"q": QLearning(), "double": DoubleQLearning(), "munchausen": MunchausenQLearning()},
    "stream": {"linear": LinearStream, "dueling": partial(DuelingStream, hidden_sizes=(6,))},
    "layer": {"plain": nn.Linear, "noisy": NoisyLinear},
    "buffer": {"uniform": ReplayBuffer, "prioritised": PrioritizedReplayBuffer},
    "n_step": {"one": 1, "three": 3},
    "explorer": {"epsilon": EpsilonGreedy(), "boltzmann": Boltzmann(), "greedy": Greedy()},
    "masks": {"none": None, "masked": "action_mask"},
    "update": {"hard": (3, 1.0), "polyak": (1, 0.01)},
}


def pairwise(slots):
    """Few combinations in which every two choices of two slots meet, found greedily."""
    pairs = {((a, x), (b, y)) for a, b in combinations(slots, 2) for x, y in product(slots[a], slots[b])}
    everything = [tuple(zip(slots, choice, strict=True)) for choice in product(*slots.values())]
    chosen = []
    while pairs:
        best = max(everything, key=lambda row: sum(pair in pairs for pair in combinations(row, 2)))
        pairs -= set(combinations(best, 2))
        chosen.append(dict(best))
    return chosen


COMBINATIONS = pairwise({slot: list(choices) for slot, choices in SLOTS.items()})


class MaskedChain(Chain):
    """A chain in which one action is illegal at each state, and may not be taken."""

    def legal(self, observation):
        mask = np.ones(self.action_space.n, np.int8)
        mask[int(observation[0]) % self.action_space.n] = 0
        return mask

    def reset(self, **kwargs):
        self.seen, info = super().reset(**kwargs)
        return self.seen, info | {"action_mask": self.legal(self.seen)}

    def step(self, action):
        assert self.legal(self.seen)[action]
        self.seen, *rest, info = super().step(action)
        return self.seen, *rest, info | {"action_mask": self.legal(self.seen)}


def test_the_combinations_are_pairwise_complete():
    for (a, choices), (b, others) in combinations(SLOTS.items(), 2):
        assert {(row[a], row[b]) for row in COMBINATIONS} == set(product(choices, others))


@pytest.mark.parametrize("row", COMBINATIONS, ids=lambda row: "-".join(row.values()))
def test_a_combination_trains_evaluates_and_comes_back_from_its_checkpoint(row, tmp_path):
    chosen = {slot: SLOTS[slot][choice] for slot, choice in row.items()}
    data = ExperienceDataModule(
        Chain if chosen["masks"] is None else MaskedChain,
        num_envs=2,
        action_mask=chosen["masks"],
        buffer=chosen["buffer"](40),
        n_step=chosen["n_step"],
        batch_size=4,
        train_frequency=4,
        gradient_steps=2,
        learning_starts=8,
        steps_per_epoch=80,
        eval_episodes=3,
        seed=0,
    )

    period, rate = chosen["update"]
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=partial(MLPTorso, hidden_sizes=(7,)),
        head=partial(chosen["head"], stream=chosen["stream"], layer=chosen["layer"]),
        target_rule=chosen["rule"],
        target_update_period=period,
        target_update_rate=rate,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        callbacks=[ExperienceCollector(chosen["explorer"], save_replay=False)],
    )

    trainer.fit(model, datamodule=data)

    assert model.gradient_steps == 40
    assert np.isfinite(float(trainer.callback_metrics["val/return"]))
    after = model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    # every parameter of the network learned something, and the target followed
    for name, parameter in model.named_parameters():
        assert not torch.equal(before[name], parameter), name
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = DQNLightningModule.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu").eval()
    observation = torch.rand(5, *data.observation_shape)
    assert torch.equal(again(observation), model.eval()(observation))
