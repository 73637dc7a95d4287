"""The return as probabilities of fixed values."""

import math

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.learner.categorical import CategoricalHead, CategoricalReturn
from lightning_dqn.learner.heads import DuelingStream, LinearStream
from lightning_dqn.learner.targets import DoubleQLearning, QLearning
from lightning_dqn.transition import Transition


def categorical(probabilities, atoms):
    return CategoricalReturn(tensor(probabilities).log(), tensor(atoms))


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def projected_by_hand(probabilities, atoms, support):
    """Shares out one atom after the other, with the floor and the ceiling of its place."""
    low, high, last = support[0], support[-1], len(support) - 1
    projected = [0.0] * len(support)
    for probability, atom in zip(probabilities, atoms, strict=True):
        place = min((min(max(atom, low), high) - low) / ((high - low) / last), last)
        below, above = math.floor(place), math.ceil(place)
        projected[below] += probability * (above - place if above > below else 1.0)
        projected[above] += probability * (place - below)
    return projected


# CategoricalReturn


def test_q_values_are_the_means_over_the_atoms():
    # -0.1 + 0.7;  -0.5 + 0.25
    returns = categorical([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]], [-1.0, 0.0, 1.0])

    torch.testing.assert_close(returns.q_values, tensor([[0.6, -0.25]]))


def test_at_gives_the_atoms_of_one_action_per_row():
    returns = categorical([[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]], [0.0, 4.0])

    chosen = returns.at(tensor([0, 1]))

    assert chosen.log_probabilities.exp().tolist() == [[0.25, 0.75], [0.0, 1.0]]
    assert chosen.q_values.tolist() == [3.0, 4.0]


def test_a_backup_moves_the_atoms_and_not_the_probabilities():
    # as many atoms as rows, so that a reward along the wrong axis would not be noticed by its shape
    returns = categorical([[0.25, 0.75], [0.5, 0.5]], [-2.0, 4.0])

    backed_up = returns.backup(tensor([1.0, 10.0]), tensor([0.5, 0.0]))

    assert backed_up.atoms.tolist() == [[0.0, 3.0], [10.0, 10.0]]
    assert torch.equal(backed_up.log_probabilities, returns.log_probabilities)
    assert backed_up.q_values.tolist() == [2.25, 10.0]


def test_a_mixture_has_the_atoms_of_all_actions_with_their_probabilities_and_bonuses():
    # 1/4 of the first action, whose atoms move by 10, and 3/4 of the second, whose atoms move by -1
    returns = categorical([[[0.5, 0.5], [0.25, 0.75]]], [0.0, 4.0])

    mixture = returns.mixture(tensor([[0.25, 0.75]]), tensor([[10.0, -1.0]]))

    assert mixture.atoms.tolist() == [[10.0, 14.0, -1.0, 3.0]]
    torch.testing.assert_close(mixture.log_probabilities.exp(), tensor([[0.125, 0.125, 0.1875, 0.5625]]))
    torch.testing.assert_close(mixture.q_values, tensor([0.25 * 12 + 0.75 * 2]))


def test_an_action_that_a_policy_never_takes_has_no_part_in_the_mixture():
    returns = categorical([[[0.5, 0.5], [0.25, 0.75]]], [0.0, 4.0])
    prediction = categorical([[0.5, 0.5]], [0.0, 4.0])

    mixture = returns.mixture(tensor([[0.0, 1.0]]), tensor([[0.0, 0.0]]))

    assert mixture.q_values.tolist() == [3.0]
    assert prediction.loss(mixture).item() == pytest.approx(math.log(2))


def test_loss_is_the_cross_entropy_of_the_projected_target():
    # the target's atoms 0.5 and 4 become 1/4 on 0, 1/4 on 1 and 1/2 on 2
    prediction = categorical([[0.5, 0.25, 0.25]], [0.0, 1.0, 2.0])
    target = CategoricalReturn(tensor([[0.5, 0.5]]).log(), tensor([[0.5, 4.0]]))

    assert prediction.loss(target).item() == pytest.approx(0.25 * math.log(2) + 0.75 * math.log(4))


