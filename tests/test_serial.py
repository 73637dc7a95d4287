"""The environments of this process are stepped as Gymnasium's own vector environment steps them."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from lightning_dqn.experience.serial import SerialEnvs


class Dice(gym.Env):
    """Everything is drawn; the info is there only sometimes, and deep. Observations are given as ``kind``."""

    action_space = spaces.Discrete(3)

    def __init__(self, kind=np.asarray, dtype=np.float32, reuse=False):
        self.observation_space = spaces.Box(0, 100, (2, 2), dtype)
        self.kind, self.dtype, self.reuse = kind, dtype, reuse
        self.array = np.zeros((2, 2), dtype)

    def _roll(self):
        numbers = self.np_random.integers(100, size=(2, 2)).astype(self.dtype)
        if not self.reuse:
            return self.kind(numbers)
        self.array[:] = numbers
        return self.array

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._roll(), {"seed": seed}

    def step(self, action):
        info = {}
        if self.np_random.random() < 0.5:
            info = {"lives": 3, "deep": {"mask": np.arange(3) == action}, "note": "six"}
        end, cut = self.np_random.random(2) < 0.2
        return self._roll(), float(action) + self.np_random.random(), bool(end), bool(cut), info


def same(one, other):
    """Whether nested dictionaries of arrays are equal, types included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize(
    "settings",
    [{}, {"kind": np.ndarray.tolist}, {"dtype": np.uint8}, {"reuse": True}],
    ids=["arrays", "lists", "bytes", "an array written over"],
)
def test_every_step_and_reset_is_the_one_of_gymnasium(num_envs, settings):
    makers = [lambda: Dice(**settings)] * num_envs
    ours, theirs = SerialEnvs(makers), SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    seeds = list(range(num_envs))
    found, expected = ours.reset(seed=seeds), theirs.reset(seed=seeds)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(200):
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        action = rng.integers(3, size=num_envs)
        found, expected = ours.step(action), theirs.step(action)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        done = found[2] | found[3]
        ends += done.sum()
        if done.any():
            seeds = [int(seed) for seed in rng.integers(1000, size=num_envs)]
            found = ours.reset(seed=seeds, options={"reset_mask": done.copy()})
            expected = theirs.reset(seed=seeds, options={"reset_mask": done.copy()})
    assert ends > 20


def test_what_was_handed_out_stays_as_it_was():
    envs = SerialEnvs([lambda: Dice(reuse=True)] * 2)
    envs.reset(seed=[1, 2])
    first = envs.step(np.array([0, 1]))
    copies = [np.copy(array) for array in first[:4]]
    envs.step(np.array([2, 2]))
    assert all(map(np.array_equal, first[:4], copies))
