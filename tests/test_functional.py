"""The maths, against numbers worked out by hand and against the papers' equations as plain loops."""

import math
from functools import partial

import pytest
import torch
from torch import tensor

from lightning_dqn.functional import (
    bellman_backup,
    cosine_features,
    cross_entropy,
    dueling_aggregate,
    huber_error,
    interquartile_mean,
    legal_values,
    project_categorical,
    quantile_huber_error,
    quantile_midpoints,
    soft_policy,
    squared_error,
    take_action,
)

INFINITY = float("inf")


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def per_sample(function, *batched):
    """The same function on one row after the other, stacked."""
    rows = zip(*(argument.split(1) for argument in batched), strict=True)
    return torch.cat([function(*row) for row in rows])


# take_action


def test_take_action_picks_the_entry_of_each_row():
    values = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    assert take_action(values, tensor([2, 0])).tolist() == [3.0, 4.0]


def test_take_action_does_not_pick_rows():
    # values[action] would give rows 1 and 0 here, and every value of them
    values = tensor([[1.0, 2.0], [3.0, 4.0]])

    assert take_action(values, tensor([1, 0])).tolist() == [2.0, 3.0]


def test_take_action_of_a_single_row_keeps_the_batch_axis():
    assert take_action(tensor([[7.0, 8.0]]), tensor([1])).tolist() == [8.0]


def test_take_action_keeps_trailing_axes():
    values = torch.arange(12).reshape(2, 3, 2)  # row 0: [0 1] [2 3] [4 5], row 1: [6 7] [8 9] [10 11]

    assert take_action(values, tensor([2, 0])).tolist() == [[4, 5], [6, 7]]


@pytest.mark.parametrize("trailing", [(), (1,), (5,), (2, 3)])
def test_take_action_of_a_batch_is_that_of_its_samples(trailing):
    values, action = doubles(7, 4, *trailing), tensor([0, 3, 1, 2, 2, 0, 3])

    taken = take_action(values, action)

    assert taken.shape == (7, *trailing)
    assert torch.equal(taken, per_sample(take_action, values, action))
    assert torch.equal(taken, torch.stack([values[b, action[b]] for b in range(7)]))


def test_the_gradient_of_take_action_reaches_only_the_chosen_entries():
    values = torch.zeros(2, 3, requires_grad=True)

    take_action(values, tensor([1, 2])).sum().backward()

    assert values.grad.tolist() == [[0, 1, 0], [0, 0, 1]]


# bellman_backup


def test_bellman_backup_is_reward_plus_discounted_value():
    # 1 + 0.5 * 10 = 6;  2 + 0 * 20 = 2 (terminal);  -1 + 0.25 * -8 = -3
    backed_up = bellman_backup(tensor([10.0, 20.0, -8.0]), tensor([1.0, 2.0, -1.0]), tensor([0.5, 0.0, 0.25]))

    assert backed_up.tolist() == [6.0, 2.0, -3.0]


def test_bellman_backup_acts_on_every_number_of_a_row():
    # row 0: 1 + 0.5 * [2, 4] = [2, 3];  row 1: 3 + 0 * [8, 9] = [3, 3]
    backed_up = bellman_backup(tensor([[2.0, 4.0], [8.0, 9.0]]), tensor([1.0, 3.0]), tensor([0.5, 0.0]))

    assert backed_up.tolist() == [[2.0, 3.0], [3.0, 3.0]]


def test_bellman_backup_of_as_many_numbers_as_rows_does_not_mix_them_up():
    # square, so that a reward broadcast along the wrong axis would not be noticed by its shape
    backed_up = bellman_backup(torch.zeros(2, 2), tensor([1.0, 2.0]), torch.ones(2))

    assert backed_up.tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 6), (6, 3)])
def test_bellman_backup_of_a_batch_is_that_of_its_samples(shape):
    value, reward, discount = doubles(*shape), doubles(6, seed=1), doubles(6, seed=2)

    backed_up = bellman_backup(value, reward, discount)

    assert backed_up.shape == shape
    assert torch.equal(backed_up, per_sample(bellman_backup, value, reward, discount))


