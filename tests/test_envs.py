from contextlib import closing
from functools import partial
from itertools import chain, count

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from lightning_dqn import EvaluationEpisodes
from lightning_dqn.envs import SeededEnvs, episode_seeds, make_env, make_envs, resolve_env
from tests.environments import (
    CHAIN_LENGTH,
    Chain,
    ChainVector,
    ContinuousActions,
    Faulty,
    InPlace,
    Noise,
    Observing,
    ObservingVector,
    OffsetActions,
    StayingVector,
    chain_episode,
)

NO_LIMIT = {"limits": (None,)}


def seeded(env_id, num_envs=4, vectorization="sync", seeds=None, max_episode_steps=None, **kwargs):
    envs = make_envs(env_id, num_envs, kwargs, (), vectorization)
    return SeededEnvs(envs, count(100) if seeds is None else iter(seeds), max_episode_steps)


def zeros(num_envs=4):
    return np.zeros(num_envs, np.int64)


# -- finding and making ------------------------------------------------------------------------------------------------


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


def test_a_native_environment_that_resets_within_the_step_is_refused():
    envs = make_envs(ChainVector, 2, {"mode": AutoresetMode.SAME_STEP}, (), "native")
    with pytest.raises(ValueError, match=r"^data\.vectorization: .* hides the last observation"):
        SeededEnvs(envs, count())


def test_the_mode_of_an_environment_is_asked_of_itself_before_its_metadata():
    envs = ChainVector(2, mode=AutoresetMode.SAME_STEP)  # as a dictionary shared with another environment may say
    envs.autoreset_mode = AutoresetMode.NEXT_STEP
    SeededEnvs(envs, count())


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


# -- stepping ----------------------------------------------------------------------------------------------------------


def test_an_episode_that_ends_is_followed_by_a_new_one_and_leaves_its_neighbours_alone():
    envs = seeded(Chain, 3, seeds=[0, 1, 2, 4000, 5000], limits=(None, 2, 3))
    assert chain_episode(envs.reset()).tolist() == [0, 1, 2]
    step = envs.step(zeros(3))
    assert step.observation[:, 0].tolist() == step.next_observation[:, 0].tolist() == [1, 1, 1]
    assert step.done.tolist() == [False, False, False]

    step = envs.step(zeros(3))
    assert step.truncated.tolist() == [False, True, False]
    assert step.next_observation[:, 0].tolist() == [2, 2, 2]
    assert chain_episode(step.next_observation).tolist() == [0, 1, 2]
    assert step.observation[:, 0].tolist() == [2, 0, 2]
    assert chain_episode(step.observation).tolist() == [0, 4000, 2]

    step = envs.step(zeros(3))
    assert step.truncated.tolist() == [False, False, True]
    assert step.next_observation[:, 0].tolist() == [3, 1, 3]
    assert step.observation[:, 0].tolist() == [3, 1, 0]
    assert chain_episode(step.observation).tolist() == [0, 4000, 5000]
    assert envs.episode_seed.tolist() == [0, 4000, 5000]


def test_a_terminal_state_is_told_from_a_time_limit_and_wins_over_it():
    envs = seeded(Chain, 3, seeds=[0, 1, 2, 7, 3, 3, 3], length=2, limits=(None, 1, 2))
    envs.reset()
    step = envs.step(zeros(3))
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False] * 3, [False, True, False])
    step = envs.step(zeros(3))
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([True, False, True], [False, True, False])
    assert (step.done == [True, True, True]).all()