def test_the_loss_of_a_backup_equals_the_loop():
    support = torch.linspace(-3, 7, 4, dtype=torch.float64)
    prediction = CategoricalReturn(torch.log_softmax(doubles(6, 4), dim=1), support)
    following = CategoricalReturn(torch.log_softmax(doubles(6, 4, seed=1), dim=1), support)
    reward, discount = 3 * doubles(6, seed=2), torch.sigmoid(doubles(6, seed=3))

    loss = prediction.loss(following.backup(reward, discount))

    for b in range(6):
        atoms = [reward[b].item() + discount[b].item() * z for z in support.tolist()]
        target = projected_by_hand(following.log_probabilities[b].exp().tolist(), atoms, support.tolist())
        logs = prediction.log_probabilities[b].tolist()
        assert loss[b].item() == pytest.approx(-sum(m * q for m, q in zip(target, logs, strict=True)), rel=1e-12)


def test_the_loss_of_a_mixture_equals_the_loop():
    support = torch.linspace(-3, 7, 4, dtype=torch.float64)
    prediction = CategoricalReturn(torch.log_softmax(doubles(6, 4), dim=1), support)
    following = CategoricalReturn(torch.log_softmax(doubles(6, 3, 4, seed=1), dim=2), support)
    policy, bonus = torch.softmax(doubles(6, 3, seed=2), dim=1), doubles(6, 3, seed=3)
    reward, discount = 3 * doubles(6, seed=4), torch.sigmoid(doubles(6, seed=5))

    loss = prediction.loss(following.mixture(policy, bonus).backup(reward, discount))

    for b in range(6):
        pairs = [
            (
                policy[b, a].item() * following.log_probabilities[b, a, m].exp().item(),
                reward[b].item() + discount[b].item() * (support[m].item() + bonus[b, a].item()),
            )
            for a in range(3)
            for m in range(4)
        ]
        target = projected_by_hand(*zip(*pairs, strict=True), support.tolist())
        logs = prediction.log_probabilities[b].tolist()
        assert loss[b].item() == pytest.approx(-sum(m * q for m, q in zip(target, logs, strict=True)), rel=1e-12)


@pytest.mark.parametrize("on_target", [-100.0, 100.0])
def test_returns_beyond_the_support_count_as_its_edge(on_target):
    prediction = categorical([[0.125, 0.375, 0.5]], [-1.0, 0.0, 1.0])
    target = categorical([[0.25, 0.5, 0.25]], [-1.0, 0.0, 1.0]).backup(tensor([on_target]), tensor([1.0]))

    assert prediction.loss(target).item() == pytest.approx(-math.log(0.125 if on_target < 0 else 0.5))


def test_the_td_error_is_the_loss_without_its_gradient():
    log_probabilities = tensor([[0.25, 0.75]]).log().requires_grad_()
    prediction, target = CategoricalReturn(log_probabilities, tensor([0.0, 1.0])), categorical([[1.0, 0.0]], [0.0, 1.0])

    loss = prediction.loss(target)
    td_error = prediction.td_error(target, loss)

    assert loss.requires_grad
    assert not td_error.requires_grad
    assert td_error.tolist() == loss.tolist() == pytest.approx([math.log(4)])


# the next action


def state(size=1):
    return Transition(
        torch.zeros(size, 1),
        torch.zeros(size, dtype=torch.int64),
        torch.zeros(size),
        torch.ones(size),
        torch.ones(size, 1),
    )


