import ale_py  # noqa: F401  # registers its games
import gymnasium as gym
import pytest

from lightning_dqn.experience.atari_scores import ATARI_57, ReferenceScores, reference_scores


def test_there_are_57_games_and_all_of_them_can_be_played():
    assert len(ATARI_57) == 57
    assert all(gym.spec(f"ALE/{name}-v5").kwargs["game"] for name in ATARI_57)


@pytest.mark.parametrize(
    ("game", "random", "human"),
    [("Breakout", 1.7, 30.5), ("Pong", -20.7, 14.6), ("MontezumaRevenge", 0.0, 4753.3), ("UpNDown", 533.4, 11693.2)],
)
def test_the_scores_are_the_published_ones(game, random, human):
    assert reference_scores(f"ALE/{game}-v5") == (random, human)


def test_in_every_game_a_human_beats_chance():
    assert all(scores.human > scores.random for scores in ATARI_57.values())


def test_chance_is_0_and_a_human_1():
    scores = ReferenceScores(random=-20.0, human=20.0)
    assert [scores.normalize(score) for score in (-20, 0, 20, 60)] == [0, 0.5, 1, 2]


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "ale_py:ALE/Pong-v5", "ALE/Pong-v6"])
def test_a_game_is_known_by_its_name(env_id):
    assert reference_scores(env_id) == ATARI_57["Pong"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MinAtar/Breakout-v1", "Pong-v5", "ALE/AirRaid-v5", "ALE/Pong", ""])
def test_of_others_nothing_is_known(env_id):
    assert reference_scores(env_id) is None