# legal_values


def test_values_of_illegal_actions_are_minus_infinity():
    values = tensor([[1.0, 5.0, 3.0], [-2.0, -1.0, -3.0]])
    mask = tensor([[True, False, True], [True, False, False]])

    assert legal_values(values, mask).tolist() == [[1.0, -INFINITY, 3.0], [-2.0, -INFINITY, -INFINITY]]
    assert values.tolist() == [[1.0, 5.0, 3.0], [-2.0, -1.0, -3.0]]


def test_without_a_mask_every_action_is_legal():
    values = tensor([[1.0, 5.0], [-2.0, -1.0]])

    assert torch.equal(legal_values(values, None), values)
    assert torch.equal(legal_values(values, torch.ones(2, 2, dtype=torch.bool)), values)


# soft_policy


@pytest.mark.parametrize(
    ("temperature", "policy"),
    [
        (1.0, [1 / 4, 3 / 4]),  # exp(0) : exp(log 3)
        (0.5, [1 / 10, 9 / 10]),  # exp(0) : exp(2 log 3)
        (2.0, [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]),
    ],
)
@pytest.mark.parametrize("shift", [0.0, -7.0, 50.0])
def test_the_soft_policy_is_a_softmax_of_values_over_the_temperature(temperature, policy, shift):
    # adding the same to all values changes nothing
    values = tensor([[0.0, math.log(3)]], dtype=torch.float64) + shift

    pi, log_policy = soft_policy(values, temperature)

    assert pi[0].tolist() == pytest.approx(policy, rel=1e-12)
    assert log_policy[0].tolist() == pytest.approx([temperature * math.log(p) for p in policy], rel=1e-12)


def test_the_soft_policy_equals_the_definition_written_as_a_loop():
    values, temperature = doubles(6, 4), 0.7

    pi, log_policy = soft_policy(values, temperature)

    for b in range(6):
        weights = [math.exp(q / temperature) for q in values[b].tolist()]
        for a in range(4):
            expected = weights[a] / sum(weights)
            assert pi[b, a].item() == pytest.approx(expected, rel=1e-12)
            assert log_policy[b, a].item() == pytest.approx(temperature * math.log(expected), rel=1e-12)


def test_neither_large_values_nor_a_low_temperature_overflow():
    # exp(1e4 / 0.03) is far beyond float32, and so is its inverse: the policy underflows, its logarithm must not
    pi, log_policy = soft_policy(tensor([[1e4, 0.0, -1e4], [1e4, 1e4, 0.0], [-1e4, 0.0, 0.0]]), 0.03)

    assert pi.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    log_half = 0.03 * math.log(0.5)
    expected = [[0.0, -1e4, -2e4], [log_half, log_half, -1e4 + log_half], [-1e4 + log_half, log_half, log_half]]
    torch.testing.assert_close(log_policy, tensor(expected))


def test_small_differences_between_large_values_count():
    # divided by the temperature before their maximum is taken off, both would lose the digits in which they differ
    values = tensor([[8192.0, 8192.0078125]])

    pi, log_policy = soft_policy(values, 0.03)

    odds = math.exp(0.0078125 / 0.03)
    assert pi[0].tolist() == pytest.approx([1 / (1 + odds), odds / (1 + odds)], rel=1e-5)
    assert log_policy[0, 1].item() == pytest.approx(0.03 * math.log(odds / (1 + odds)), rel=1e-5)


def test_the_logarithm_is_not_that_of_a_rounded_probability():
    # exp(-3 / 0.03) = 3.7e-44 has lost most of its digits in float32
    _, log_policy = soft_policy(tensor([[3.0, 0.0]]), 0.03)

    assert log_policy[0, 1].item() == pytest.approx(-3.0, rel=1e-6)


def test_the_soft_policy_never_takes_an_illegal_action():
    # among the legal values 0 and log 3 it is as if the third were not there
    values = tensor([[0.0, -INFINITY, math.log(3)], [-INFINITY, -INFINITY, 9.0]])

    pi, log_policy = soft_policy(values, 1.0)

    torch.testing.assert_close(pi, tensor([[0.25, 0.0, 0.75], [0.0, 0.0, 1.0]]))
    torch.testing.assert_close(
        log_policy, tensor([[math.log(0.25), -INFINITY, math.log(0.75)], [-INFINITY, -INFINITY, 0.0]])
    )


