import numpy as np
import pytest

from lightning_dqn import (
    Boltzmann,
    EpisodeDecay,
    EpsilonGreedy,
    EpsilonLadder,
    ExperienceCollector,
    ExperienceDataModule,
    Explorer,
    EZGreedy,
    Greedy,
    LinearSchedule,
    Until,
)
from lightning_dqn.experience.exploration import uniform_actions
from tests.environments import Chain


def rng(seed=0):
    return np.random.default_rng(seed)


def constant(value):
    return LinearSchedule(value, value, 1)


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
    assert EZGreedy(LinearSchedule(1.0, 0.0, 100)).schedules(50, 0) == {"epsilon": 0.5}
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
@pytest.mark.parametrize("explorer", [EpsilonGreedy, EZGreedy])
def test_an_epsilon_outside_0_to_1_is_refused(explorer, start, end, name):
    with pytest.raises(ValueError, match=rf"collect\.explorer\.epsilon\.{name} must be in \[0, 1\]"):
        explorer(LinearSchedule(start, end))


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [(0, 1, "start"), (-1, 1, "start"), (1, 0, "end"), (np.nan, 1, "start"), (1, np.inf, "end")],
)
def test_a_temperature_that_is_not_above_0_is_refused(start, end, name):
    with pytest.raises(ValueError, match=rf"collect\.explorer\.temperature\.{name} must be above 0"):
        Boltzmann(LinearSchedule(start, end))


def test_a_temperature_above_0_stays_above_it_until_another_takes_its_place():
    with pytest.raises(ValueError, match=r"collect\.explorer\.temperature\.schedule\.end must be above 0 .* got -1"):
        Boltzmann(Until(LinearSchedule(1, -1, 100), 100, 0.5))
    explorer = Boltzmann(Until(LinearSchedule(2.0, 1.0, 100), 100, 0.5))
    values = [explorer.schedules(env_steps, 0)["temperature"] for env_steps in (0, 50, 99, 100)]
    assert values == pytest.approx([2.0, 1.5, 1.01, 0.5])


# -- legal actions -----------------------------------------------------------------------------------------------------

EVERY_MASK = (np.arange(1, 16)[:, None] >> np.arange(4)) % 2 == 1  # of four actions, at least one is legal


def counts_of(actions):
    """How often each action was taken in each environment, from actions ``[T, N]``."""
    return (actions[..., None] == np.arange(4)).sum(axis=0)


def masked(q_values, mask):
    return np.where(mask, q_values, -np.inf).astype(np.float32)


def test_random_actions_are_legal_and_all_legal_ones_are_equally_likely():
    random = rng()
    counts = counts_of(np.array([uniform_actions(EVERY_MASK, random) for _ in range(6000)]))
    assert (counts[~EVERY_MASK] == 0).all()
    expected = (6000 / EVERY_MASK.sum(axis=1, keepdims=True)).repeat(4, axis=1)
    chi2 = ((counts - expected) ** 2 / expected)[EVERY_MASK].sum()
    assert 2 < chi2 < 40.8  # 17 degrees of freedom: within these with probability .999


def test_random_actions_of_environments_with_masks_are_independent():
    mask, random = np.tile([True, False, True, True], (6, 1)), rng()
    actions = np.array([uniform_actions(mask, random) for _ in range(5000)])
    assert actions.dtype == np.int64
    assert np.abs(np.corrcoef(actions.T)[~np.eye(6, dtype=bool)]).max() < 0.06


def test_random_actions_where_all_are_legal_are_those_drawn_without_a_mask():
    assert (uniform_actions(np.ones((50, 7), np.bool_), rng(3)) == rng(3).integers(7, size=50)).all()


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_is_uniform_over_legal_actions_or_takes_the_best_of_them(epsilon):
    q_values = np.array([4, 3, 2, 1], np.float32)
    explorer, random = EpsilonGreedy(constant(epsilon)), rng()
    actions = np.array([explorer(masked(q_values, EVERY_MASK), 0, 0, random) for _ in range(6000)])
    counts = counts_of(actions)
    expected = epsilon * EVERY_MASK / EVERY_MASK.sum(axis=1, keepdims=True)
    expected[np.arange(15), EVERY_MASK.argmax(axis=1)] += 1 - epsilon  # the first legal action is the best one
    assert (counts[expected == 0] == 0).all()
    np.testing.assert_allclose(counts / 6000, expected, atol=0.03)  # 4.6 standard deviations


