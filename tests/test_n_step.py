import numpy as np
import pytest

from lightning_dqn.experience.n_step import NStepAccumulator


def rng(seed=0):
    return np.random.default_rng(seed)


def stream(num_envs, steps, seed, num_actions=0):
    """Random experience in which an environment may only reset itself right after an episode has ended.

    Masks come last, if there are any.
    """
    random = rng(seed)
    ended = np.zeros(num_envs, bool)
    for _ in range(steps):
        valid = ~(ended & (random.random(num_envs) < 0.5))
        terminated = valid & (random.random(num_envs) < 0.2)
        truncated = valid & (random.random(num_envs) < 0.15)
        ended = terminated | truncated
        # whatever comes with a step that was not taken must not matter
        reward = np.where(valid, random.normal(size=num_envs), np.nan)
        observation, following = random.normal(size=(2, num_envs, 3)).astype(np.float32)
        masks = random.random((2, num_envs, num_actions)) < 0.5 if num_actions else ()
        yield observation, random.integers(5, size=num_envs), reward, terminated, truncated, following, valid, *masks


def slow_windows(experience, n_step, gamma):
    """What comes out at each step, one environment and one window at a time."""
    windows = None
    for moment, step in enumerate(experience):
        observation, action, reward, terminated, truncated, following, valid, *masks = step
        mask, next_mask = masks or (np.empty((len(action), 0)), np.empty((len(action), 0)))
        windows = [[] for _ in action] if windows is None else windows
        closed = []
        for env in range(len(action)):
            if not valid[env]:
                continue
            windows[env].append([moment, env, observation[env], action[env], 0.0, 0, mask[env]])
            for window in windows[env]:
                window[4] += gamma ** window[5] * reward[env]
                window[5] += 1
            over = terminated[env] or truncated[env]
            count = len(windows[env]) if over else int(windows[env][0][5] == n_step)
            for moment_, env_, first, chosen, score, length, allowed in windows[env][:count]:
                discount = 0.0 if terminated[env] else gamma**length
                ends = following[env], allowed, next_mask[env]
                closed.append((moment_, env_, first, chosen, score, discount, *ends))
            del windows[env][:count]
        yield sorted(closed, key=lambda row: row[:2])