def test_the_soft_policy_of_a_batch_is_that_of_its_samples():
    values = doubles(6, 4)

    for whole, rows in zip(
        soft_policy(values, 0.1), zip(*(soft_policy(row, 0.1) for row in values.split(1)), strict=True), strict=True
    ):
        assert torch.equal(whole, torch.cat(rows))


# project_categorical


def projected_by_hand(probabilities, atoms, support):
    """Shares out one atom after the other, with the floor and the ceiling of its place."""
    low, high, last = support[0], support[-1], len(support) - 1
    projected = [0.0] * len(support)
    for probability, atom in zip(probabilities, atoms, strict=True):
        place = min((min(max(atom, low), high) - low) / ((high - low) / last), last)
        below, above = math.floor(place), math.ceil(place)
        if below == above:
            projected[below] += probability
        else:
            projected[below] += probability * (above - place)
            projected[above] += probability * (place - below)
    return projected


def assert_projected_by_hand(projected, probabilities, atoms, support, tolerance):
    for b in range(len(projected)):
        expected = projected_by_hand(probabilities[b].tolist(), atoms[b].tolist(), support.tolist())
        assert projected[b].tolist() == pytest.approx(expected, abs=tolerance)


def test_an_atom_is_shared_out_between_its_neighbours_in_proportion_to_nearness():
    # support 0, 1, 2, 3.  0.25 lies a quarter of the way from 0 to 1: 0.4 * [0.75, 0.25];  2.5 halves its 0.6
    projected = project_categorical(tensor([[0.4, 0.6]]), tensor([[0.25, 2.5]]), tensor([0.0, 1.0, 2.0, 3.0]))

    torch.testing.assert_close(projected, tensor([[0.3, 0.1, 0.3, 0.3]]))


def test_an_atom_on_the_support_keeps_its_probability():
    support = tensor([0.0, 1.0, 2.0, 3.0])
    atoms = tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 2.0, 0.0]])

    projected = project_categorical(tensor([[0.125, 0.25, 0.125, 0.5]] * 2), atoms, support)

    assert projected.tolist() == [[0.125, 0.25, 0.125, 0.5], [0.5, 0.0, 0.375, 0.125]]


def test_atoms_beyond_the_support_go_to_its_edges():
    support = tensor([-1.0, 0.0, 1.0])

    projected = project_categorical(tensor([[0.25, 0.25, 0.5]]), tensor([[-100.0, 1.5, 1e30]]), support)

    assert projected.tolist() == [[0.25, 0.0, 0.75]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99, 1.0])
def test_no_probability_is_lost_or_made_whatever_the_reward(discount, dtype):
    # whole rewards and 51 atoms on [-10, 10], spaced by 0.4, whose atoms fall on the support, nearly on it, and beyond
    support = torch.linspace(-10, 10, 51, dtype=dtype)
    reward = torch.arange(-11, 12, dtype=dtype)
    probabilities = torch.softmax(doubles(23, 51), dim=1).to(dtype)
    atoms = reward[:, None] + discount * support

    projected = project_categorical(probabilities, atoms, support)

    assert projected.dtype == dtype
    assert projected.min() >= 0
    torch.testing.assert_close(projected.sum(dim=1), torch.ones(23, dtype=dtype), rtol=0, atol=1e-6)
    assert_projected_by_hand(
        projected, probabilities, atoms, support, tolerance=3e-6 if dtype == torch.float32 else 1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("reward", "atom"), [(0.0, 25), (2.0, 30), (-2.0, 20), (10.0, 50), (-10.0, 0), (100.0, 50)])