@pytest.mark.parametrize(
    "explorer", [Greedy(), EpsilonGreedy(constant(0.0)), EZGreedy(constant(0.0)), Boltzmann(constant(1e-4))]
)
def test_the_greedy_action_is_the_best_legal_one_however_much_better_the_others_are(explorer):
    mask = rng(1).random((1000, 5)) < 0.4
    mask[np.arange(1000), rng(2).integers(5, size=1000)] = True
    q_values = rng(3).normal(size=(1000, 5)) + 1e3 * ~mask
    expected = [max(np.flatnonzero(row), key=values.__getitem__) for row, values in zip(mask, q_values, strict=True)]
    actions = explorer(masked(q_values, mask), 0, 0, rng())
    # at any temperature two values may be so close that the second best is drawn
    assert (actions != expected).sum() <= (5 if isinstance(explorer, Boltzmann) else 0)
    assert mask[np.arange(1000), actions].all()


def test_values_of_minus_a_million_are_legal():
    q_values = np.tile(np.array([-1e6, -np.inf, -2e6], np.float32), (200, 1))
    assert set(EpsilonGreedy(constant(1.0))(q_values, 0, 0, rng()).tolist()) == {0, 2}
    assert set(Greedy()(q_values, 0, 0, rng()).tolist()) == {0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_boltzmann_draws_from_the_softmax_over_legal_actions(temperature):
    values = np.array([1.0, 2.0, -1.0, 0.5])
    explorer, random = Boltzmann(constant(temperature)), rng()
    counts = counts_of(np.array([explorer(masked(values, EVERY_MASK), 0, 0, random) for _ in range(6000)]))
    weight = np.exp(values / temperature) * EVERY_MASK
    expected = 6000 * weight / weight.sum(axis=1, keepdims=True)
    assert (counts[~EVERY_MASK] == 0).all()
    chi2 = ((counts - expected) ** 2 / np.where(EVERY_MASK, expected, 1)).sum()
    assert chi2 < 40.8


@pytest.mark.parametrize("explorer", [EpsilonGreedy(constant(0.5)), EZGreedy(constant(0.5)), Greedy(), Boltzmann()])
def test_where_one_action_is_legal_it_is_taken(explorer):
    q_values = rng(1).normal(size=(100, 6)).astype(np.float32)
    only = rng(2).integers(6, size=100)
    mask = np.eye(6, dtype=bool)[only]
    assert (explorer(masked(q_values, mask), 0, 0, rng()) == only).all()


def test_a_random_action_that_sticks_is_given_up_where_it_is_illegal():
    explorer, random, stuck = EZGreedy(constant(0.3), exponent=1.1), rng(), 0
    q_values, before = np.array([4, 3, 2, 1], np.float32), np.zeros(200, np.int64)
    for _ in range(100):
        mask = EVERY_MASK[random.integers(15, size=200)]
        best = masked(q_values, mask).argmax(axis=1)
        actions = explorer(masked(q_values, mask), 0, 0, random)
        assert mask[np.arange(200), actions].all()
        stuck += ((actions == before) & (actions != best)).sum()
        before = actions
    assert stuck > 1000


# -- actions that stick ------------------------------------------------------------------------------------------------


def runs(actions):
    """Lengths of the runs of equal actions, of one environment after the other, but for the last of each."""
    lengths = []
    for column in np.asarray(actions).T:
        starts = np.flatnonzero(np.diff(column, prepend=-1))
        lengths += np.diff(starts).tolist()
    return np.array(lengths)


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.0])
def test_random_actions_stick_for_as_long_as_a_power_law_says(exponent):
    # among ten thousand actions the same is hardly ever drawn twice in a row
    explorer, random, q_values = EZGreedy(constant(1.0), exponent), rng(), np.zeros((20, 10_000), np.float32)
    lengths = runs([explorer(q_values, 0, 0, random) for _ in range(400)])
    weight = np.arange(1.0, 10**6) ** -exponent
    for n in (1, 2, 3):  # long ones may be cut off by the end
        assert (lengths == n).sum() / (lengths < 20).sum() == pytest.approx(weight[n - 1] / weight[:19].sum(), abs=0.04)


def test_greedy_steps_and_random_ones_take_turns_as_epsilon_says():
    # a duration is hardly ever more than 1 with this exponent
    explorer, random, q_values = EZGreedy(constant(0.25), 20.0), rng(), np.zeros((100, 1000), np.float32)
    q_values[:, 7] = 1
    actions = np.array([explorer(q_values, 0, 0, random) for _ in range(200)])
    assert actions.dtype == np.int64
    assert (actions != 7).mean() == pytest.approx(0.25, abs=0.015)
    assert np.abs(np.corrcoef((actions != 7).T)[~np.eye(100, dtype=bool)]).mean() < 0.08


