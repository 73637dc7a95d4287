import numpy as np
import pytest

from lightning_dqn import EvaluationEpisodes
from lightning_dqn.experience.envs import make_envs
from tests.environments import (
    CHAIN_LENGTH,
    MASKED_ACTIONS,
    NO_LIMIT,
    Chain,
    ChainVector,
    MaskedChain,
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


def test_a_native_environment_that_resets_by_itself_is_not_cut_off():
    envs = make_envs(ChainVector, 2, {"honours_mask": False, **NO_LIMIT}, (), "native")
    played = EvaluationEpisodes(lambda: envs, SEEDS[:6], max_episode_steps=5).play(
        lambda observation, action_mask: zeros(2)
    )
    assert played.lengths.tolist() == [CHAIN_LENGTH] * 6