def test_the_reward_of_a_terminal_state_is_certain(reward, atom, dtype):
    support = torch.linspace(-10, 10, 51, dtype=dtype)
    probabilities = torch.full((1, 51), 1 / 51, dtype=dtype)

    projected = project_categorical(probabilities, torch.full((1, 51), reward, dtype=dtype), support)

    expected = [0.0] * 51
    expected[atom] = 1.0
    assert projected[0].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_is_kept_inside_the_support(dtype):
    support = torch.linspace(-10, 10, 51, dtype=dtype)
    reward = torch.arange(-5, 6, dtype=dtype) / 2
    probabilities = torch.softmax(doubles(11, 51), dim=1).to(dtype)
    atoms = reward[:, None] + 0.7 * support

    projected = project_categorical(probabilities, atoms, support)

    torch.testing.assert_close(projected @ support, (probabilities * atoms).sum(dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high", "count"), [(-3, 7, 4), (-10, -2, 6), (0.5, 100, 33), (-1, 1, 2), (0, 1e-3, 7)])
def test_a_projection_onto_any_support_equals_the_loop(low, high, count, dtype):
    # from 9 atoms, well beyond the support on both sides
    support = torch.linspace(low, high, count, dtype=dtype)
    probabilities = torch.softmax(doubles(5, 9), dim=1).to(dtype)
    atoms = (low + (high - low) * (0.5 + doubles(5, 9, seed=1))).to(dtype)
    atoms[0, :count] = support[:9]

    projected = project_categorical(probabilities, atoms, support)

    assert projected.shape == (5, count)
    torch.testing.assert_close(projected.sum(dim=1), torch.ones(5, dtype=dtype), rtol=0, atol=1e-6)
    assert_projected_by_hand(
        projected, probabilities, atoms, support, tolerance=1e-5 if dtype == torch.float32 else 1e-12
    )


def test_an_uneven_support_by_hand():
    # 4 atoms on [-3, 7]: -3, 1/3, 11/3, 7.  2 is half-way between the second and the third, -8 is beyond
    projected = project_categorical(tensor([[0.5, 0.5]]), tensor([[2.0, -8.0]]), torch.linspace(-3, 7, 4))

    torch.testing.assert_close(projected, tensor([[0.5, 0.25, 0.25, 0.0]]))


def test_the_projection_of_a_batch_is_that_of_its_samples():
    support = torch.linspace(-1, 1, 6, dtype=torch.float64)
    probabilities, atoms = torch.softmax(doubles(6, 6), dim=1), doubles(6, 6, seed=1)

    project = partial(project_categorical, support=support)

    assert torch.equal(project(probabilities, atoms), per_sample(project, probabilities, atoms))


# cross_entropy


def test_cross_entropy_by_hand():
    # -(1/2 log 1/4 + 1/2 log 3/4);  certain of what happens: 0;  -log 1/4
    log_probabilities = tensor([[0.25, 0.75], [1.0, 1e-30], [0.25, 0.75]]).log()

    entropy = cross_entropy(tensor([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]), log_probabilities)

    torch.testing.assert_close(entropy, tensor([-0.5 * math.log(3 / 16), 0.0, math.log(4)]))


def test_the_slope_of_the_cross_entropy_of_a_softmax_is_prediction_less_target():
    logits = doubles(4, 5).requires_grad_()
    target = torch.softmax(doubles(4, 5, seed=1), dim=1)

    cross_entropy(target, torch.log_softmax(logits, dim=1)).sum().backward()

    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), dim=1) - target)


@pytest.mark.parametrize(("target", "prediction"), [((3, 1), (3, 4)), ((4,), (3, 4)), ((3, 4), (3, 2, 4))])
def test_cross_entropy_refuses_shapes_that_would_broadcast(target, prediction):
    with pytest.raises(ValueError, match="must have one shape"):
        cross_entropy(torch.ones(target), torch.zeros(prediction))


# quantiles


@pytest.mark.parametrize(
    ("count", "taus"),
    [(1, [0.5]), (2, [0.25, 0.75]), (4, [0.125, 0.375, 0.625, 0.875]), (5, [0.1, 0.3, 0.5, 0.7, 0.9])],
)
def test_quantile_midpoints(count, taus):
    torch.testing.assert_close(quantile_midpoints(count), tensor(taus))