@pytest.mark.parametrize("num_actions", [0, 4])
@pytest.mark.parametrize("num_envs", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n_step", [1, 2, 3, 4, 5, 6])
def test_windows_are_those_of_one_environment_at_a_time(n_step, num_envs, num_actions):
    accumulator = NStepAccumulator(num_envs, n_step, 0.9)
    experience = list(stream(num_envs, 200, 10 * n_step + num_envs, num_actions))
    for step, expected in zip(experience, slow_windows(experience, n_step, 0.9), strict=True):
        got = accumulator.add(*step)
        assert len(got.action) == len(expected)
        assert (got.action_mask is None) == (got.next_action_mask is None) == (num_actions == 0)
        for i, (_, _, observation, action, reward, discount, following, mask, next_mask) in enumerate(expected):
            assert (got.observation[i] == observation).all()
            assert got.action[i] == action
            assert got.reward[i] == pytest.approx(reward, abs=1e-12)
            assert got.discount[i] == pytest.approx(discount, abs=1e-15)
            assert (got.next_observation[i] == following).all()
            if num_actions:
                assert (got.action_mask[i] == mask).all()
                assert (got.next_action_mask[i] == next_mask).all()


def one_env(accumulator, t, reward, terminated=False, truncated=False, valid=True):
    """Goes from observation ``t`` to ``t + 1`` with action ``t``."""
    step = accumulator.add(
        np.array([[t]], np.float32),
        np.array([t]),
        np.array([reward]),
        np.array([terminated]),
        np.array([truncated]),
        np.array([[t + 1]], np.float32),
        np.array([valid]),
    )
    columns = (step.observation[:, 0], step.action, step.reward, step.discount, step.next_observation[:, 0])
    return [tuple(map(float, row)) for row in zip(*columns, strict=True)]


def test_rewards_1_2_4_8_and_a_terminal_state_with_windows_of_three():
    accumulator = NStepAccumulator(1, 3, 0.5)
    assert one_env(accumulator, 0, 1) == []
    assert one_env(accumulator, 1, 2) == []
    assert one_env(accumulator, 2, 4) == [(0, 0, 3, 0.125, 3)]
    assert one_env(accumulator, 3, 8, terminated=True) == [(1, 1, 6, 0, 4), (2, 2, 8, 0, 4), (3, 3, 8, 0, 4)]


def test_rewards_1_2_4_8_and_a_time_limit_with_windows_of_three():
    accumulator = NStepAccumulator(1, 3, 0.5)
    for t, reward in enumerate([1, 2, 4]):
        rows = one_env(accumulator, t, reward)
    assert rows == [(0, 0, 3, 0.125, 3)]
    expected = [(1, 1, 6, 0.125, 4), (2, 2, 8, 0.25, 4), (3, 3, 8, 0.5, 4)]
    assert one_env(accumulator, 3, 8, truncated=True) == expected


def test_an_episode_shorter_than_the_window_hands_out_all_its_steps():
    accumulator = NStepAccumulator(1, 5, 0.5)
    assert one_env(accumulator, 0, 1) == []
    assert one_env(accumulator, 1, 2, truncated=True) == [(0, 0, 2, 0.25, 2), (1, 1, 2, 0.5, 2)]
    # and the next episode starts afresh
    assert one_env(accumulator, 10, 4, terminated=True) == [(10, 10, 4, 0, 11)]


def test_a_step_not_taken_after_an_end_starts_nothing():
    accumulator = NStepAccumulator(1, 2, 0.5)
    one_env(accumulator, 0, 1, terminated=True)
    assert one_env(accumulator, 99, 99, valid=False) == []
    assert one_env(accumulator, 0, 1) == []
    assert one_env(accumulator, 1, 2) == [(0, 0, 2, 0.25, 2)]


def test_a_step_not_taken_in_the_middle_of_an_episode_changes_nothing():
    accumulator = NStepAccumulator(1, 3, 0.5)
    one_env(accumulator, 0, 1)
    one_env(accumulator, 1, 2)
    assert one_env(accumulator, 99, 99, valid=False) == []
    assert one_env(accumulator, 2, 4) == [(0, 0, 3, 0.125, 3)]


def test_the_window_that_started_first_comes_first_whatever_its_environment():
    accumulator = NStepAccumulator(2, 2, 0.5)
    no = np.array([False, False])
    step = {"terminated": no, "truncated": no, "valid": ~no}
    observation = np.zeros((2, 1), np.float32)
    accumulator.add(observation, np.array([0, 1]), np.zeros(2), next_observation=observation, **step)
    got = accumulator.add(
        observation, np.array([2, 3]), np.zeros(2), next_observation=observation, **(step | {"truncated": ~no})
    )
    assert got.action.tolist() == [0, 1, 2, 3]


def test_open_windows_are_forgotten_when_cleared():
    accumulator = NStepAccumulator(1, 2, 0.5)
    one_env(accumulator, 0, 1)
    accumulator.clear()
    assert one_env(accumulator, 5, 1) == []
    assert one_env(accumulator, 6, 1) == [(5, 5, 1.5, 0.25, 7)]


@pytest.mark.parametrize("n_step", [1, 2, 3])
def test_small_rewards_beside_large_ones_are_summed_in_float64(n_step):
    accumulator = NStepAccumulator(1, n_step, 1.0)
    rewards = [2.0**30, 1.0, 1.0][:n_step]
    for t, reward in enumerate(rewards):
        rows = one_env(accumulator, t, reward)
    assert rows[0][2] == sum(rewards)
