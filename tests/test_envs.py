from contextlib import closing
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from lightning_dqn import ExperienceDataModule
from lightning_dqn.experience.envs import make_env, make_envs, resolve_env
from tests.environments import (
    Chain,
    ContinuousActions,
    Observing,
    ObservingVector,
    chain_episode,
    seeded,
    zeros,
)


@pytest.mark.parametrize(
    "env_id",
    ["Chain-v0", "tests.environments:Chain-v0", "tests.environments.Chain", Chain, partial(Chain), lambda: Chain()],
)
def test_an_environment_is_found_by_id_by_path_or_as_a_callable(env_id):
    assert isinstance(make_env(env_id, {}).unwrapped, Chain)


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        ("NoSuchEnv-v0", "NoSuchEnv"),
        ("CartPole-v99", "CartPole"),
        ("no_such_module:Env-v0", "no_such_module"),
        ("no_such_module.Env", "no_such_module"),
        ("tests.environments.NoSuchClass", "NoSuchClass"),
        ("tests.environments.NOT_AN_ENVIRONMENT", "int, not a class or function"),
        ("", ""),
    ],
)
def test_an_unknown_environment_is_refused_by_name(env_id, reason):
    with pytest.raises(ValueError, match=rf"^data\.env_id: .*{reason}"):
        resolve_env(env_id)


def test_looking_an_environment_up_makes_none():
    def factory():
        raise AssertionError("made")

    assert resolve_env(factory) is factory
    assert resolve_env("CartPole-v1").id == "CartPole-v1"


def test_arguments_reach_the_environment():
    assert make_env(Chain, {"length": 3}).unwrapped.length == 3
    assert make_env("Chain-v0", {"length": 3}).unwrapped.length == 3


def test_wrappers_are_put_around_in_order_and_may_change_the_observation():
    wrappers = [partial(gym.wrappers.FrameStackObservation, stack_size=2), gym.wrappers.FlattenObservation]
    assert make_env(Chain, {}, wrappers).observation_space.shape == (6,)
    with closing(make_envs(Chain, 2, {}, wrappers)) as envs:
        assert envs.single_observation_space.shape == (6,)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_copies_are_stepped_in_this_process_or_in_their_own(vectorization):
    with closing(make_envs("tests.environments.Chain", 2, {"length": 3}, (), vectorization)) as envs:
        assert isinstance(envs, SyncVectorEnv if vectorization == "sync" else AsyncVectorEnv)
        assert envs.num_envs == 2
        observation, _ = envs.reset(seed=[5, 70000])
        assert chain_episode(observation).tolist() == [5, 70000]


def test_environments_registered_here_only_can_be_made_in_other_processes():
    gym.register("OnlyHere-v0", entry_point="tests.environments:Chain")
    try:
        with closing(make_envs("OnlyHere-v0", 2, {}, (), "async")) as envs:
            assert envs.reset(seed=[1, 2])[0].shape == (2, 3)
    finally:
        del gym.registry["OnlyHere-v0"]


def test_continuous_actions_are_refused():
    with pytest.raises(ValueError, match=r"^data\.env_id: .*Discrete action space.*Box"):
        make_env(ContinuousActions, {})


def test_observations_that_are_no_array_are_refused():
    with pytest.raises(ValueError, match=r"^data\.env_id: observations in Sequence"):
        make_env(Observing, {"kind": "sequence"})


def test_spaces_of_native_environments_are_looked_at_too():
    with pytest.raises(ValueError, match=r"^data\.env_id: observations in Sequence"):
        make_envs(ObservingVector, 2, {"kind": "sequence"}, (), "native")


def test_an_environment_without_a_native_form_says_so():
    with pytest.raises(ValueError, match=r"^data\.vectorization: Noise-v0 has no native vector environment"):
        make_envs("Noise-v0", 2, {}, (), "native")


def test_native_environments_cannot_be_wrapped():
    with pytest.raises(ValueError, match=r"^data\.wrappers: a native vector environment cannot be wrapped"):
        make_envs("CartPole-v1", 2, {}, (gym.wrappers.FlattenObservation,), "native")


class RunningMeanStd:
    """Running statistics of another library."""


class OwnStatistics(gym.Wrapper):
    """A wrapper of one's own that keeps running statistics."""

    def __init__(self, env):
        super().__init__(env)
        self.statistics = RunningMeanStd()