@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        # predictions 0 and 2 for the fractions 1/4 and 3/4, targets 1, -1 and 4: differences 1, -1, 4 and -1, -3, 2,
        # with weights 1/4, 3/4, 1/4 and 1/4, 1/4, 3/4
        # Huber: 0.5, 0.5, 3.5 and 0.5, 2.5, 1.5
        (1.0, (0.125 + 0.375 + 0.875) / 3 + (0.125 + 0.625 + 1.125) / 3),
        # quadratic to 2, then 2 (|d| - 1): 0.5, 0.5, 6 and 0.5, 4, 2
        (2.0, (0.125 + 0.375 + 1.5) / 3 + (0.125 + 1.0 + 1.5) / 3),
        # the size of the difference
        (0.0, (0.25 + 0.75 + 1.0) / 3 + (0.25 + 0.75 + 1.5) / 3),
    ],
)
def test_quantile_huber_error_by_hand(kappa, expected):
    error = quantile_huber_error(tensor([[0.0, 2.0]]), tensor([0.25, 0.75]), tensor([[1.0, -1.0, 4.0]]), kappa)

    assert error.tolist() == pytest.approx([expected])


def test_the_fraction_belongs_to_the_prediction_also_where_both_are_of_one_size():
    # differences 1, -1 and -4, -6, Huber 0.5, 0.5 and 3.5, 5.5: (0.125 + 0.375 + 0.25 * 3.5 + 0.25 * 5.5) / 2
    # with the fraction of the target instead it would be (0.125 + 0.125 + 0.75 * 3.5 + 0.25 * 5.5) / 2 = 2.125
    error = quantile_huber_error(tensor([[0.0, 5.0]]), tensor([0.25, 0.75]), tensor([[1.0, -1.0]]))

    assert error.tolist() == [1.375]


def huber_by_hand(u, kappa):
    if kappa == 0:
        return abs(u)
    return u**2 / 2 if abs(u) <= kappa else kappa * (abs(u) - kappa / 2)


def quantile_huber_by_hand(prediction, taus, target, kappa):
    total = 0.0
    for theta, tau in zip(prediction, taus, strict=True):
        for sample in target:
            u = sample - theta
            total += abs(tau - (1 if u < 0 else 0)) * huber_by_hand(u, kappa) / len(target)
    return total


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(("num_predicted", "num_targets"), [(3, 5), (5, 3), (4, 4), (1, 2)])
@pytest.mark.parametrize("taus_of_each_row", [True, False])
def test_quantile_huber_error_equals_the_loop(num_predicted, num_targets, taus_of_each_row, kappa):
    prediction, target = 2 * doubles(6, num_predicted), 2 * doubles(6, num_targets, seed=1)
    taus = torch.sigmoid(doubles(6, num_predicted, seed=2))

    error = quantile_huber_error(prediction, taus if taus_of_each_row else taus[0], target, kappa)

    assert error.shape == (6,)
    for b in range(6):
        fractions = taus[b if taus_of_each_row else 0].tolist()
        expected = quantile_huber_by_hand(prediction[b].tolist(), fractions, target[b].tolist(), kappa)
        assert error[b].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kappa", "slopes"),
    [
        # of the fraction 1/4 at differences 5, 0.5, -0.5 and -5: minus 1/4 or plus 3/4 of d, no steeper than kappa
        (1.0, [-0.25, -0.125, 0.375, 0.75]),
        (2.0, [-0.5, -0.125, 0.375, 1.5]),
        (0.0, [-0.25, -0.25, 0.75, 0.75]),
    ],
)
def test_slope_of_the_quantile_huber_error(kappa, slopes):
    prediction = torch.zeros(4, 1, requires_grad=True)

    quantile_huber_error(prediction, tensor([0.25]), tensor([[5.0], [0.5], [-0.5], [-5.0]]), kappa).sum().backward()

    assert prediction.grad.squeeze(1).tolist() == slopes


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_perfect_certain_quantiles_cost_nothing(kappa):
    prediction = torch.full((2, 3), 7.0, requires_grad=True)

    error = quantile_huber_error(prediction, quantile_midpoints(3), torch.full((2, 4), 7.0), kappa)
    error.sum().backward()

    assert error.tolist() == [0.0, 0.0]
    assert prediction.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("count", [1, 4, 7])
