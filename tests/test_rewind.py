import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from lightning_dqn.experience.rewind import EpisodeRecord, no_episodes
from tests.environments import Chain, ChainVector, MaskedChain, seeded


class Walk(gym.Env):
    """A random walk whose episodes last from one to thirty steps; with ``forgetful`` it draws from nowhere."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, forgetful=False):
        self.forgetful = forgetful

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 31))
        self.place = 0.0
        return self.look(), {}

    def step(self, action):
        rng = np.random.default_rng() if self.forgetful else self.np_random
        self.place += float(rng.normal()) * (action - 4)
        self.left -= 1
        return self.look(), self.place, self.left == 0, False, {}

    def look(self):
        return np.array([self.place, self.left], np.float32)


def walk(envs, record, observation, steps, rng, masked=False):
    """Steps with random legal actions; returns all that was seen."""
    seen = []
    for _ in range(steps):
        legal = envs.action_mask if masked else np.ones((envs.num_envs, envs.num_actions))
        action = (rng.random(legal.shape) * legal).argmax(axis=1)
        record.note(envs.episode_length, action)
        step = envs.step(action)
        observation = step.observation
        seen.append((observation, step.reward, step.done, step.episode_return, step.episode_length))
    return observation, seen


def make(env_id, num_envs, **kwargs):
    envs = seeded(env_id, num_envs, seeds=range(100, 10_000), **kwargs)
    return envs, EpisodeRecord(num_envs, envs.num_actions)


CASES = {
    "one": (Walk, 1, {}),
    "many": (Walk, 7, {}),
    "processes": (Walk, 3, {"vectorization": "async"}),
    "masks": (MaskedChain, 4, {"mask_key": "legal"}),
    "native": (ChainVector, 4, {"vectorization": "native"}),
    "one native": ("CartPole-v1", 1, {"vectorization": "native"}),
}


@pytest.mark.parametrize("steps", [0, 1, 5, 40, 150])
@pytest.mark.parametrize("case", CASES)
def test_episodes_played_again_go_on_as_they_would_have(case, steps):
    env_id, num_envs, kwargs = CASES[case]
    envs, record = make(env_id, num_envs, **kwargs)
    try:
        first, _ = walk(envs, record, envs.reset(), steps, np.random.default_rng(0), case == "masks")
        arrays = record.state_arrays(envs, first)
        rest = list(envs.seeds)
        envs.seeds = iter(rest)
        _, expected = walk(envs, record, first, 60, np.random.default_rng(1), case == "masks")
    finally:
        envs.close()
    envs, record = make(env_id, num_envs, **kwargs)
    try:
        envs.seeds = iter(rest)  # which playing again leaves alone
        observation, there = record.play_again(envs, arrays)
        assert there.all()
        assert (observation == first).all()
        # and can be done once more from there
        again = record.state_arrays(envs, observation)
        assert all((again[name] == arrays[name]).all() for name in arrays)
        _, seen = walk(envs, record, observation, 60, np.random.default_rng(1), case == "masks")
    finally:
        envs.close()
    for one, other in zip(expected, seen, strict=True):
        for left, right in zip(one, other, strict=True):
            assert (left == right).all()


def test_an_episode_that_leads_elsewhere_is_noticed_and_a_new_one_started():
    envs, record = make(Walk, 4)
    observation, _ = walk(envs, record, envs.reset(), 10, np.random.default_rng(0))
    arrays = record.state_arrays(envs, observation)
    arrays["observation_hash"][2] ^= 1
    envs, record = make(Walk, 4)
    envs.seeds = iter([77])
    again, there = record.play_again(envs, arrays)
    assert there.tolist() == [True, True, False, True]
    assert (again[there] == observation[there]).all()
    assert (envs.episode_seed[2], envs.episode_length[2], envs.episode_return[2]) == (77, 0, 0)
    walk(envs, record, again, 1, np.random.default_rng(0))


def test_what_does_not_hang_on_its_seed_is_never_taken_for_restored():
    envs, record = make(Walk, 3, forgetful=True)
    observation, _ = walk(envs, record, envs.reset(), 10, np.random.default_rng(0))
    arrays = record.state_arrays(envs, observation)
    arrays["episode_length"] = np.maximum(arrays["episode_length"], 1)
    _, there = make(Walk, 3, forgetful=True)[1].play_again(envs, record.state_arrays(envs, observation))
    moved = observation[:, 0] != 0
    assert not there[moved].any()


@pytest.mark.parametrize(
    ("env_id", "num_envs", "kwargs"),
    [
        (Chain, 3, {}),  # of another number
        (ChainVector, 4, {"vectorization": "native", "honours_mask": False}),  # cannot be reset one by one
    ],
)
def test_environments_that_cannot_be_brought_back_start_anew(env_id, num_envs, kwargs):
    envs, record = make(Chain, 4)
    observation, _ = walk(envs, record, envs.reset(), 10, np.random.default_rng(0))
    arrays = record.state_arrays(envs, observation)
    envs, record = make(env_id, num_envs, **kwargs)
    again, there = record.play_again(envs, arrays)
    assert there.tolist() == [False] * num_envs
    assert (again[:, 0] == 0).all()


def test_episodes_without_a_seed_of_their_own_start_anew():
    envs, record = make(Walk, 5)
    envs.seed_every_episode = False
    observation, _ = walk(envs, record, envs.reset(), 20, np.random.default_rng(0))
    arrays = record.state_arrays(envs, observation)
    own = envs.episode_seed >= 0
    assert 0 < own.sum() < 5
    envs, record = make(Walk, 5)
    envs.seed_every_episode = False
    again, there = record.play_again(envs, arrays)
    assert (there == own).all()
    assert (again[there] == observation[there]).all()


def test_actions_take_the_room_they_need():
    assert EpisodeRecord(2, 256)._action.dtype == np.uint8
    assert EpisodeRecord(2, 257)._action.dtype == np.uint16


def test_where_there_is_no_episode_to_play_again_all_begin_anew():
    envs = seeded(Chain, 3)
    observation, there = EpisodeRecord(3, 2).play_again(envs, no_episodes(3))
    assert not there.any()
    assert observation[:, 0].tolist() == [0, 0, 0]
    assert envs.episode_seed.tolist() == [100, 101, 102]
    record = EpisodeRecord(3, 2).state_arrays(envs, observation)
    assert {name: array.dtype for name, array in record.items()} == {n: a.dtype for n, a in no_episodes(3).items()}
