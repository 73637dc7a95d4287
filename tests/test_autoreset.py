from itertools import count

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from lightning_dqn.experience.autoreset import FirstObservations, members_reset_alone
from lightning_dqn.experience.envs import make_envs
from lightning_dqn.experience.stepping import SeededEnvs
from tests.environments import NO_LIMIT, ChainVector, WaitingVector, seeded


def test_native_environments_that_honour_the_mask_are_found_to_reset_alone():
    assert seeded(ChainVector, 4, "native").resets_alone
    assert not seeded(ChainVector, 4, "native", honours_mask=False).resets_alone


def test_an_environment_that_ignores_the_mask_and_did_not_move_is_not_taken_to_reset_alone():
    kwargs = {"honours_mask": False, "anonymous": True, **NO_LIMIT}
    assert not seeded(WaitingVector, 4, "native", **kwargs).resets_alone


def test_an_environment_that_ignores_the_mask_and_has_just_reset_itself_is_not_taken_to_reset_alone():
    for limit in range(1, 9):  # whatever the number of steps that the probe takes
        kwargs = {"honours_mask": False, "anonymous": True, "limits": (limit,), "length": 10}
        assert not seeded(ChainVector, 4, "native", **kwargs).resets_alone


def test_a_native_environment_that_neither_resets_by_itself_nor_alone_is_refused():
    with pytest.raises(ValueError, match=r"^data\.vectorization"):
        seeded(ChainVector, 4, "native", mode=AutoresetMode.DISABLED, honours_mask=False)


def test_a_native_environment_that_resets_within_the_step_is_refused():
    envs = make_envs(ChainVector, 2, {"mode": AutoresetMode.SAME_STEP}, (), "native")
    with pytest.raises(ValueError, match=r"^data\.vectorization: .* hides the last observation"):
        SeededEnvs(envs, count())


def test_the_mode_of_an_environment_is_asked_of_itself_before_its_metadata():
    envs = ChainVector(2, mode=AutoresetMode.SAME_STEP)  # as a dictionary shared with another environment may say
    envs.autoreset_mode = AutoresetMode.NEXT_STEP
    SeededEnvs(envs, count())


@pytest.mark.parametrize("says", [True, False])
def test_an_environment_that_says_how_it_resets_is_not_tried(says):
    envs = ChainVector(4, honours_mask=not says)
    envs.resets_alone = says
    envs.reset = None
    assert members_reset_alone(envs) == says


def test_first_observations_numbers_out_of_range_are_unlike_them():
    sample = np.random.default_rng(0).normal(size=(32, 3, 2))
    first = FirstObservations(sample)
    assert first.are_like(sample).sum() >= 16
    assert not first.are_like(np.full((2, 3, 2), 9.0)).any()


def test_first_observations_flags_and_infinite_numbers_are_compared():
    flags = FirstObservations(np.zeros((32, 2), np.bool_))
    assert flags.are_like(np.array([[False, False], [True, False]])).tolist() == [True, False]
    infinite = FirstObservations(np.full((32, 1), np.inf))
    assert infinite.are_like(np.array([[0.0]])).tolist() == [True]  # nothing is known then