SOURCES = {
    "sync": (Chain, "sync", {}),
    "async": (Chain, "async", {}),
    "native, mask honoured": (ChainVector, "native", {}),
    "native, mask ignored": (ChainVector, "native", {"honours_mask": False}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_returns_and_lengths_are_those_of_the_episodes(source):
    env_id, vectorization, kwargs = SOURCES[source]
    envs = seeded(env_id, 4, vectorization, **kwargs)
    with closing(envs):
        observation, finished = envs.reset(), 0
        for _ in range(60):
            step = envs.step(zeros())
            t = step.next_observation[:, 0]
            assert step.reward.dtype == step.episode_return.dtype == np.float64
            assert (step.episode_length[step.valid] == t[step.valid]).all()
            assert (step.episode_return[step.valid] == (t * (t + 1) / 2)[step.valid]).all()
            assert (step.reward[step.valid] == t[step.valid]).all()
            assert (observation[step.valid, 0] == t[step.valid] - 1).all()
            # a step that was not taken ends nothing and shows the first observation of the next episode
            assert not step.done[~step.valid].any()
            assert (t[~step.valid] == 0).all()
            assert (step.episode_length[~step.valid] == 0).all()
            assert (step.terminated == (t == CHAIN_LENGTH)).all()
            finished += step.done.sum()
            observation = step.observation
        assert finished > 30
        assert envs.resets_alone == (source != "native, mask ignored")


@pytest.mark.parametrize("source", ["sync", "native, mask honoured"])
def test_where_members_reset_alone_every_step_is_one(source):
    env_id, vectorization, kwargs = SOURCES[source]
    envs = seeded(env_id, 4, vectorization, **kwargs)
    envs.reset()
    for _ in range(30):
        assert envs.step(zeros()).valid.all()


def test_every_episode_has_a_seed_of_its_own():
    envs, seen = seeded(Chain, 4, seeds=episode_seeds(np.random.default_rng(0)), limits=(1,)), []
    observation = envs.reset()
    for _ in range(100):
        seen += chain_episode(observation).tolist()
        observation = envs.step(zeros()).observation
    assert len(set(seen)) == 400


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_episode_can_be_replayed_from_its_seed_and_actions(vectorization):
    envs, random = seeded(Noise, 3, vectorization), np.random.default_rng(5)
    with closing(envs):
        observation = envs.reset()
        open_episodes = [(int(envs.episode_seed[i]), [observation[i]], [], []) for i in range(3)]
        finished = []
        for _ in range(80):
            action = random.integers(3, size=3)
            step = envs.step(action)
            for i in range(3):
                _, observations, actions, rewards = open_episodes[i]
                observations.append(step.next_observation[i])
                actions.append(int(action[i]))
                rewards.append(step.reward[i])
                if step.done[i]:
                    assert step.episode_return[i] == pytest.approx(sum(rewards))
                    finished.append(open_episodes[i])
                    open_episodes[i] = (int(envs.episode_seed[i]), [step.observation[i]], [], [])
    assert len(finished) > 20
    env = Noise()
    for seed, observations, actions, rewards in finished:
        assert (env.reset(seed=seed)[0] == observations[0]).all()
        for action, observation, reward in zip(actions, observations[1:], rewards, strict=True):
            again, reward_again, *_ = env.step(action)
            assert (again == observation).all()
            assert reward_again == reward


def test_actions_are_indices_whatever_the_start_of_the_space():
    envs = seeded(OffsetActions, 3)
    assert envs.num_actions == 3
    envs.reset()
    assert envs.step(np.array([0, 1, 2])).reward.tolist() == [-3, -2, -1]


def test_resetting_everything_starts_the_statistics_anew():
    envs = seeded(Chain, 2, **NO_LIMIT)
    envs.reset()
    envs.step(zeros(2))
    assert chain_episode(envs.reset()).tolist() == [102, 103]
    step = envs.step(zeros(2))
    assert step.episode_length.tolist() == [1, 1]
    assert step.episode_return.tolist() == [1, 1]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_a_step_returned_stays_as_it_was(vectorization):
    envs = seeded(InPlace, 2, vectorization)
    with closing(envs):
        first = envs.reset()
        steps = [envs.step(zeros(2)) for _ in range(12)]
    assert first[:, 0].tolist() == [0, 0]
    assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 4, 5] * 2 + [1, 2]
    assert [step.observation[0, 0] for step in steps] == [1, 2, 3, 4, 0] * 2 + [1, 2]
    assert [step.episode_length[0] for step in steps] == [1, 2, 3, 4, 5] * 2 + [1, 2]


@pytest.mark.parametrize("honours_mask", [True, False])
def test_what_a_native_step_returned_stays_as_it_was_though_the_environment_writes_over_it(honours_mask):
    envs = seeded(ChainVector, 2, "native", honours_mask=honours_mask, reuse=True, limits=(3,))
    first = envs.reset()
    steps = [envs.step(zeros(2)) for _ in range(4)]
    assert first[:, 0].tolist() == [0, 0]
    if honours_mask:
        assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 1]
        assert [step.observation[0, 0] for step in steps] == [1, 2, 0, 1]
    else:
        assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 0]


