"""Numbers that change as training goes on."""

import numpy as np
import pytest

from lightning_dqn.experience.exploration import Boltzmann, EpsilonGreedy, EZGreedy
from lightning_dqn.experience.prioritized import PrioritizedReplayBuffer
from lightning_dqn.schedules import EpisodeDecay, ExponentialSchedule, LinearSchedule, Schedule, Until


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
    assert Until(EpisodeDecay(0.8, 0.0, 0.5), steps=20)(19, episodes=2) == pytest.approx(0.2)
    assert Until(EpisodeDecay(0.8, 0.0, 0.5), steps=20)(20, episodes=2) == 0


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (LinearSchedule(decay_steps=0), r"decay_steps must be at least 1 environment step, got 0"),
        (ExponentialSchedule(decay_steps=-5), r"decay_steps must be at least 1 environment step, got -5"),
        (Until(LinearSchedule(), 0), r"steps must be at least 1 environment step, got 0"),
        (Until(LinearSchedule(decay_steps=0), 9), r"schedule\.decay_steps must be at least 1"),
        (EpisodeDecay(factor=0), r"factor must be in \(0, 1\], got 0"),
        (EpisodeDecay(factor=1.01), r"factor must be in \(0, 1\], got 1\.01"),
    ],
)
def test_what_makes_no_schedule_is_refused_by_whoever_is_given_it(schedule, said):
    with pytest.raises(ValueError, match=rf"^one\.field\.{said}"):
        schedule.check("one.field")
    for kind in (EpsilonGreedy, EZGreedy):
        with pytest.raises(ValueError, match=rf"^collect\.explorer\.epsilon\.{said}"):
            kind(schedule)
    with pytest.raises(ValueError, match=rf"^collect\.explorer\.temperature\.{said}"):
        Boltzmann(schedule)
    if not isinstance(schedule, EpisodeDecay):
        with pytest.raises(ValueError, match=rf"^data\.buffer\.beta\.{said}"):
            PrioritizedReplayBuffer(beta=schedule)


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        (Until(LinearSchedule(), 10, after=1.5), r"after must be {}, got 1\.5"),
        (Until(LinearSchedule(-0.1, 0.5), 10, after=0.5), r"schedule\.start must be {}, got -0\.1"),
        (Until(LinearSchedule(1.0, -1.0, 100), 100, after=0.5), r"schedule\.end must be {}, got -1\.0"),
        (Until(Until(LinearSchedule(1.0, -1.0), 9, 0.5), 99, 0.5), r"schedule\.schedule\.end must be {}, got -1\.0"),
        (ExponentialSchedule(2.0, np.inf), r"(start must be {}, got 2\.0|end must be {}, got inf)"),
    ],
)
def test_numbers_are_looked_at_wherever_a_schedule_may_come(schedule, part):
    fraction, positive = r"in \[0, 1\]", "above 0 and finite"
    for kind in (EpsilonGreedy, EZGreedy):
        with pytest.raises(ValueError, match=r"^collect\.explorer\.epsilon\." + part.replace("{}", fraction)):
            kind(schedule)
    with pytest.raises(ValueError, match=r"^data\.buffer\.beta\." + part.replace("{}", fraction)):
        PrioritizedReplayBuffer(beta=schedule)
    if schedule != Until(LinearSchedule(), 10, after=1.5):  # as a temperature it is none too large
        with pytest.raises(ValueError, match=r"^collect\.explorer\.temperature\." + part.replace("{}", positive)):
            Boltzmann(schedule)


def test_a_schedule_of_ones_own_need_not_have_two_ends():
    class Wave(Schedule):
        def __call__(self, env_steps, episodes):
            return 0.5 + 0.4 * np.sin(env_steps)

    for schedule in (Wave(), Until(Wave(), 10, 0.5)):
        assert EpsilonGreedy(schedule).schedules(0, 0) == {"epsilon": 0.5}
        assert Boltzmann(schedule).schedules(0, 0) == {"temperature": 0.5}
        assert PrioritizedReplayBuffer(beta=schedule).schedules(0) == {"beta": 0.5}


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (LinearSchedule(), False),
        (ExponentialSchedule(), False),
        (EpisodeDecay(), True),
        (Until(LinearSchedule(), 9), False),
        (Until(EpisodeDecay(), 9), True),
        (Until(Until(EpisodeDecay(), 9), 9), True),
    ],
)
def test_a_schedule_says_whether_it_counts_episodes(schedule, counts):
    assert schedule.counts_episodes is counts


def test_an_exponential_schedule_may_rise():
    schedule = ExponentialSchedule(0.0, 1.0, 10)
    assert [schedule(steps, 0) for steps in (0, 10, 10**6)] == pytest.approx([0.0, 1 - 1 / np.e, 1.0])


@pytest.mark.parametrize(
    "schedule", [LinearSchedule(), ExponentialSchedule(), EpisodeDecay(), Until(EpisodeDecay(), 9)]
)
def test_a_schedule_cannot_be_changed_on_its_way(schedule):
    with pytest.raises(AttributeError):
        schedule.steps = schedule.end = 0.5