def test_each_environment_sticks_to_an_action_of_its_own():
    explorer, random = EZGreedy(constant(1.0), 1.01), rng()
    actions = np.array([explorer(np.zeros((50, 1000), np.float32), 0, 0, random) for _ in range(3)])
    same = (actions == actions[0]).all(axis=0)
    assert same.mean() > 0.5
    assert len(set(actions[0].tolist())) > 40


def test_what_sticks_is_remembered_and_can_be_forgotten():
    q_values = np.zeros((30, 1000), np.float32)
    one, other, random = EZGreedy(constant(0.5), 1.3), EZGreedy(constant(0.5), 1.3), rng()
    for _ in range(10):
        one(q_values, 0, 0, random)
    other.load_state_dict(one.state_dict())
    for seed in range(5):
        assert (one(q_values, 0, 0, rng(seed)) == other(q_values, 0, 0, rng(seed))).all()
    fresh = EZGreedy(constant(0.5), 1.3)
    one.load_state_dict({})
    assert (one(q_values, 0, 0, rng(9)) == fresh(q_values, 0, 0, rng(9))).all()


def test_the_number_of_environments_may_change():
    explorer = EZGreedy(constant(1.0), 1.1)
    assert explorer(np.zeros((9, 3), np.float32), 0, 0, rng()).shape == (9,)
    assert explorer(np.zeros((2, 3), np.float32), 0, 0, rng()).shape == (2,)


@pytest.mark.parametrize("exponent", [1.0, 0.5, -2.0, np.nan])
def test_durations_without_a_distribution_are_refused(exponent):
    with pytest.raises(ValueError, match=r"collect\.explorer\.exponent must be above 1"):
        EZGreedy(exponent=exponent)


# -- the moment --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("explorer", [EpsilonGreedy, EZGreedy])
def test_values_that_are_none_make_no_action_legal(explorer):
    q_values = np.tile(np.array([-np.inf, np.nan, -np.inf, np.nan], np.float32), (200, 1))
    actions = explorer(LinearSchedule(1.0, 1.0))(q_values, 0, 0, np.random.default_rng(0))
    assert set(actions.tolist()) == {1, 3}


# -- a ladder of epsilons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "count"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_epsilons_of_a_ladder_are_those_of_the_paper_however_environments_are_shared_out(num_envs, count):
    shares = [EpsilonLadder(0.4, 7.0).share(index, count).epsilons(num_envs) for index in range(count)]
    assert np.concatenate(shares).tolist() == pytest.approx([0.4 ** (1 + i / 7 * 7) for i in range(8)])


def test_one_environment_alone_has_the_largest_epsilon():
    assert EpsilonLadder(0.3).epsilons(1).tolist() == [0.3]
    assert EpsilonLadder(0.3).schedules(5, 6) == {"epsilon": 0.3}


def test_every_environment_of_a_ladder_explores_as_its_rung_says():
    q_values = np.tile([0.0] * 999 + [1.0], (4, 1)).astype(np.float32)
    explorer, random = EpsilonLadder(0.5, 2.0), rng()
    explores = np.array([explorer(q_values, 0, 0, random) != 999 for _ in range(10_000)])
    assert explores.mean(axis=0) == pytest.approx([0.5 ** (1 + 2 * i / 3) for i in range(4)], abs=0.02)


def test_a_ladder_takes_legal_actions_only():
    q_values = np.tile(np.array([-np.inf, 1.0, -np.inf, 2.0], np.float32), (200, 1))
    assert set(EpsilonLadder(0.9, 0.0)(q_values, 0, 0, rng()).tolist()) == {1, 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"epsilon": 0.0}, r"^collect\.explorer\.epsilon must be in \(0, 1\), got 0"),
        ({"epsilon": 1.0}, r"^collect\.explorer\.epsilon must be in \(0, 1\), got 1"),
        ({"alpha": -1.0}, r"^collect\.explorer\.alpha must be at least 0 and finite, got -1"),
        ({"alpha": np.inf}, r"^collect\.explorer\.alpha must be at least 0 and finite, got inf"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        EpsilonLadder(**arguments)


def test_a_share_of_an_explorer_is_a_copy_of_it():
    explorer = EZGreedy(constant(1.0))
    shares = [explorer.share(index, 2) for index in range(2)]
    for share in shares:
        share(np.zeros((3, 4), np.float32), 0, 0, rng())
    assert explorer.state_dict() == {"action": [], "remaining": []}
    assert shares[0].state_dict() == shares[1].state_dict() != explorer.state_dict()