# -- native environments that cannot reset their members alone ---------------------------------------------------------


def test_native_cartpole_is_found_to_reset_by_itself_and_its_reset_steps_are_no_steps():
    envs = seeded("CartPole-v1", 4, "native")
    assert not envs.resets_alone
    envs.reset()
    ended, lengths, resets = np.zeros(4, bool), np.zeros(4, int), 0
    for _ in range(200):
        step = envs.step(np.array([0, 1, 0, 1]))
        assert (step.valid == ~ended).all()
        lengths = np.where(step.valid, lengths + 1, 0)
        assert (step.episode_length == lengths).all()
        assert (step.episode_return == lengths).all()
        # a fresh state lies within .05
        assert (np.abs(step.next_observation[~step.valid]) <= 0.05).all()
        resets += (~step.valid).sum()
        ended = step.done
    assert resets > 20


def test_native_environments_that_honour_the_mask_are_found_to_reset_alone():
    assert seeded(ChainVector, 4, "native").resets_alone
    assert not seeded(ChainVector, 4, "native", honours_mask=False).resets_alone


def test_an_environment_that_ignores_the_mask_and_did_not_move_is_not_taken_to_reset_alone():
    kwargs = {"honours_mask": False, "anonymous": True, **NO_LIMIT}
    assert not seeded(StayingVector, 4, "native", **kwargs).resets_alone


def test_an_environment_that_ignores_the_mask_and_has_just_reset_itself_is_not_taken_to_reset_alone():
    for limit in range(1, 9):  # whatever the number of steps that the probe takes
        kwargs = {"honours_mask": False, "anonymous": True, "limits": (limit,), "length": 10}
        assert not seeded(ChainVector, 4, "native", **kwargs).resets_alone


def test_a_native_environment_may_be_one_alone():
    envs = seeded(ChainVector, 1, "native", limits=(3,))
    envs.reset()
    steps = [envs.step(zeros(1)) for _ in range(8)]
    taken = [step for step in steps if step.valid[0]]
    assert [step.next_observation[0, 0] for step in taken] == ([1, 2, 3] * 3)[: len(taken)]
    assert [step.episode_return[0] for step in taken] == ([1, 3, 6] * 3)[: len(taken)]


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_native_environment_that_never_resets_by_itself_is_reset(num_envs):
    envs = seeded(ChainVector, num_envs, "native", mode=AutoresetMode.DISABLED, limits=(3,))
    envs.reset()
    steps = [envs.step(zeros(num_envs)) for _ in range(8)]
    assert all(step.valid.all() for step in steps)
    assert [step.next_observation[-1, 0] for step in steps] == [1, 2, 3, 1, 2, 3, 1, 2]


def test_a_native_environment_that_neither_resets_by_itself_nor_alone_is_refused():
    with pytest.raises(ValueError, match=r"^data\.vectorization"):
        seeded(ChainVector, 4, "native", mode=AutoresetMode.DISABLED, honours_mask=False)


# -- values that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("fault", "what"), [("reward", "a reward of nan"), ("observation", "an observation")])
def test_what_is_not_finite_is_refused_with_environment_step_and_seed(fault, what, vectorization):
    kwargs = {"fault": fault, "at": 3}
    envs = seeded(Faulty, 2, vectorization, seeds=[11, 22, 33, 44], **kwargs)
    with closing(envs):
        envs.reset()
        envs.step(zeros(2))
        envs.step(zeros(2))
        message = rf"environment 0 returned {what} that is not finite at step 3 of its episode \(episode seed 11\)"
        with pytest.raises(ValueError, match=message):
            envs.step(zeros(2))


