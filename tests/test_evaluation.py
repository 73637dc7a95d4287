from contextlib import closing

import numpy as np
import pytest

from lightning_dqn import EvaluationEpisodes, ExperienceDataModule
from lightning_dqn.experience.envs import make_envs
from tests.environments import (
    CHAIN_LENGTH,
    MASKED_ACTIONS,
    NO_LIMIT,
    Chain,
    ChainVector,
    MaskedChain,
    MaskedChainVector,
    Noise,
    chain_limit,
    legal_actions,
    seeded,
    zeros,
)


def choose(observation, action_mask=None):
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
        lambda observation, action_mask: zeros(len(observation))
    )
    assert played.lengths.tolist() == [5] * 10
    assert played.returns.tolist() == [15] * 10


def test_without_a_mask_key_the_policy_is_given_no_mask():
    seen = []

    def policy(observation, action_mask):
        seen.append(action_mask)
        return zeros(2)

    envs = make_envs(Chain, 2, {})
    EvaluationEpisodes(lambda: envs, SEEDS).play(policy)
    assert set(seen) == {None}


@pytest.mark.parametrize("where", ["info", "observation"])
@pytest.mark.parametrize("num_envs", [1, 3, 10, 13])
def test_the_policy_is_given_the_mask_of_every_observation_and_its_legal_actions_are_played(num_envs, where):
    calls = []

    def last_legal(observation, action_mask):
        assert action_mask.shape == (num_envs, MASKED_ACTIONS)
        assert (action_mask == legal_actions(observation)).all()
        calls.append(action_mask)
        return MASKED_ACTIONS - 1 - action_mask[:, ::-1].argmax(axis=1)

    envs = make_envs(MaskedChain, num_envs, {"where": where, "at_the_end": "none", "start": 3}, mask_key="legal")
    played = EvaluationEpisodes(lambda: envs, SEEDS, mask_key="legal").play(last_legal)
    lengths = [chain_limit(seed) or CHAIN_LENGTH for seed in SEEDS]
    assert played.lengths.tolist() == lengths
    assert played.returns.tolist() == [length * (length + 1) / 2 for length in lengths]
    assert len(calls) >= sum(lengths) / num_envs


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


def first_actions(most=1_000):
    """A policy that takes the first action everywhere and fails if it is asked for too many."""
    left = iter(range(most))

    def policy(observation, action_mask=None):
        assert next(left, None) is not None, f"still playing after {most} steps"
        return zeros(len(observation))

    return policy


@pytest.mark.parametrize("num_envs", [2, 3, 7])
def test_play_native_members_that_do_not_reset_alone_are_cut_off_at_the_limit(num_envs):
    envs = make_envs(ChainVector, num_envs, {"honours_mask": False, **NO_LIMIT}, (), "native")
    played = EvaluationEpisodes(lambda: envs, SEEDS[:6], max_episode_steps=5).play(first_actions())
    assert played.lengths.tolist() == [5] * 6
    assert played.returns.tolist() == [15] * 6


@pytest.mark.parametrize("length", [10**9, 6, 5, 4])
@pytest.mark.parametrize("num_envs", [2, 4])
def test_play_every_episode_is_played_though_some_members_never_end(num_envs, length):
    # every other member is cut off by itself after 3 steps
    kwargs = {"honours_mask": False, "length": length, "limits": (None, 3)}
    envs = make_envs(ChainVector, num_envs, kwargs, (), "native")
    for _ in range(2):
        played = EvaluationEpisodes(lambda: envs, SEEDS, max_episode_steps=5).play(first_actions())
        lengths = played.lengths.tolist()
        assert set(lengths) == {3, min(length, 5)}
        assert played.returns.tolist() == [length * (length + 1) / 2 for length in lengths]


def test_play_without_any_end_all_are_reset_with_the_next_seed():
    envs = make_envs(ChainVector, 3, {"honours_mask": False, "length": 10**9, **NO_LIMIT}, (), "native")
    episodes = EvaluationEpisodes(lambda: envs, SEEDS[:8], max_episode_steps=4)
    seeds = []
    reset = envs.reset
    envs.reset = lambda seed=None, options=None: (seeds.append(seed), reset(seed=seed, options=options))[1]
    played = episodes.play(first_actions())
    assert played.lengths.tolist() == [4] * 8
    assert seeds[-4:-1] == [SEEDS[0], SEEDS[3], SEEDS[6]]  # and once more when all has been played


def test_step_member_that_waits_for_a_reset_takes_no_valid_steps_and_does_legal_actions():
    kwargs = {"honours_mask": False, "length": 7, "limits": (None, 3)}
    envs = seeded(MaskedChainVector, 2, "native", max_episode_steps=5, mask_key="legal", **kwargs)
    observation = envs.reset()
    steps = []
    for _ in range(7):
        assert (envs.action_mask == legal_actions(observation)).all()
        steps.append(envs.step(envs.action_mask.argmax(axis=1)))
        observation = steps[-1].observation
    assert [step.done.tolist() for step in steps] == [[t == 5, t in (3, 7)] for t in range(1, 8)]
    assert [step.valid.tolist() for step in steps] == [[t <= 5, t != 4] for t in range(1, 8)]
    assert not any(step.terminated.any() for step in steps)
    # the first member comes to its own end together with the second, and both are reset at the next step
    assert envs.step(zeros(2)).valid.tolist() == [False, False]


@pytest.mark.parametrize("stage", ["val", "test", "predict"])
def test_data_module_max_eval_steps_limits_episodes_that_never_end(stage):
    kwargs = {"honours_mask": False, "length": 10**9, **NO_LIMIT}
    data = ExperienceDataModule(
        ChainVector, vectorization="native", env_kwargs=kwargs, eval_episodes=5, eval_num_envs=2, max_eval_steps=6
    )
    with closing(data):
        for episodes in getattr(data, f"{stage}_dataloader")():
            assert set(episodes.play(first_actions()).lengths.tolist()) == {6}
