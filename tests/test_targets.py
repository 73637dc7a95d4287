"""What the network is regressed on."""

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.distributions import ExpectedReturn
from lightning_dqn.targets import DoubleQLearning, QLearning, TargetRule
from lightning_dqn.transition import Transition


def transition(reward, discount, next_observation=None):
    size = len(reward)
    following = torch.zeros(size, 1) if next_observation is None else next_observation
    return Transition(
        torch.zeros_like(following), torch.zeros(size, dtype=torch.int64), tensor(reward), tensor(discount), following
    )


def constant(*rows):
    """A Q-function that says the same whatever it sees."""
    return lambda observation: ExpectedReturn(tensor(rows))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (QLearning(), -3.0),  # max of the target network
        (DoubleQLearning(), -5.0),  # the online network prefers action 0, which the target network gives -5
        # online selecting and online valuing would be 1, target selecting and online valuing 0, a 0/1 mask 0
    ],
)
def test_which_network_chooses_and_which_one_values(rule, expected):
    target = rule(transition([0.0], [1.0]), constant([1.0, 0.0]), constant([-5.0, -3.0]))

    assert target.q_values.tolist() == [expected]


def test_q_learning_on_a_batch():
    # row 0: 1 + 0.9 * max(10, 20) = 19;  row 1: 2 + 0.5 * max(-4, -6) = 0;  row 2: terminal, -1
    target = QLearning()(
        transition([1.0, 2.0, -1.0], [0.9, 0.5, 0.0]),
        constant([9.0, 0.0], [9.0, 0.0], [9.0, 0.0]),
        constant([10.0, 20.0], [-4.0, -6.0], [70.0, 80.0]),
    )

    assert target.q_values.tolist() == [19.0, 0.0, -1.0]


def test_double_q_learning_on_a_batch():
    # chosen by online: 0, 1, 1.  row 0: 1 + 0.9 * 10 = 10;  row 1: 2 + 0.5 * -6 = -1;  row 2: terminal, -1
    target = DoubleQLearning()(
        transition([1.0, 2.0, -1.0], [0.9, 0.5, 0.0]),
        constant([9.0, 0.0], [0.0, 9.0], [0.0, 9.0]),
        constant([10.0, 20.0], [-4.0, -6.0], [70.0, 80.0]),
    )

    assert target.q_values.tolist() == [10.0, -1.0, -1.0]


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_the_rules_look_at_the_next_observation(rule):
    def q(observation):
        return ExpectedReturn(torch.cat([observation, -observation], dim=1))

    # max(3, -3) and max(-7, 7)
    target = rule(transition([0.0, 0.0], [1.0, 1.0], tensor([[3.0], [-7.0]])), q, q)

    assert target.q_values.tolist() == [3.0, 7.0]


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_the_rules_agree_where_the_networks_do(rule):
    q = constant([1.0, 4.0, 2.0])

    assert rule(transition([0.5], [0.5]), q, q).q_values.tolist() == [2.5]


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_the_reward_alone_is_left_at_a_terminal_state(rule):
    target = rule(transition([0.1], [0.0]), constant([1e30, -1e30]), constant([1e30, -1e30]))

    assert torch.equal(target.q_values, tensor([0.1]))


def test_double_q_learning_sends_no_gradient_into_the_network_that_only_chooses():
    online, target = nn.Linear(1, 2), nn.Linear(1, 2)
    values = DoubleQLearning()(
        transition([1.0], [0.9], torch.ones(1, 1)),
        lambda seen: ExpectedReturn(online(seen)),
        lambda seen: ExpectedReturn(target(seen)),
    )

    values.q_values.sum().backward()

    assert all(parameter.grad is None for parameter in online.parameters())


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_a_batch_is_its_samples_stacked(rule):
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).double() for _ in range(2)]
    online, target = (lambda seen, network=network: ExpectedReturn(network(seen)) for network in networks)
    fields = Transition(
        torch.randn(6, 3).double(),
        torch.zeros(6, dtype=torch.int64),
        torch.randn(6).double(),
        torch.rand(6).double(),
        torch.randn(6, 3).double(),
    )

    whole = rule(fields, online, target).q_values
    single = [rule(Transition(*(field[b : b + 1] for field in fields)), online, target).q_values for b in range(6)]

    assert whole.shape == (6,)
    torch.testing.assert_close(whole, torch.cat(single), rtol=1e-14, atol=1e-14)


def test_a_rule_of_ones_own_only_has_to_be_callable():
    class RewardOnly(TargetRule):
        def __call__(self, transition, online, target):
            return ExpectedReturn(transition.reward)

    assert RewardOnly()(transition([3.0], [0.9]), constant([0.0]), constant([0.0])).q_values.tolist() == [3.0]
    with pytest.raises(TypeError, match="abstract"):
        TargetRule()