# the second action has the larger mean, 1.3 to 1, the first the most probable atom, 0.8
CHOOSING = categorical([[[0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]], [0.0, 1.0, 2.0])


def test_q_learning_chooses_by_the_mean_and_not_by_a_probability():
    target = QLearning()(state(), lambda seen: None, lambda seen: CHOOSING)

    torch.testing.assert_close(target.log_probabilities.exp(), tensor([[0.2, 0.3, 0.5]]))


def test_double_q_learning_chooses_by_the_mean_and_takes_the_distribution_of_the_target_network():
    # the target network alone would choose the first action
    valuing = categorical([[[0.0, 0.0, 1.0], [0.5, 0.25, 0.25]]], [0.0, 1.0, 2.0])

    target = DoubleQLearning()(state(), lambda seen: CHOOSING, lambda seen: valuing)

    assert target.log_probabilities.exp().tolist() == [[0.5, 0.25, 0.25]]


# CategoricalHead


def set_logits(head, logits):
    """Makes the head say the same logits ``[A, M]`` of every state, but still depend on its features."""
    layer = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(tensor(logits).flatten())
    return layer


def test_51_atoms_from_minus_10_to_10_by_default():
    head = CategoricalHead(5, 3)

    returns = head(torch.randn(2, 5))

    assert isinstance(head.stream, LinearStream)
    assert returns.log_probabilities.shape == (2, 3, 51)
    torch.testing.assert_close(returns.atoms, tensor([-10 + 0.4 * i for i in range(51)]))
    assert returns.atoms[[0, 50]].tolist() == [-10.0, 10.0]


def test_a_support_of_ones_own():
    head = CategoricalHead(5, 2, num_atoms=4, v_min=-3, v_max=7)

    torch.testing.assert_close(head(torch.randn(1, 5)).atoms, tensor([-3.0, 1 / 3, 11 / 3, 7.0]))


def test_the_logits_of_each_action_become_probabilities():
    head = CategoricalHead(1, 2, num_atoms=3, v_min=-1, v_max=1)
    set_logits(head, [[0.0, math.log(2), 0.0], [math.log(6), 0.0, 0.0]])

    returns = head(torch.randn(2, 1))

    expected = tensor([[0.25, 0.5, 0.25], [0.75, 0.125, 0.125]])
    torch.testing.assert_close(returns.log_probabilities, expected.log().expand(2, 2, 3))
    torch.testing.assert_close(returns.q_values, tensor([[0.0, -0.625]] * 2))


def test_dueling_takes_the_mean_over_the_actions_of_the_logits_of_each_atom():
    # logits of the values [0, 1], of the advantages [[0, 4], [2, 0]] with means [1, 2]: [[-1, 3], [1, -1]]
    head = CategoricalHead(1, 2, DuelingStream, num_atoms=2, v_min=0, v_max=1)
    value, advantage = (layer for layer in head.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        for layer, bias in ((value, [0.0, 1.0]), (advantage, [0.0, 4.0, 2.0, 0.0])):
            layer.weight.zero_()
            layer.bias.copy_(tensor(bias))

    log_probabilities = head(torch.zeros(1, 1)).log_probabilities

    torch.testing.assert_close(log_probabilities, torch.log_softmax(tensor([[[-1.0, 3.0], [1.0, -1.0]]]), dim=2))


def test_extreme_logits_give_finite_losses_and_gradients():
    # exp(-160) is 0 in float32, and its logarithm minus infinity; the reward 0 of a terminal state is the first atom
    head = CategoricalHead(1, 2, num_atoms=2, v_min=0, v_max=1)
    layer = set_logits(head, [[-80.0, 80.0], [80.0, -80.0]])

    returns = head(torch.zeros(2, 1))
    target = returns.at(tensor([0, 0])).backup(torch.zeros(2), torch.zeros(2))
    losses = returns.at(tensor([0, 1])).loss(target)
    losses.sum().backward()

    assert losses.tolist() == [160.0, 0.0]
    assert layer.bias.grad.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_the_support_stays_exact_under_autocast():
    # in bfloat16 an atom near 10 would be off by up to 0.03
    head = CategoricalHead(5, 3)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        returns = head(torch.randn(2, 5))
        backed_up = returns.at(tensor([0, 1])).backup(torch.ones(2), torch.full((2,), 0.99))

    assert torch.equal(returns.atoms, (torch.arange(-25, 26, dtype=torch.float64) * 0.4).float())
    expected = 1 + 0.99 * torch.linspace(-10, 10, 51)
    torch.testing.assert_close(backed_up.atoms, expected.expand(2, 51), rtol=0, atol=1e-6)
    torch.testing.assert_close(returns.log_probabilities.exp().sum(dim=2), torch.ones(2, 3))


def test_the_support_follows_the_head_but_is_no_weight():
    head = CategoricalHead(5, 3, num_atoms=4)

    assert not any("support" in name for name in [*dict(head.named_parameters()), *head.state_dict()])
    assert head.to("meta").support.device.type == "meta"


def test_learning_finds_the_distribution_of_the_rewards():
    # rewards 0, 0, 1 and 2.5 at a terminal state: half of the probability on 0, a quarter on 1, an eighth on 2 and on 3
    torch.manual_seed(0)
    head = CategoricalHead(1, 1, num_atoms=4, v_min=0, v_max=3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    reward, action = tensor([0.0, 0.0, 1.0, 2.5]), torch.zeros(4, dtype=torch.int64)

    for _ in range(300):
        prediction = head(torch.ones(4, 1)).at(action)
        loss = prediction.loss(prediction.backup(reward, torch.zeros(4))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    probabilities = head(torch.ones(1, 1)).log_probabilities.exp()[0, 0]
    torch.testing.assert_close(probabilities, tensor([0.5, 0.25, 0.125, 0.125]), rtol=0, atol=2e-3)


@pytest.mark.parametrize("num_atoms", [1, 0, -3, math.nan])
def test_fewer_than_two_atoms_are_refused(num_atoms):
    with pytest.raises(ValueError, match=r"^model\.head\.num_atoms must be at least 2"):
        CategoricalHead(5, 3, num_atoms=num_atoms)


@pytest.mark.parametrize(("v_min", "v_max"), [(1.0, 1.0), (10.0, -10.0), (math.nan, 1.0), (0.0, math.nan)])
def test_a_support_that_does_not_ascend_is_refused(v_min, v_max):
    with pytest.raises(ValueError, match=r"^model\.head\.v_min .* must be below model\.head\.v_max"):
        CategoricalHead(5, 3, v_min=v_min, v_max=v_max)


def test_one_action_may_be_taken_after_the_backup_as_well_as_before():
    log_probabilities = torch.log_softmax(torch.randn(2, 3, 4), dim=-1)
    returns = CategoricalReturn(log_probabilities, torch.linspace(-1, 1, 4))
    reward, discount, action = torch.tensor([1.0, -2.0]), torch.tensor([0.9, 0.0]), torch.tensor([2, 0])

    late = returns.backup(reward, discount).at(action)
    early = returns.at(action).backup(reward, discount)

    assert torch.equal(late.q_values, early.q_values)
    assert late.q_values.shape == (2,)


def test_a_return_that_is_nan_makes_its_own_loss_nan_and_no_other():
    support = torch.linspace(-1, 1, 4)
    prediction = CategoricalReturn(torch.log_softmax(torch.randn(2, 4), dim=-1), support)
    target = prediction.backup(torch.tensor([torch.nan, 0.5]), torch.tensor([0.9, 0.9]))

    assert torch.isnan(prediction.loss(target)).tolist() == [True, False]


@pytest.mark.parametrize(("v_min", "v_max"), [(-torch.inf, 1.0), (0.0, torch.inf)])
def test_a_support_without_end_is_refused(v_min, v_max):
    with pytest.raises(ValueError, match=r"model\.head\.v_min .* must be below model\.head\.v_max .* both finite"):
        CategoricalHead(4, 3, v_min=v_min, v_max=v_max)


def test_zero_is_an_atom_of_a_symmetric_support():
    assert CategoricalHead(4, 3).support[25] == 0.0
