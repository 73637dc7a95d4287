"""MinAtar, against the package's own environment."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from minatar import Environment

from lightning_dqn import ExperienceDataModule
from lightning_dqn.experience.envs import make_env, make_envs, resolve_env
from tests.environments import seeded

GAMES = {
    "Asterix": ("asterix", 4, 5),
    "Breakout": ("breakout", 4, 3),
    "Freeway": ("freeway", 7, 3),
    "Seaquest": ("seaquest", 10, 6),
    "SpaceInvaders": ("space_invaders", 6, 4),
}


@pytest.mark.parametrize("game", GAMES)
def test_planes_rewards_and_ends_are_those_of_minatar(game):
    name, channels, _ = GAMES[game]
    env, truth, rng = make_env(f"MinAtar/{game}-v0", {}), Environment(name), np.random.default_rng(0)
    assert env.observation_space == gym.spaces.Box(0, 1, (channels, 10, 10), np.bool_)
    episodes, score, wanted = 0, 0, 2 if game == "Freeway" else 20
    for seed in range(wanted):
        truth.seed(seed)
        truth.last_action = 0  # MinAtar itself carries it over from the episode before
        truth.reset()
        observation, _ = env.reset(seed=seed)
        for _ in range(3000):
            assert observation.dtype == np.bool_
            assert (observation == np.moveaxis(truth.state(), -1, 0)).all()
            action = int(rng.integers(6))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (reward, terminated, truncated) == (*truth.act(action), False)
            score += reward
            if terminated:
                episodes += 1
                break
    assert episodes == wanted
    assert score > 0 or game == "Freeway"


@pytest.mark.parametrize("game", GAMES)
def test_the_minimal_actions_are_those_of_the_game(game):
    name, _, num_actions = GAMES[game]
    env = make_env(f"MinAtar/{game}-v1", {"sticky_action_prob": 0.0})
    everything = make_env(f"MinAtar/{game}-v0", {"sticky_action_prob": 0.0})
    assert (env.action_space.n, everything.action_space.n) == (num_actions, 6)
    minimal = Environment(name).minimal_action_set()
    rng = np.random.default_rng(0)
    env.reset(seed=3), everything.reset(seed=3)
    for _ in range(30):
        action = int(rng.integers(num_actions))
        one, other = env.step(action), everything.step(minimal[action])
        assert (one[0] == other[0]).all()
        assert one[1:] == other[1:]


@pytest.mark.parametrize("game", GAMES)
def test_an_episode_can_be_replayed_from_its_seed_and_actions_whatever_went_before(game):
    env, rng = make_env(f"MinAtar/{game}-v0", {}), np.random.default_rng(0)
    actions = rng.integers(6, size=40).tolist()

    def play(seed, before):
        env.reset(seed=99)
        for action in before:
            env.step(action)
        observations = [env.reset(seed=seed)[0]]
        return np.array(observations + [env.step(action)[0] for action in actions])

    first = play(7, [])
    assert all((play(7, [action] * 5) == first).all() for action in range(6))
    assert any((play(seed, []) != first).any() for seed in range(8, 12))


def test_without_a_seed_a_game_goes_on_in_its_own_random_numbers():
    starts = []
    for _ in range(2):
        env = make_env("MinAtar/Freeway-v1", {})
        env.reset(seed=1)
        starts.append([env.reset()[0] for _ in range(5)])
        starts[-1] += [env.step(0)[0] for _ in range(5)]
    assert (np.array(starts[0]) == np.array(starts[1])).all()
    assert len({start.tobytes() for start in starts[0]}) > 5


def test_sticky_actions_are_the_default_and_can_be_set():
    def right(**kwargs):
        env, moved = make_env("MinAtar/Asterix-v0", kwargs), 0
        for seed in range(2000):
            before, _ = env.reset(seed=seed)
            moved += int((env.step(1)[0][0] != before[0]).any())
        return moved / 2000

    # at the start of an episode what is repeated is to do nothing; the binomial's standard deviation is 0.007
    assert right() == pytest.approx(0.9, abs=0.03)
    assert right(sticky_action_prob=0.0) == 1
    assert right(sticky_action_prob=1.0) == 0


@pytest.mark.parametrize(("kwargs", "limit"), [({"max_episode_steps": 20}, 20), ({}, 10_000)])
def test_long_episodes_are_cut_off(kwargs, limit):
    env = make_env("MinAtar/Seaquest-v0", kwargs)
    for _ in range(2):
        env.reset(seed=0)
        env.unwrapped.game.env.act = lambda action: (0, False)  # nothing ever happens
        ends = [env.step(0)[2:4] for _ in range(limit)]
        assert set(ends[:-1]) == {(False, False)}
        assert ends[-1] == (False, True)


def test_games_get_harder_unless_told_not_to():
    def ramp(**kwargs):
        env = make_env("MinAtar/Asterix-v0", kwargs)
        env.reset(seed=0)
        env.unwrapped.game.env._spawn_entity = lambda: None  # nothing to run into
        for _ in range(400):
            env.step(0)
        return env.unwrapped.game.env.ramp_index

    assert ramp() > 0
    assert ramp(difficulty_ramping=False) == 0


@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_drawn_with_a_colour_for_each_kind_of_thing(game):
    env = make_env(f"MinAtar/{game}-v0", {"render_mode": "rgb_array"})
    observation, _ = env.reset(seed=0)
    for action in (1, 3, 1):
        observation = env.step(action)[0]
    picture = env.render()
    assert picture.shape == (320, 320, 3)
    assert picture.dtype == np.uint8
    cells = picture[16::32, 16::32]
    there = observation.any(axis=0)
    top = np.where(there, len(observation) - 1 - observation[::-1].argmax(axis=0), -1)  # the last plane is on top
    colors = {kind: {tuple(color) for color in cells[top == kind].tolist()} for kind in set(top.ravel().tolist())}
    assert all(len(seen) == 1 for seen in colors.values())
    assert len(set.union(*colors.values())) == len(colors) > 1
    assert make_env(f"MinAtar/{game}-v0", {}).render() is None


def test_it_is_an_environment_as_gymnasium_wants_them():
    env = make_env("MinAtar/Breakout-v1", {})
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_many_games_are_stepped_together(vectorization):
    envs = seeded("MinAtar/SpaceInvaders-v1", 2, vectorization)
    alone = make_env("MinAtar/SpaceInvaders-v1", {})
    try:
        observation = envs.reset()
        truth, _ = alone.reset(seed=101)
        assert observation.shape == (2, 6, 10, 10)
        assert (observation[1] == truth).all()
        for _ in range(10):
            assert (envs.step(np.array([0, 2])).observation[1] == alone.step(2)[0]).all()
    finally:
        envs.close()


@pytest.mark.parametrize("env_id", ["MinAtar/Pong-v1", "MinAtar/Breakout-v2", "MinAtar/Breakout", "MinAtar/"])
def test_an_unknown_game_is_refused_by_name(env_id):
    with pytest.raises(
        ValueError, match=r"^data\.env_id: .* is not MinAtar/GAME-v0 or -v1 with one of Asterix, Breakout"
    ):
        resolve_env(env_id)


def test_an_argument_that_the_game_does_not_take_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^data\.env_kwargs: .*'sticky_actions'"):
        make_env("MinAtar/Breakout-v1", {"sticky_actions": 0.1})


def test_there_is_no_native_form():
    with pytest.raises(ValueError, match=r"^data\.vectorization: .* has no native vector environment"):
        make_envs("MinAtar/Breakout-v1", 2, {}, (), "native")


def test_without_minatar_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    message = r'^data\.env_id: MinAtar/Breakout-v1 needs MinAtar: pip install "lightning-dqn\[minatar\]"$'
    with pytest.raises(ValueError, match=message):
        ExperienceDataModule("MinAtar/Breakout-v1")