def test_quantile_regression_finds_the_quantiles_of_evenly_spread_data(count):
    # of the uniform distribution on [0, 1] the quantile of a fraction is the fraction: (2 i + 1) / (2 N)
    data = ((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000).expand(1, -1)
    quantiles = torch.full((1, count), 0.3, dtype=torch.float64, requires_grad=True)

    for _ in range(60):
        (slope,) = torch.autograd.grad(quantile_huber_error(quantiles, quantile_midpoints(count), data, 0.0), quantiles)
        quantiles = (quantiles - 0.5 * slope).detach().requires_grad_()

    expected = [(2 * i + 1) / (2 * count) for i in range(count)]
    assert quantiles[0].tolist() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_the_quantile_huber_error_of_a_batch_is_that_of_its_samples(kappa):
    fields = doubles(5, 5), torch.sigmoid(doubles(5, 5, seed=1)), doubles(5, 5, seed=2)
    error = partial(quantile_huber_error, kappa=kappa)

    assert torch.equal(error(*fields), per_sample(error, *fields))


# cosine_features


def test_cosine_features_by_hand():
    # cos(0), cos(pi tau), cos(2 pi tau), cos(3 pi tau)
    features = cosine_features(tensor([0.0, 0.5, 1.0, 1 / 3], dtype=torch.float64), 4)

    expected = [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, -1.0, 0.0], [1.0, -1.0, 1.0, -1.0], [1.0, 0.5, -0.5, -1.0]]
    torch.testing.assert_close(features, tensor(expected, dtype=torch.float64))


def test_cosine_features_equal_the_loop():
    taus = torch.sigmoid(doubles(3, 5))

    features = cosine_features(taus, 6)

    expected = [[[math.cos(math.pi * i * tau) for i in range(6)] for tau in row] for row in taus.tolist()]
    torch.testing.assert_close(features, tensor(expected, dtype=torch.float64))


def test_the_fraction_zero_is_all_ones_and_the_first_feature_constant():
    assert cosine_features(torch.zeros(2, 3), 64).tolist() == [[[1.0] * 64] * 3] * 2
    assert cosine_features(torch.linspace(0, 1, 11), 64)[:, 0].tolist() == [1.0] * 11


# dueling_aggregate


def test_dueling_takes_the_mean_advantage_off():
    # mean of [1, 2, 6] is 3: V + [-2, -1, 3]; with the maximum it would be V + [-5, -4, 0]
    q = dueling_aggregate(tensor([[[10.0]]]), tensor([[[1.0], [2.0], [6.0]]]))

    assert q.tolist() == [[[8.0], [9.0], [13.0]]]


def test_dueling_takes_the_mean_over_actions_not_over_the_batch():
    # row 0: mean 2, 10 + [-1, 1];  row 1: mean 30, 20 + [-10, 10].  A mean over all four would be 16
    q = dueling_aggregate(tensor([[[10.0]], [[20.0]]]), tensor([[[1.0], [3.0]], [[20.0], [40.0]]]))

    assert q.squeeze(-1).tolist() == [[9.0, 11.0], [10.0, 30.0]]


def test_dueling_takes_the_mean_for_each_number_apart():
    # number 0: mean 2, [-1, 1];  number 1: mean 20, [-10, 10];  on top of the values [100, 200]
    q = dueling_aggregate(tensor([[[100.0, 200.0]]]), tensor([[[1.0, 10.0], [3.0, 30.0]]]))

    assert q.tolist() == [[[99.0, 190.0], [101.0, 210.0]]]


def test_the_mean_action_value_is_the_state_value():
    value, advantage = doubles(5, 1, 4), doubles(5, 3, 4, seed=1)

    torch.testing.assert_close(dueling_aggregate(value, advantage).mean(dim=1, keepdim=True), value)


