import re
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from gymnasium import Env, spaces

from lightning_dqn.experience.checked import CheckedEnv, check_batch, check_observations

BOX = spaces.Box(-1, 1, (2,), np.float32)
BYTES = spaces.Box(0, 255, (2,), np.uint8)
BOTH = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
FINE = np.zeros(2, np.float32)


class Says(Env):
    """Returns what it is told to."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, observation, reward=0.0, terminated=False, truncated=False, info=None):
        self.observation_space = space
        self.outcome = observation, reward, terminated, truncated, {} if info is None else info

    def reset(self, *, seed=None, options=None):
        return self.outcome[0], self.outcome[-1]

    def step(self, action):
        return self.outcome


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (BOX, FINE),
        (BOX, [0, 1]),
        (BOX, np.array([0.5, 7.0])),
        (BYTES, np.array([True, False])),
        (BOTH, {"a": FINE, "b": 2}),
        (BOTH, OrderedDict(b=np.int64(0), a=FINE)),
        (spaces.Tuple([BOX, BYTES]), (FINE, np.array([1, 2], np.uint8))),
        (spaces.Discrete(3, start=5), 7),
        (spaces.MultiBinary(2), np.array([0, 1], np.int8)),
    ],
)
def test_what_a_space_can_hold_passes_unchanged(space, observation):
    env = CheckedEnv(Says(space, observation))
    assert env.reset()[0] is observation
    assert env.step(0)[0] is observation


@pytest.mark.parametrize(
    ("space", "observation", "said"),
    [
        (BOX, None, "is NoneType None, not numbers"),
        (BOX, "12", "is str '12', not numbers"),
        (BOX, ["1", "2"], "is list ['1', '2'], not numbers"),
        (BOX, [[1], [1, 2]], "is list [[1], [1, 2]], not an array"),
        (BOX, np.zeros(3, np.float32), "has shape (3,), not (2,)"),
        (BOX, np.float32(0), "has shape (), not (2,)"),
        (BOX, np.zeros((1, 2), np.float32), "has shape (1, 2), not (2,)"),
        (BOX, np.zeros(2, complex), "not numbers"),
        (BYTES, np.array([0, 256]), "holds 256, which is no uint8"),
        (BYTES, np.array([-1, 0]), "holds -1, which is no uint8"),
        (BYTES, np.array([0, np.nan]), "holds nan, which is no uint8"),
        (BYTES, [0.5, 1.0], "holds 0.5, which is no uint8"),
        (BYTES, np.array([0, 255]), "is of int64, which does not become uint8 by itself"),
        (BOTH, {"a": FINE}, "is dict {"),
        (BOTH, {"a": FINE, "c": 1}, "is missing, in 'b'"),
        (BOTH, {"a": np.zeros(3), "b": 1}, "has shape (3,), not (2,), in 'a'"),
        (BOTH, {"a": FINE, "b": 3}, "is int 3, not in Discrete(3), in 'b'"),
        (BOTH, (FINE, 1), "is tuple ("),
        (spaces.Tuple([BOX]), {"a": FINE}, "is dict {"),
        (spaces.Tuple([BOX]), (None,), "not numbers, in 0"),
        (spaces.Discrete(3), -1, "is int -1, not in Discrete(3)"),
        (spaces.Discrete(3), 1.0, "is float 1.0, not in Discrete(3)"),
        (spaces.MultiBinary(2), np.array([0, 2]), "not in MultiBinary(2)"),
    ],
)
def test_what_it_cannot_hold_is_refused_in_words(space, observation, said):
    env = CheckedEnv(Says(space, observation))
    for act in (env.reset, lambda: env.step(0)):
        with pytest.raises(ValueError, match=r"^its observation .*" + re.escape(said)) as refused:
            act()
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "reward", [1, 0.5, True, np.float32(2), np.float64(2), np.int8(3), np.array(4.0), torch.tensor(1.0)]
)
def test_a_number_is_a_reward(reward):
    assert CheckedEnv(Says(BOX, FINE, reward)).step(0)[1] is reward


@pytest.mark.parametrize("reward", [None, "1", np.array([1.0]), [1.0], {}, 1j, Fraction(1, 2), [[1], [2, 3]], object()])
def test_anything_else_is_none(reward):
    with pytest.raises(TypeError, match=r"^its reward is not one number but"):
        CheckedEnv(Says(BOX, FINE, reward)).step(0)


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_are_true_or_false(name):
    for flag in (True, np.False_, 1, np.int64(0), np.array(True)):
        CheckedEnv(Says(BOX, FINE, **{name: flag})).step(0)
    for flag in (None, "yes", 2, 1.0, np.nan, np.array([True])):
        with pytest.raises(TypeError, match=f"^its {name} is not true or false but"):
            CheckedEnv(Says(BOX, FINE, **{name: flag})).step(0)


@pytest.mark.parametrize("info", [[], "info", 3])
def test_info_is_a_dict(info):
    env = CheckedEnv(Says(BOX, FINE, info=info))
    for act in (env.reset, lambda: env.step(0)):
        with pytest.raises(TypeError, match=r"^its info is not a dict but"):
            act()


@pytest.mark.parametrize("outcome", [None, (FINE, 0.0, False, {}), [FINE, 0.0, False, False, {}]])
def test_a_step_returns_five_things_and_a_reset_two(outcome):
    env = Says(BOX, FINE)
    env.outcome = outcome
    with pytest.raises(TypeError, match=r"^its step returned .*, not a tuple of 5"):
        CheckedEnv(env).step(0)
    env.reset = lambda **_: FINE
    with pytest.raises(TypeError, match=r"^its reset returned .*, not a tuple of 2"):
        CheckedEnv(env).reset()


def test_native_environments_return_arrays_of_one_for_each():
    fine = np.zeros(3), np.zeros(3, bool), np.zeros(3, bool)
    check_batch(3, *fine)
    check_batch(3, np.zeros(3, np.int64), *fine[1:])
    for bad in (
        None,
        np.zeros(2),
        np.zeros((3, 1)),
        [0.0] * 3,
        np.array(["1"] * 3),
        np.float64(0),
        np.array([None] * 3),
    ):
        with pytest.raises(ValueError, match=r"^the environments' reward is .*, not an array of 3 numbers"):
            check_batch(3, bad, *fine[1:])
    for bad in (None, np.zeros(3), np.zeros(2, bool)):
        with pytest.raises(ValueError, match=r"^the environments' terminated is .*, not an array of 3 bools"):
            check_batch(3, fine[0], bad, fine[2])
        with pytest.raises(ValueError, match=r"^the environments' truncated is .*, not an array of 3 bools"):
            check_batch(3, fine[0], fine[1], bad)
    check_observations(BYTES, 3, np.zeros((3, 2), np.uint8))
    check_observations(BYTES, 3, np.zeros((3, 2)))
    for bad in (None, np.zeros((2, 2)), np.full((3, 2), 300), [[0, 0]] * 3, np.full((3, 2), "a")):
        with pytest.raises(ValueError, match=r"^the environments' observation "):
            check_observations(BYTES, 3, bad)