def test_the_environment_that_failed_is_named():
    # episodes of 2, 3, any number of and 4 steps
    envs = seeded(Faulty, 4, seeds=chain(range(4), count(100)), fault="reward", at=5, limits=(2, 3, None, 4))
    envs.reset()
    for _ in range(4):
        envs.step(zeros())
    with pytest.raises(ValueError, match=r"environment 2 .* at step 5 of its episode \(episode seed 2\)"):
        envs.step(zeros())


def test_an_infinite_observation_after_an_end_is_refused_too():
    envs = seeded(Faulty, 1, fault="observation", at=CHAIN_LENGTH)
    envs.reset()
    for _ in range(CHAIN_LENGTH - 1):
        envs.step(zeros(1))
    with pytest.raises(ValueError, match="not finite at step 7"):
        envs.step(zeros(1))


# -- evaluation --------------------------------------------------------------------------------------------------------


def choose(observation):
    """A deterministic policy that looks at the observation."""
    return (np.abs(observation[:, 0]) * 10).astype(np.int64) % 3


SEEDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]


@pytest.fixture(scope="module")
def played_alone():
    """Return and length of each of ``SEEDS``, one episode after the other in a plain environment."""
    results = []
    for seed in SEEDS:
        env, score, length, done = Noise(), 0.0, 0, False
        observation, _ = env.reset(seed=seed)
        while not done:
            observation, reward, terminated, truncated, _ = env.step(choose(observation[None])[0])
            score, length, done = score + reward, length + 1, terminated or truncated
        results.append((score, length))
    return np.array(results).T


@pytest.mark.parametrize("num_envs", [1, 3, 10, 13])
def test_evaluation_does_not_depend_on_the_number_of_environments(played_alone, num_envs):
    envs = make_envs(Noise, num_envs, {})
    played = EvaluationEpisodes(lambda: envs, SEEDS).play(choose)
    assert played.seeds.tolist() == SEEDS
    np.testing.assert_allclose(played.returns, played_alone[0], rtol=1e-12)
    assert played.lengths.tolist() == played_alone[1].tolist()


def test_evaluation_may_be_repeated_in_the_same_environments(played_alone):
    envs = make_envs(Noise, 3, {})
    episodes = EvaluationEpisodes(lambda: envs, SEEDS)
    for _ in range(2):
        np.testing.assert_allclose(episodes.play(choose).returns, played_alone[0], rtol=1e-12)
    assert len(episodes) == 10


@pytest.mark.parametrize("num_envs", [1, 3, 10])
def test_long_evaluation_episodes_are_cut_off(num_envs):
    envs = make_envs(Chain, num_envs, NO_LIMIT)
    played = EvaluationEpisodes(lambda: envs, SEEDS, max_episode_steps=5).play(
        lambda observation: zeros(len(observation))
    )
    assert played.lengths.tolist() == [5] * 10
    assert played.returns.tolist() == [15] * 10


def test_a_cap_counts_the_steps_of_each_episode():
    envs = seeded(Chain, 2, max_episode_steps=5, seeds=[0, 1, 2, 3, 4, 5], limits=(3, None))
    envs.reset()
    steps = [envs.step(zeros(2)) for _ in range(6)]
    assert [step.truncated.tolist() for step in steps[2:]] == [
        [True, False],
        [False, False],
        [False, True],
        [True, False],
    ]
    assert not any(step.terminated.any() for step in steps)


def test_a_cap_at_the_terminal_state_leaves_it_terminal():
    envs = seeded(Chain, 1, max_episode_steps=CHAIN_LENGTH, **NO_LIMIT)
    envs.reset()
    for _ in range(CHAIN_LENGTH):
        step = envs.step(zeros(1))
    assert step.terminated.all()
    assert not step.truncated.any()


def test_a_native_environment_that_resets_by_itself_is_not_cut_off():
    envs = make_envs(ChainVector, 2, {"honours_mask": False, **NO_LIMIT}, (), "native")
    played = EvaluationEpisodes(lambda: envs, SEEDS[:6], max_episode_steps=5).play(lambda observation: zeros(2))
    assert played.lengths.tolist() == [CHAIN_LENGTH] * 6
