"""What a network says about a return."""

import pytest
import torch
from torch import tensor

from lightning_dqn.functional import huber_error, squared_error
from lightning_dqn.learner.categorical import CategoricalReturn
from lightning_dqn.learner.distributions import ExpectedReturn, ReturnDistribution, same_kind
from lightning_dqn.learner.quantile import ImplicitQuantileReturn, QuantileReturn


def test_q_values_are_the_means():
    values = tensor([[1.0, 2.0], [3.0, 4.0]])

    assert torch.equal(ExpectedReturn(values).q_values, values)


def test_at_gives_one_return_per_row():
    returns = ExpectedReturn(tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), huber_error)

    chosen = returns.at(tensor([2, 0]))

    assert chosen.q_values.tolist() == [3.0, 4.0]
    assert chosen.error is huber_error


def test_backup_is_reward_plus_discounted_return():
    # 1 + 0.9 * 10 = 10;  -2 + 0.5 * -4 = -4
    backed_up = ExpectedReturn(tensor([10.0, -4.0]), huber_error).backup(tensor([1.0, -2.0]), tensor([0.9, 0.5]))

    assert backed_up.q_values.tolist() == [10.0, -4.0]
    assert backed_up.error is huber_error


def test_after_a_terminal_state_only_the_reward_counts():
    # 0.1 is no exact binary fraction: nothing may be added to it and taken off again
    backed_up = ExpectedReturn(tensor([1e8, -1e8])).backup(tensor([0.1, -0.1]), torch.zeros(2))

    assert torch.equal(backed_up.q_values, tensor([0.1, -0.1]))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (squared_error, [0.25, 0.0, 9.0]),
        (huber_error, [0.125, 0.0, 2.5]),
    ],
)
def test_loss_is_the_error_of_each_sample(error, expected):
    # differences 0.5, 0 and -3
    loss = ExpectedReturn(tensor([1.5, 2.0, 0.0]), error).loss(ExpectedReturn(tensor([1.0, 2.0, 3.0])))

    assert loss.tolist() == expected


def test_a_loss_of_ones_own_is_used():
    def cubed(prediction, target):
        return (prediction - target).abs() ** 3

    assert ExpectedReturn(tensor([5.0]), cubed).loss(ExpectedReturn(tensor([3.0]))).tolist() == [8.0]


def test_td_error_is_the_size_of_the_difference_whatever_the_loss():
    prediction, target = tensor([1.5, 2.0, 0.0]), ExpectedReturn(tensor([1.0, 2.0, 3.0]))

    for error in (squared_error, huber_error):
        assert ExpectedReturn(prediction, error).td_error(target, torch.zeros(3)).tolist() == [0.5, 0.0, 3.0]


def test_a_td_error_is_without_gradient_and_without_sign():
    prediction = ExpectedReturn(tensor([1.0, 5.0], requires_grad=True))
    target = ExpectedReturn(tensor([3.0, 3.0], requires_grad=True))

    td_error = prediction.td_error(target, prediction.loss(target))

    assert td_error.tolist() == [2.0, 2.0]
    assert not td_error.requires_grad


def test_a_mixture_is_the_policys_mean_of_values_and_bonuses():
    # 1/4 (1 + 8) + 3/4 (2 - 4);  the second policy never takes its first action
    returns = ExpectedReturn(tensor([[1.0, 2.0], [1e30, 3.0]]), huber_error)

    mixture = returns.mixture(tensor([[0.25, 0.75], [0.0, 1.0]]), tensor([[8.0, -4.0], [0.0, 0.5]]))

    assert mixture.q_values.tolist() == [0.75, 3.5]
    assert mixture.error is huber_error


class Certain(ReturnDistribution):
    """The least that a return has to know."""

    def __init__(self, values):
        self.values = values

    @property
    def q_values(self):
        return self.values

    def at(self, action):
        return Certain(self.values[torch.arange(len(action)), action])

    def backup(self, reward, discount):
        return Certain(reward + discount * self.values)

    def loss(self, target):
        return (self.values - target.q_values).abs() ** 3


def test_a_return_of_ones_own_needs_no_mixture_and_no_td_error():
    prediction = Certain(tensor([[0.0, 1.0]], requires_grad=True)).at(tensor([1]))
    target = Certain(tensor([3.0]))

    loss = prediction.loss(target)
    td_error = prediction.td_error(target, loss)

    assert td_error.tolist() == loss.tolist() == [8.0]
    assert not td_error.requires_grad
    with pytest.raises(NotImplementedError, match="Certain has no mixture"):
        prediction.mixture(torch.ones(1, 2), torch.zeros(1, 2))


QUANTILES = QuantileReturn(torch.zeros(2, 3), torch.full((3,), 0.5))
RETURNS = {
    "expected": ExpectedReturn(torch.zeros(2)),
    "categorical": CategoricalReturn(torch.zeros(2, 3), torch.arange(3.0)),
    "quantile": QUANTILES,
    "implicit": ImplicitQuantileReturn(lambda number: QUANTILES, 3, 3, 3),
}


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ("categorical", "expected"),
        ("categorical", "quantile"),
        ("quantile", "expected"),
        ("quantile", "categorical"),
        ("implicit", "expected"),
        ("implicit", "categorical"),
    ],
)
def test_returns_of_different_kinds_are_not_compared(prediction, target):
    with pytest.raises(TypeError, match=f"cannot be regressed on {type(RETURNS[target]).__name__}"):
        RETURNS[prediction].loss(RETURNS[target])


def test_a_target_of_the_same_kind_is_handed_back():
    prediction, target = ExpectedReturn(torch.zeros(2)), ExpectedReturn(torch.ones(2))

    assert same_kind(prediction, target) is target


def test_the_loss_of_a_prediction_that_was_not_narrowed_to_one_action_is_refused():
    returns = ExpectedReturn(torch.zeros(3, 3))

    with pytest.raises(ValueError, match="must have one shape"):
        returns.loss(ExpectedReturn(torch.zeros(3)))


def test_a_batch_is_its_samples_stacked():
    generator = torch.Generator().manual_seed(0)
    values, target = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    reward, discount = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    action = tensor([0, 2, 1, 1, 0, 2])

    def learn(rows):
        prediction = ExpectedReturn(values[rows], huber_error).at(action[rows])
        goal = ExpectedReturn(target[rows]).at(action[rows]).backup(reward[rows], discount[rows])
        loss = prediction.loss(goal)
        return torch.stack([prediction.q_values, goal.q_values, loss, prediction.td_error(goal, loss)])

    whole = learn(slice(None))

    assert whole.shape == (4, 6)
    assert torch.equal(whole, torch.cat([learn(slice(b, b + 1)) for b in range(6)], dim=1))


def test_the_interface_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ReturnDistribution()