class Closed(gym.Wrapper):
    """Counts how often it is closed."""

    count = 0

    def close(self):
        Closed.count += 1
        super().close()


def normalized_chain():
    """Make an environment as a user's own function would."""
    return gym.wrappers.ClipReward(gym.wrappers.NormalizeReward(Chain()), -1, 1)


def normalized_chains(num_envs, wrapper=None):
    """Make a vector environment with running statistics: of the whole, or of its members."""
    if wrapper is None:
        return SyncVectorEnv([normalized_chain] * num_envs)
    return wrapper(SyncVectorEnv([Chain] * num_envs))


def refused(name):
    said = (
        rf"^data\.wrappers: {name} keeps running statistics .* Use model\.torso: lightning_dqn\.NormalizedTorso .*\.$"
    )
    return pytest.raises(ValueError, match=said)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("wrapper", [gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward, OwnStatistics])
def test_make_envs_with_a_wrapper_that_keeps_statistics_refuses_it_by_name(wrapper, vectorization):
    Closed.count = 0
    with refused(wrapper.__name__):
        make_envs(Chain, 2, {}, [Closed, wrapper, gym.wrappers.FlattenObservation], vectorization)
    assert Closed.count == 1


def test_make_env_with_statistics_that_a_factory_added_refuses_the_wrapper():
    with refused("NormalizeReward"):
        make_env(normalized_chain, {})


def test_make_env_with_statistics_of_the_registration_refuses_the_wrapper():
    spec = gym.wrappers.NormalizeObservation(gym.make("CartPole-v1")).spec
    assert spec.additional_wrappers
    with refused("NormalizeObservation"):
        make_env(spec, {})


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (gym.wrappers.vector.NormalizeObservation, "NormalizeObservation"),
        (gym.wrappers.vector.NormalizeReward, "NormalizeReward"),
        (None, "NormalizeReward"),
    ],
)
def test_make_envs_of_a_native_environment_that_keeps_statistics_refuses_it_by_name(wrapper, name):
    with refused(name):
        make_envs(normalized_chains, 2, {"wrapper": wrapper}, (), "native")


def test_data_module_with_a_wrapper_that_keeps_statistics_refuses_it_by_name():
    with refused("NormalizeReward"):
        ExperienceDataModule(Chain, wrappers=[gym.wrappers.NormalizeReward]).observation_shape  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "values"),
    [
        ("float32", (2, 3), "float32", [[0.5] * 3] * 2),
        ("float64", (2,), "float64", [0.1, 0.2]),
        ("uint8", (4, 6, 5), "uint8", np.arange(120).reshape(4, 6, 5)),
        ("int64", (2,), "int64", [-3, 4]),
        ("bool", (2,), "bool", [True, False]),
        ("discrete", (4,), "int8", [0, 0, 1, 0]),
        ("discrete_from_10", (4,), "int8", [0, 0, 1, 0]),
        ("multi_discrete", (5,), "int8", [0, 1, 0, 0, 1]),
        ("multi_binary", (3,), "int8", [1, 0, 1]),
        ("dict", (5,), None, [0.25, 0.5, 0, 1, 0]),
        ("tuple", (3,), None, [0, 1, 0.75]),
    ],
)
@pytest.mark.parametrize("vectorization", ["one", "sync", "native"])
def test_observations_of_every_kind_become_one_array(vectorization, kind, shape, dtype, values):
    if vectorization == "native" and kind == "tuple":
        pytest.skip("a batch of tuples is a tuple of batches, which the native test environment does not make")
    if vectorization == "one":
        env = make_env(Observing, {"kind": kind})
        space, observation, following = env.observation_space, env.reset(seed=0)[0], env.step(0)[0]
    else:
        source = Observing if vectorization == "sync" else ObservingVector
        envs = seeded(source, 2, vectorization, kind=kind)
        space, observation = envs.envs.single_observation_space, envs.reset()
        following = envs.step(zeros(2)).next_observation
        assert (observation[0] == observation[1]).all()
        assert (following[0] == following[1]).all()
        observation, following = observation[0], following[0]
    assert space.shape == observation.shape == following.shape == shape
    assert space.dtype == observation.dtype == following.dtype
    assert dtype is None or space.dtype == dtype
    np.testing.assert_allclose(observation, values, rtol=1e-6)
    np.testing.assert_allclose(following, values, rtol=1e-6)
