"""Numbers that change as training goes on."""

import numpy as np
import pytest

from lightning_dqn.experience.exploration import EpsilonGreedy
from lightning_dqn.schedules import EpisodeDecay, ExponentialSchedule, LinearSchedule, Until


@pytest.mark.parametrize(
    ("env_steps", "value"), [(0, 1.0), (1, 0.999), (250, 0.75), (500, 0.5), (999, 0.001), (1000, 0.0), (10**9, 0.0)]
)
def test_a_linear_schedule_goes_straight_and_stays(env_steps, value):
    assert LinearSchedule(1.0, 0.0, 1000)(env_steps, episodes=0) == pytest.approx(value)


def test_a_linear_schedule_may_rise():
    schedule = LinearSchedule(0.4, 1.0, 100)
    assert [schedule(steps, 0) for steps in (0, 50, 100, 200)] == pytest.approx([0.4, 0.7, 1.0, 1.0])


@pytest.mark.parametrize(
    ("env_steps", "value"), [(0, 1.0), (100, 0.1 + 0.9 / np.e), (200, 0.1 + 0.9 / np.e**2), (10**9, 0.1)]
)
def test_an_exponential_schedule_comes_closer_by_e_in_its_decay_steps(env_steps, value):
    assert ExponentialSchedule(1.0, 0.1, 100)(env_steps, episodes=0) == pytest.approx(value)


@pytest.mark.parametrize(("episodes", "value"), [(0, 0.8), (1, 0.4), (2, 0.2), (3, 0.15), (10**6, 0.15)])
def test_a_decay_per_episode_counts_episodes_only(episodes, value):
    schedule = EpisodeDecay(0.8, 0.15, 0.5)
    assert [schedule(steps, episodes) for steps in (0, 10**6)] == pytest.approx([value, value])


def test_a_schedule_counts_until_its_time_is_over():
    schedule = Until(LinearSchedule(1.0, 0.5, 10), steps=20, after=0.1)
    assert [schedule(steps, 0) for steps in (0, 5, 10, 19, 20, 10**9)] == pytest.approx([1, 0.75, 0.5, 0.5, 0.1, 0.1])
    assert (schedule.start, schedule.end) == (1.0, 0.1)
    assert Until(EpisodeDecay(0.8, 0.0, 0.5), steps=20)(19, episodes=2) == pytest.approx(0.2)
    assert Until(EpisodeDecay(0.8, 0.0, 0.5), steps=20)(20, episodes=2) == 0


@pytest.mark.parametrize("steps", [0, -5])
def test_a_time_of_no_steps_is_refused(steps):
    with pytest.raises(ValueError, match=r"^schedule\.steps must be at least 1"):
        Until(LinearSchedule(), steps)


@pytest.mark.parametrize("schedule", [Until(LinearSchedule(), 10, after=1.5), Until(LinearSchedule(start=-0.1), 10)])
def test_an_explorer_sees_through_to_both_ends(schedule):
    with pytest.raises(ValueError, match=r"^collect\.explorer\.epsilon\.(start|end) must be in \[0, 1\]"):
        EpsilonGreedy(schedule)


@pytest.mark.parametrize("schedule", [LinearSchedule, ExponentialSchedule])
@pytest.mark.parametrize("decay_steps", [0, -5])
def test_a_decay_in_no_steps_is_refused(schedule, decay_steps):
    with pytest.raises(ValueError, match=r"decay_steps must be at least 1"):
        schedule(decay_steps=decay_steps)


@pytest.mark.parametrize("factor", [0, -0.5, 1.01])
def test_a_factor_outside_0_to_1_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor must be in \(0, 1\]"):
        EpisodeDecay(factor=factor)


def test_an_exponential_schedule_may_rise():
    schedule = ExponentialSchedule(0.0, 1.0, 10)
    assert [schedule(steps, 0) for steps in (0, 10, 10**6)] == pytest.approx([0.0, 1 - 1 / np.e, 1.0])


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), ExponentialSchedule(), EpisodeDecay(), Until(EpisodeDecay(), 9)]
)
def test_a_schedule_cannot_be_changed_on_its_way(schedule):
    with pytest.raises(AttributeError):
        schedule.steps = schedule.end = 0.5
