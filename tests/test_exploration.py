import numpy as np
import pytest

from lightning_dqn import (
    Boltzmann,
    EpisodeDecay,
    EpsilonGreedy,
    ExperienceCollector,
    ExperienceDataModule,
    Explorer,
    ExponentialSchedule,
    Greedy,
    LinearSchedule,
)
from tests.environments import Chain


def rng(seed=0):
    return np.random.default_rng(seed)


def constant(value):
    return LinearSchedule(value, value, 1)


# -- schedules ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("schedule", [LinearSchedule, ExponentialSchedule])
@pytest.mark.parametrize("decay_steps", [0, -5])
def test_a_decay_in_no_steps_is_refused(schedule, decay_steps):
    with pytest.raises(ValueError, match=r"decay_steps must be at least 1"):
        schedule(decay_steps=decay_steps)


@pytest.mark.parametrize("factor", [0, -0.5, 1.01])
def test_a_factor_outside_0_to_1_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor must be in \(0, 1\]"):
        EpisodeDecay(factor=factor)


# -- explorers ---------------------------------------------------------------------------------------------------------


def test_each_environment_draws_whether_it_explores_for_itself():
    q_values = np.tile([0.0] * 999 + [1.0], (8, 1)).astype(np.float32)
    explorer, random = EpsilonGreedy(constant(0.5)), rng()
    # among a thousand actions an exploring environment hardly ever takes the best one
    explores = np.array([explorer(q_values, 0, 0, random) != 999 for _ in range(10_000)])
    assert explores.mean() == pytest.approx(0.5, abs=0.01)
    alike = (explores.all(axis=1) | (~explores).all(axis=1)).mean()
    assert alike == pytest.approx(2 / 2**8, abs=0.004)
    correlation = np.corrcoef(explores.T)
    assert np.abs(correlation[~np.eye(8, dtype=bool)]).max() < 0.04


def test_environments_that_explore_take_different_actions():
    q_values, random = np.zeros((8, 4), np.float32), rng()
    actions = np.array([EpsilonGreedy(constant(1.0))(q_values, 0, 0, random) for _ in range(10_000)])
    same = (actions == actions[:, :1]).all(axis=1).mean()
    assert same < 0.001  # 4 ** -7 if independent
    correlation = np.corrcoef(actions.T)
    assert np.abs(correlation[~np.eye(8, dtype=bool)]).max() < 0.04


@pytest.mark.parametrize("explorer", [EpsilonGreedy(constant(0.0)), Greedy()])
def test_without_epsilon_every_action_is_the_best(explorer):
    q_values = rng(1).normal(size=(1000, 5)).astype(np.float32)
    actions = explorer(q_values, 0, 0, rng())
    assert (actions == q_values.argmax(axis=1)).all()
    assert actions.shape == (1000,)
    assert actions.dtype == np.int64


def test_with_epsilon_one_every_action_is_equally_likely():
    q_values = np.tile(np.array([100, 0, -100, 3], np.float32), (40_000, 1))
    actions = EpsilonGreedy(constant(1.0))(q_values, 0, 0, rng())
    counts = np.bincount(actions, minlength=4)
    assert actions.dtype == np.int64
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 16.3  # 3 degrees of freedom, probability .999


def test_the_best_action_may_also_be_drawn_when_exploring():
    q_values = np.tile(np.array([1, 0], np.float32), (40_000, 1))
    actions = EpsilonGreedy(constant(0.5))(q_values, 0, 0, rng())
    assert (actions == 0).mean() == pytest.approx(0.75, abs=0.01)


def test_epsilon_follows_its_schedule():
    q_values = np.tile(np.array([1] + [0] * 99, np.float32), (20_000, 1))
    explorer = EpsilonGreedy(LinearSchedule(1.0, 0.0, 100))
    for env_steps, share in [(0, 0.99), (50, 0.495), (100, 0.0)]:
        assert (explorer(q_values, env_steps, 0, rng()) != 0).mean() == pytest.approx(share, abs=0.015)
    assert explorer.schedules(50, 0) == {"epsilon": 0.5}
    assert EpsilonGreedy(EpisodeDecay(1.0, 0.0, 0.5)).schedules(10**6, 2) == {"epsilon": 0.25}
    assert Greedy().schedules(50, 0) == {"epsilon": 0.0}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_boltzmann_draws_from_the_softmax(temperature):
    values = np.array([1.0, 2.0, -1.0, 0.5], np.float32)
    explorer = Boltzmann(constant(temperature))
    actions = explorer(np.tile(values, (100_000, 1)), 0, 0, rng())
    expected = np.exp(values / temperature) / np.exp(values / temperature).sum()
    counts = np.bincount(actions, minlength=4)
    assert actions.dtype == np.int64
    assert ((counts - 100_000 * expected) ** 2 / (100_000 * expected)).sum() < 16.3


def test_boltzmann_draws_for_each_environment():
    random = rng()
    actions = np.array([Boltzmann(constant(1.0))(np.zeros((4, 2), np.float32), 0, 0, random) for _ in range(5000)])
    assert np.abs(np.corrcoef(actions.T)[~np.eye(4, dtype=bool)]).max() < 0.06


@pytest.mark.filterwarnings("error")
def test_boltzmann_keeps_its_head_with_extreme_values():
    q_values = np.array([[1e6, 0, -1e6], [-1e30, -1e30, 1e4], [3e34, -3e34, 0]], np.float32)
    random = rng()
    for _ in range(100):
        assert Boltzmann(constant(1e-3))(q_values, 0, 0, random).tolist() == [0, 2, 0]


def test_temperature_follows_its_schedule():
    assert Boltzmann(LinearSchedule(2.0, 1.0, 100)).schedules(50, 0) == {"temperature": 1.5}


@pytest.mark.parametrize(
    ("start", "end", "name"), [(-0.1, 0, "start"), (1.1, 0, "start"), (1, -0.1, "end"), (1, 2, "end")]
)
def test_an_epsilon_outside_0_to_1_is_refused(start, end, name):
    with pytest.raises(ValueError, match=rf"collect\.explorer\.epsilon\.{name} must be in \[0, 1\]"):
        EpsilonGreedy(LinearSchedule(start, end))


@pytest.mark.parametrize(("start", "end", "name"), [(0, 1, "start"), (-1, 1, "start"), (1, 0, "end")])
def test_a_temperature_that_is_not_above_0_is_refused(start, end, name):
    with pytest.raises(ValueError, match=rf"collect\.explorer\.temperature\.{name} must be above 0"):
        Boltzmann(LinearSchedule(start, end))


class Asked(Explorer):
    """Notes the moments at which it was asked."""

    def __init__(self):
        self.moments = []

    def schedules(self, env_steps, episodes):
        return {"epsilon": LinearSchedule()(env_steps, episodes)}

    def __call__(self, q_values, env_steps, episodes, rng):
        self.moments.append((env_steps, episodes))
        return q_values.argmax(axis=1)


@pytest.mark.parametrize("num_envs", [1, 4, 32])
def test_schedules_are_asked_with_the_environment_steps_taken_whatever_the_number_of_environments(
    make_trainer, make_model, num_envs
):
    data = ExperienceDataModule(
        Chain, num_envs, {"limits": (None,)}, learning_starts=64, train_frequency=32, steps_per_epoch=320, seed=0
    )
    explorer = Asked()
    make_trainer(limit_val_batches=0, callbacks=[ExperienceCollector(explorer)]).fit(make_model(data), data)
    # every episode takes 7 steps, and all environments walk in step
    assert explorer.moments == [(steps, steps // num_envs // 7 * num_envs) for steps in range(64, 64 + 320, num_envs)]
