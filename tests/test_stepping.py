from contextlib import closing
from itertools import chain, count

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from lightning_dqn.stepping import episode_seeds
from tests.environments import (
    CHAIN_LENGTH,
    NO_LIMIT,
    Chain,
    ChainVector,
    Faulty,
    InPlace,
    Noise,
    OffsetActions,
    WaitingVector,
    chain_episode,
    seeded,
    zeros,
)


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
    assert not seeded(WaitingVector, 4, "native", **kwargs).resets_alone


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


class NotFiniteAtReset(Chain):
    """Its first observation of every episode is not a number."""

    def reset(self, **keywords):
        observation, info = super().reset(**keywords)
        return observation * np.float32(np.nan), info


def test_a_first_observation_that_is_not_finite_is_refused_too():
    with pytest.raises(ValueError, match="environment 0 returned an observation that is not finite at step 0"):
        seeded(NotFiniteAtReset, 2).reset()