def test_dueling_of_a_batch_is_that_of_its_samples():
    value, advantage = doubles(5, 1, 4), doubles(5, 3, 4, seed=1)

    aggregated = dueling_aggregate(value, advantage)

    assert aggregated.shape == (5, 3, 4)
    assert torch.equal(aggregated, per_sample(dueling_aggregate, value, advantage))


# losses


def test_squared_error_is_the_square_of_the_difference():
    # (1 - 1)^2, (3 - 1)^2, (0.5 - 1)^2, (1 - 6)^2
    error = squared_error(tensor([1.0, 3.0, 0.5, 1.0]), tensor([1.0, 1.0, 1.0, 6.0]))

    assert error.tolist() == [0.0, 4.0, 0.25, 25.0]


def test_huber_error_is_quadratic_to_1_and_linear_beyond():
    # d = 0, 0.5, 1, 2, 5: d^2 / 2 = 0, 0.125, 0.5; |d| - 0.5 = 1.5, 4.5; the sign of d does not matter
    prediction = tensor([0.0, 0.5, 1.0, 2.0, 5.0])
    expected = [0.0, 0.125, 0.5, 1.5, 4.5]

    assert huber_error(prediction, torch.zeros(5)).tolist() == expected
    assert huber_error(-prediction, torch.zeros(5)).tolist() == expected


@pytest.mark.parametrize(
    ("error", "slopes"),
    [
        (squared_error, [10.0, -10.0, 1.0, 0.0]),  # 2 d
        (huber_error, [1.0, -1.0, 0.5, 0.0]),  # d, at most 1 in size
    ],
)
def test_slope_of_the_errors(error, slopes):
    prediction = tensor([5.0, -5.0, 0.5, 0.0], requires_grad=True)

    error(prediction, torch.zeros(4)).sum().backward()

    assert prediction.grad.tolist() == slopes


@pytest.mark.parametrize("error", [squared_error, huber_error])
def test_a_perfect_prediction_costs_nothing(error):
    values = tensor([1.0, 2.0, 3.0])

    assert error(values, values.clone()).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("error", [squared_error, huber_error])
@pytest.mark.parametrize(
    ("prediction", "target"), [((3,), (3, 1)), ((3, 1), (3,)), ((3,), (1,)), ((3,), ()), ((2, 3), (3, 2))]
)
def test_errors_refuse_shapes_that_would_broadcast(error, prediction, target):
    with pytest.raises(ValueError, match="must have one shape"):
        error(torch.zeros(prediction), torch.zeros(target))


@pytest.mark.parametrize("error", [squared_error, huber_error])
@pytest.mark.parametrize("shape", [(6,), (6, 3)])
def test_errors_of_a_batch_are_those_of_its_samples(error, shape):
    prediction, target = doubles(*shape), doubles(*shape, seed=1)

    errors = error(prediction, target)

    assert errors.shape == shape
    assert torch.equal(errors, per_sample(error, prediction, target))


# interquartile_mean


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 4.0], 2.5),
        ([1.0, 2.0, 9.0], 4.0),  # fewer than four: the plain mean
        ([0.0, 1.0, 3.0, 100.0], 2.0),  # a quarter of 4 is 1: 1 and 3 stay
        ([0.0, 1.0, 2.0, 6.0, 100.0], 3.0),  # a quarter of 5, rounded down, is 1: 1, 2 and 6 stay
        ([-50.0, -40.0, 1.0, 2.0, 3.0, 6.0, 70.0, 80.0], 3.0),  # a quarter of 8 is 2: 1, 2, 3 and 6 stay
    ],
)
def test_interquartile_mean(scores, expected):
    assert interquartile_mean(tensor(scores)).item() == expected
    assert interquartile_mean(tensor(scores[::-1])).item() == expected
    # an order that is neither rising nor falling
    assert interquartile_mean(tensor(scores[1::2] + scores[::2])).item() == expected


def test_interquartile_mean_is_a_scalar_and_leaves_its_input_alone():
    scores = tensor([3.0, 1.0, 2.0, 5.0])

    assert interquartile_mean(scores).shape == ()
    assert scores.tolist() == [3.0, 1.0, 2.0, 5.0]
