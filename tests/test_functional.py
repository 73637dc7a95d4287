"""The maths, against numbers worked out by hand."""

import pytest
import torch
from torch import tensor

from lightning_dqn.functional import (
    bellman_backup,
    dueling_aggregate,
    huber_error,
    interquartile_mean,
    squared_error,
    take_action,
)


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
