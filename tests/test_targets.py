"""What the network is regressed on."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn import DQNLightningModule, ReplayBatch
from lightning_dqn.learner.categorical import CategoricalHead, CategoricalReturn
from lightning_dqn.learner.distributions import ExpectedReturn, ReturnDistribution
from lightning_dqn.learner.heads import DuelingStream, ExpectedHead, Head, LinearStream
from lightning_dqn.learner.networks import MLPTorso, QNetwork
from lightning_dqn.learner.noisy import NoisyLinear
from lightning_dqn.learner.quantile import ImplicitQuantileHead, ImplicitQuantileReturn, QuantileHead, QuantileReturn
from lightning_dqn.learner.targets import (
    DoubleQLearning,
    MunchausenQLearning,
    QLearning,
    TargetRule,
    check_that_they_fit,
)
from lightning_dqn.transition import Transition

KINDS = ["expected", "categorical", "quantile", "implicit"]
HEADS = {
    "expected": ExpectedHead,
    "categorical": partial(CategoricalHead, num_atoms=21, v_min=-3.0, v_max=4.0),
    "quantile": partial(QuantileHead, num_quantiles=5),
    "implicit": partial(ImplicitQuantileHead, num_samples=8, num_target_samples=7, num_policy_samples=6, num_cosines=5),
}
STREAMS = {"linear": LinearStream, "dueling": partial(DuelingStream, hidden_sizes=[6])}
RULES = {
    "q": QLearning(),
    "double": DoubleQLearning(),
    "munchausen": MunchausenQLearning(),
    "warm": MunchausenQLearning(temperature=0.5, alpha=0.7, log_policy_min=-0.8),
}

every_kind = pytest.mark.parametrize("kind", KINDS)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
every_stream = pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)


def transition(reward, discount, next_observation=None, action=None, **masks):
    size = len(reward)
    following = torch.zeros(size, 1) if next_observation is None else next_observation
    return Transition(
        torch.zeros_like(following),
        tensor(action or [0] * size),
        tensor(reward),
        tensor(discount),
        following,
        **{name: tensor(mask) for name, mask in masks.items()},
    )


def constant(*rows, kind="expected"):
    """A Q-function that says the same whatever it sees: returns of every kind with these means."""
    values = tensor(rows)
    if kind == "expected":
        returns = ExpectedReturn(values)
    elif kind == "categorical":
        # as a softmax does, it gives every atom some probability
        atoms = tensor([-4.0, 0.0, 4.0]) * max(values.abs().max().item(), 1.0)
        share = values / atoms[2] / 2
        returns = CategoricalReturn(torch.stack([0.3 - share, 0.4 + 0 * share, 0.3 + share], dim=2).log(), atoms)
    elif kind == "quantile":
        returns = QuantileReturn(values.unsqueeze(2) + tensor([-1.0, 0.0, 1.0]), tensor([1 / 6, 1 / 2, 5 / 6]))
    else:

        def draw(number):
            taus = (torch.arange(number) + 0.5) / number
            return QuantileReturn(values.unsqueeze(2) + 2 * taus - 1, taus.expand(len(values), number))

        returns = ImplicitQuantileReturn(draw, num_samples=4, num_target_samples=5, num_policy_samples=6)
    return lambda observation: returns


def never(observation):
    raise AssertionError("this network is not to be asked")


def means(returns):
    return returns.q_values.tolist()


# Q-learning and double Q-learning


@every_kind
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (QLearning(), -3.0),  # max of the target network
        (DoubleQLearning(), -5.0),  # the online network prefers action 0, which the target network gives -5
        # online selecting and online valuing would be 1, target selecting and online valuing 0, a 0/1 mask 0
    ],
)
def test_which_network_chooses_and_which_one_values(rule, expected, kind):
    online, target = constant([1.0, 0.0], kind=kind), constant([-5.0, -3.0], kind=kind)

    assert means(rule(transition([0.0], [1.0]), online, target)) == pytest.approx([expected])


@every_kind
def test_q_learning_on_a_batch(kind):
    # row 0: 1 + 0.9 * max(10, 20) = 19;  row 1: 2 + 0.5 * max(-4, -6) = 0;  row 2: terminal, -1
    target = QLearning()(
        transition([1.0, 2.0, -1.0], [0.9, 0.5, 0.0]),
        never,
        constant([10.0, 20.0], [-4.0, -6.0], [70.0, 80.0], kind=kind),
    )

    assert means(target) == pytest.approx([19.0, 0.0, -1.0], abs=1e-5)


@every_kind
def test_double_q_learning_on_a_batch(kind):
    # chosen by online: 0, 1, 1.  row 0: 1 + 0.9 * 10 = 10;  row 1: 2 + 0.5 * -6 = -1;  row 2: terminal, -1
    target = DoubleQLearning()(
        transition([1.0, 2.0, -1.0], [0.9, 0.5, 0.0]),
        constant([9.0, 0.0], [0.0, 9.0], [0.0, 9.0], kind=kind),
        constant([10.0, 20.0], [-4.0, -6.0], [70.0, 80.0], kind=kind),
    )

    assert means(target) == pytest.approx([10.0, -1.0, -1.0], abs=1e-5)


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


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning(), MunchausenQLearning(alpha=0.0)])
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


# Munchausen


def test_the_munchausen_target_by_hand():
    # temperature 1, half of the log-policy, at least -1
    # row 0: pi(a|s) = 3/4, and the next values [0, 0] are softly worth log 2
    # row 1: pi(a|s) = 1/4, log 1/4 = -1.39 becomes -1;  terminal
    # row 2: pi(a|s) = 1/2, and the next values [0, log 3] are softly worth log 4
    three = math.log(3)
    present, following = [[0.0, three], [0.0, three], [5.0, 5.0]], [[0.0, 0.0], [8.0, 9.0], [0.0, three]]

    def target(observation):
        return ExpectedReturn(tensor(following if observation.all() else present))

    rule = MunchausenQLearning(temperature=1.0, alpha=0.5, log_policy_min=-1.0)
    values = rule(transition([1.0, 2.0, -1.0], [0.5, 0.0, 1.0], torch.ones(3, 1), [1, 0, 0]), never, target)

    expected = [
        1 + 0.5 * math.log(0.75) + 0.5 * math.log(2),
        2 - 0.5,
        -1 + 0.5 * math.log(0.5) + math.log(4),
    ]
    assert means(values) == pytest.approx(expected, abs=1e-6)


def test_the_log_policy_is_that_of_values_over_the_temperature():
    # over 1/2 the values [0, log 3] are 9 to 1, so that the first has log 1/10, scaled 1/2 log 1/10
    rule = MunchausenQLearning(temperature=0.5, alpha=1.0, log_policy_min=-10.0)

    values = rule(transition([0.0], [0.0]), never, constant([0.0, math.log(3)]))

    assert means(values) == pytest.approx([0.5 * math.log(0.1)])


@pytest.mark.parametrize(("log_policy_min", "expected"), [(0.0, 0.0), (-1.0, -1.0), (-2.0, -2.0), (-10.0, -4.0)])
def test_the_log_policy_is_not_added_below_its_least(log_policy_min, expected):
    # 4 below the best at a low temperature: the scaled log-policy is -4
    rule = MunchausenQLearning(0.03, alpha=0.5, log_policy_min=log_policy_min)

    values = rule(transition([7.0], [0.0]), never, constant([4.0, 0.0, -9.0]))
    others = rule(transition([7.0], [0.0], action=[1]), never, constant([4.0, 0.0, -9.0]))

    assert means(values) == pytest.approx([7.0])
    assert means(others) == pytest.approx([7.0 + 0.5 * expected])


def doubles(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROWS, ACTIONS = 6, 3
TEMPERATURE, ALPHA, LEAST = 0.4, 0.7, -0.5


def some_transitions():
    """Random transitions, some of whose actions are not legal, and one of which is terminal."""
    action = tensor([0, 1, 2, 2, 1, 0])
    masks = doubles(2, ROWS, ACTIONS, seed=9) > -0.5
    masks[0, torch.arange(ROWS), action] = True
    masks[1, :, 0] |= ~masks[1].any(dim=1)
    discount = torch.sigmoid(doubles(ROWS, seed=8))
    discount[3] = 0.0
    return Transition(torch.zeros(ROWS, 1), action, doubles(ROWS, seed=7), discount, torch.ones(ROWS, 1), *masks)


def munchausen_by_hand(b, fields, present, following):
    """Reward and bonus of one row, and its next policy: ``[(action, probability, scaled logarithm)]``."""

    def soft(values, legal):
        weights = {a: math.exp(values[a] / TEMPERATURE) for a in range(ACTIONS) if legal[a]}
        return [
            (a, w / sum(weights.values()), TEMPERATURE * math.log(w / sum(weights.values())))
            for a, w in weights.items()
        ]

    now = {a: scaled for a, _, scaled in soft(present[b].tolist(), fields.action_mask[b].tolist())}
    bonus = min(max(now[fields.action[b].item()], LEAST), 0.0)
    policy = soft(following[b].tolist(), fields.next_action_mask[b].tolist())
    return fields.reward[b].item() + ALPHA * bonus, fields.discount[b].item(), policy


def munchausen(fields, present, following):
    """The target where the target network says one thing of the present and another of the next state."""
    rule = MunchausenQLearning(TEMPERATURE, ALPHA, LEAST)
    return rule(fields, never, lambda seen: following if seen.all() else present)


def test_the_munchausen_target_of_a_mean_equals_the_loop():
    fields, present, following = some_transitions(), doubles(ROWS, ACTIONS), doubles(ROWS, ACTIONS, seed=1)

    values = munchausen(fields, ExpectedReturn(present), ExpectedReturn(following)).q_values

    for b in range(ROWS):
        reward, discount, policy = munchausen_by_hand(b, fields, present, following)
        expected = reward + discount * sum(p * (following[b, a].item() - scaled) for a, p, scaled in policy)
        assert values[b].item() == pytest.approx(expected, rel=1e-12)


def test_the_munchausen_target_of_a_distribution_is_the_mixture_of_the_shifted_atoms():
    fields, atoms = some_transitions(), torch.linspace(-3, 7, 4, dtype=torch.float64)
    present = CategoricalReturn(torch.log_softmax(doubles(ROWS, ACTIONS, 4), dim=2), atoms)
    following = CategoricalReturn(torch.log_softmax(doubles(ROWS, ACTIONS, 4, seed=1), dim=2), atoms)

    target = munchausen(fields, present, following)

    for b in range(ROWS):
        reward, discount, policy = munchausen_by_hand(b, fields, present.q_values, following.q_values)
        expected = [
            (reward + discount * (atoms[m].item() - scaled), p * following.log_probabilities[b, a, m].exp().item())
            for a, p, scaled in policy
            for m in range(4)
        ]
        pairs = zip(target.atoms[b].tolist(), target.log_probabilities[b].exp().tolist(), strict=True)
        possible = [pair for pair in pairs if pair[1] > 0]
        # in which order the atoms stand is nobody's business
        for pair, expected_pair in zip(sorted(possible), sorted(expected), strict=True):
            assert pair == pytest.approx(expected_pair, rel=1e-9)


def test_the_munchausen_target_of_quantiles_equals_the_loop():
    fields, taus = some_transitions(), tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    present = QuantileReturn(doubles(ROWS, ACTIONS, 5), taus)
    following = QuantileReturn(doubles(ROWS, ACTIONS, 5, seed=1), taus)

    target = munchausen(fields, present, following)

    for b in range(ROWS):
        reward, discount, policy = munchausen_by_hand(b, fields, present.q_values, following.q_values)
        for i in range(5):
            mixed = sum(p * (following.quantiles[b, a, i].item() - scaled) for a, p, scaled in policy)
            assert target.quantiles[b, i].item() == pytest.approx(reward + discount * mixed, rel=1e-12)


def test_the_munchausen_target_of_implicit_quantiles_equals_the_loop():
    # quantile functions that are straight lines, and fractions that are known beforehand
    fields = some_transitions()
    start, slope = doubles(ROWS, ACTIONS), doubles(ROWS, ACTIONS, seed=1)
    later_start, later_slope = doubles(ROWS, ACTIONS, seed=2), doubles(ROWS, ACTIONS, seed=3)
    now, policy_taus, target_taus = (torch.sigmoid(doubles(ROWS, n, seed=n)) for n in (3, 4, 5))

    def line(start, slope, *draws):
        drawn = iter(draws)

        def draw(number):
            taus = next(drawn)
            assert taus.shape == (ROWS, number)
            return QuantileReturn(start.unsqueeze(2) + slope.unsqueeze(2) * taus.unsqueeze(1), taus)

        return draw

    target = munchausen(
        fields,
        ImplicitQuantileReturn(line(start, slope, now), 9, 9, num_policy_samples=3),
        ImplicitQuantileReturn(line(later_start, later_slope, policy_taus, target_taus), 9, 5, num_policy_samples=4),
    )

    present = start + slope * now.mean(dim=1, keepdim=True)
    following = later_start + later_slope * policy_taus.mean(dim=1, keepdim=True)
    for b in range(ROWS):
        reward, discount, policy = munchausen_by_hand(b, fields, present, following)
        for j in range(5):
            quantile = (later_start[b] + later_slope[b] * target_taus[b, j]).tolist()
            mixed = sum(p * (quantile[a] - scaled) for a, p, scaled in policy)
            assert target.quantiles[b, j].item() == pytest.approx(reward + discount * mixed, rel=1e-12)


@every_kind
@pytest.mark.parametrize("temperature", [0.03, 1.0, 20.0])
def test_without_the_log_policy_it_is_soft_q_learning(temperature, kind):
    # whose next state is worth tau log sum exp(q / tau)
    values = tensor([[1.0, 2.0, -1.0], [0.5, 0.5, 0.0]])

    target = MunchausenQLearning(temperature, alpha=0.0)(
        transition([0.5, -2.0], [0.9, 0.4], action=[1, 2]), never, constant(*values.tolist(), kind=kind)
    )

    soft = temperature * torch.logsumexp(values.double() / temperature, dim=1)
    expected = tensor([0.5, -2.0]) + tensor([0.9, 0.4]) * soft
    assert means(target) == pytest.approx(expected.tolist(), rel=1e-5)


@every_kind
def test_at_a_very_low_temperature_a_greedy_action_has_the_target_of_q_learning(kind):
    fields = transition([0.5, -2.0], [0.9, 0.4], action=[1, 0])
    network = constant([1.0, 2.0, -1.0], [0.5, 0.25, 0.0], kind=kind)
    prediction = constant([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], kind=kind)(None).at(fields.action)

    soft = MunchausenQLearning(temperature=1e-6)(fields, never, network)
    greedy = QLearning()(fields, never, network)

    assert means(soft) == pytest.approx(means(greedy), rel=1e-5)
    torch.testing.assert_close(prediction.loss(soft), prediction.loss(greedy))


@every_kind
@pytest.mark.parametrize("rule", [MunchausenQLearning(), MunchausenQLearning(temperature=1e-3)])
def test_values_that_overflow_an_exponential_and_policies_that_underflow_are_harmless(rule, kind):
    # the policy of the second action is exp(-1e4 / 0.03) = 0, its log-policy -1e4 becomes -1
    network = constant([1e4, 0.0], [-1e4, 1e4], kind=kind)
    fields = transition([1.0, 1.0], [0.5, 0.5], action=[1, 1])

    target = rule(fields, never, network)
    prediction = network(None).at(tensor([0, 1]))
    loss = prediction.loss(target)

    assert means(target) == pytest.approx([1 - 0.9 + 5e3, 1 + 5e3], rel=1e-4)
    assert loss.isfinite().all()
    assert prediction.td_error(target, loss).isfinite().all()


def test_repeated_munchausen_targets_end_at_the_true_value_and_leave_others_below_it():
    # rewards 1 and 0, discount 1/2: Q* = [2, 1]; not greedy, the second loses 0.9 * 1, the clipped log-policy
    fields, q_values = transition([1.0, 0.0], [0.5, 0.5], action=[0, 1]), tensor([0.0, 0.0])

    for _ in range(60):
        q_values = MunchausenQLearning()(fields, never, constant(*[q_values.tolist()] * 2)).q_values

    assert q_values.tolist() == pytest.approx([2.0, 0.1], rel=1e-4)


def test_munchausen_settings_of_the_paper_are_the_defaults():
    rule = MunchausenQLearning()

    assert (rule.temperature, rule.alpha, rule.log_policy_min) == (0.03, 0.9, -1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", value) for value in (0.0, -1.0, math.nan)]
    + [("alpha", value) for value in (1.1, -0.1, math.nan)]
    + [("log_policy_min", value) for value in (0.5, math.nan)],
)
def test_munchausen_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"^model\.target_rule\.{field} must be .*, got {value}"):
        MunchausenQLearning(**{field: value})


def test_munchausen_settings_at_the_ends_of_their_ranges_are_not_refused():
    MunchausenQLearning(alpha=0.0, log_policy_min=0.0)
    MunchausenQLearning(alpha=1.0)


# legal actions

ALL = [True, True, True]


@every_kind
def test_q_learning_takes_the_best_legal_action(kind):
    # 9 and -1 are not legal
    fields = transition([0.0, 0.0], [1.0, 1.0], next_action_mask=[[True, False, True], [True, True, False]])
    network = constant([1.0, 9.0, 5.0], [-3.0, -2.0, -1.0], kind=kind)

    assert means(QLearning()(fields, never, network)) == pytest.approx([5.0, -2.0], abs=1e-5)


@every_kind
def test_double_q_learning_chooses_among_legal_actions(kind):
    fields = transition([0.0], [1.0], next_action_mask=[[False, True, True]])
    online, target = constant([9.0, 1.0, 5.0], kind=kind), constant([7.0, 8.0, -2.0], kind=kind)

    assert means(DoubleQLearning()(fields, online, target)) == pytest.approx([-2.0], abs=1e-5)


@every_kind
def test_illegal_actions_have_no_part_in_the_munchausen_target(kind):
    # now 0 and log 3 are legal, 3/4 for the second; next 0 and 0, softly worth log 2
    fields = transition(
        [0.0], [1.0], torch.ones(1, 1), [2], action_mask=[[True, False, True]], next_action_mask=[[True, True, False]]
    )
    present, following = constant([0.0, 50.0, math.log(3)], kind=kind), constant([0.0, 0.0, 99.0], kind=kind)

    target = MunchausenQLearning(temperature=1.0, alpha=1.0)(
        fields, never, lambda seen: following(seen) if seen.all() else present(seen)
    )

    assert means(target) == pytest.approx([math.log(0.75) + math.log(2)], abs=1e-4)


@every_kind
@every_rule
def test_a_single_legal_action_is_worth_what_it_is(kind, rule):
    fields = transition([1.0], [0.5], action_mask=[[True, False, False]], next_action_mask=[[False, True, False]])
    network = constant([100.0, 4.0, -100.0], kind=kind)

    target = rule(fields, network, network)

    assert means(target) == pytest.approx([3.0], abs=1e-4)
    assert network(None).at(fields.action).loss(target).isfinite().all()


@every_kind
@every_rule
def test_masks_that_are_all_true_change_nothing(kind, rule):
    network = constant([1.0, 2.0, 3.0], kind=kind)

    plain = rule(transition([1.0], [0.5]), network, network)
    masked = rule(transition([1.0], [0.5], action_mask=[ALL], next_action_mask=[ALL]), network, network)

    assert means(plain) == means(masked)


# every head with every rule


def make_networks(head, stream=LinearStream, layer=nn.Linear):
    torch.manual_seed(0)
    torso = partial(MLPTorso, hidden_sizes=(8,))
    return [QNetwork([4], ACTIONS, torso, partial(head, stream=stream, layer=layer)) for _ in range(2)]


def make_model(head, rule=DoubleQLearning(), stream=LinearStream, layer=nn.Linear):
    torch.manual_seed(0)
    torso, head = partial(MLPTorso, hidden_sizes=(8,)), partial(head, stream=stream, layer=layer)
    model = DQNLightningModule([4], ACTIONS, torso, head, rule)
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def observed(dtype=torch.float32):
    """The random transitions again, with observations and numbers of a dtype."""
    fields = some_transitions()._replace(
        observation=doubles(ROWS, 4, seed=5), next_observation=doubles(ROWS, 4, seed=6)
    )
    return fields.map(lambda field: field.to(dtype) if field.is_floating_point() else field)


def training_step(model, weight=None):
    """One training step outside a Trainer: the loss and the TD errors."""
    fields = observed().map(lambda field: field.unsqueeze(0))
    weight = torch.ones(1, ROWS) if weight is None else weight
    batch = ReplayBatch(fields, torch.zeros(1, ROWS, dtype=torch.int64), weight)
    torch.manual_seed(1)
    model.on_train_batch_start(batch, 0)
    outputs = model.training_step(batch, 0)
    return outputs["loss"], outputs["td_error"][0]


def numbers(returns):
    """Everything a return for one action per row says, ``[B, ...]``."""
    if isinstance(returns, CategoricalReturn):
        return torch.cat([returns.log_probabilities.exp(), returns.atoms, returns.q_values.unsqueeze(1)], dim=1)
    if isinstance(returns, QuantileReturn):
        return torch.cat([returns.quantiles, returns.q_values.unsqueeze(1)], dim=1)
    return returns.q_values.unsqueeze(1)


class Fractions:
    """Fractions that hang on the number of the draw and on the row alone."""

    def __init__(self):
        self.table = torch.rand(10, ROWS, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def start(self, rows):
        self.rows, self.draw = rows, 0

    def __call__(self, batch_size, number, device):
        taus = self.table[self.draw, self.rows, :number]
        self.draw += 1
        assert taus.shape == (batch_size, number)
        return taus


@every_kind
@every_rule
@every_stream
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_a_batch_is_its_samples_stacked(kind, rule, stream, layer, monkeypatch):
    online, target = (network.double() for network in make_networks(HEADS[kind], stream, layer))
    # heads speak float32, in which small mix-ups would go under in the rounding
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    fractions = Fractions()
    monkeypatch.setattr(ImplicitQuantileHead, "_fractions", lambda head, *args: fractions(*args))
    fields = observed(torch.float64)

    def learn(rows):
        fractions.start(rows)
        torch.manual_seed(0)  # the same noise
        some = fields.map(lambda field: field[rows])
        prediction = online(some.observation).at(some.action)
        goal = rule(some, online, target)
        loss = prediction.loss(goal)
        return [numbers(goal), loss, prediction.td_error(goal, loss), prediction.q_values]

    whole = learn(slice(None))
    single = [torch.cat(parts) for parts in zip(*(learn(slice(b, b + 1)) for b in range(ROWS)), strict=True)]

    assert [part.dtype for part in whole] == [torch.float64] * 4
    assert [part.shape for part in whole[1:]] == [(ROWS,)] * 3
    for part, stacked in zip(whole, single, strict=True):
        torch.testing.assert_close(part, stacked, rtol=1e-12, atol=1e-12)


@every_kind
@every_rule
@every_stream
def test_everything_after_the_head_is_float32_under_autocast(kind, rule, stream):
    online, target = make_networks(HEADS[kind], stream)
    fields = observed()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        returns = online(fields.observation)
        prediction = returns.at(fields.action)
        goal = rule(fields, online, target)
        loss = prediction.loss(goal)
        parts = [returns.q_values, prediction.q_values, goal.q_values, numbers(goal), loss]
        parts.append(prediction.td_error(goal, loss))

    assert [part.dtype for part in parts] == [torch.float32] * 6


@every_kind
@every_rule
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_the_gradient_reaches_the_online_network_and_not_the_target(kind, rule, layer):
    model = make_model(HEADS[kind], rule, layer=layer)
    model.target.requires_grad_(True)

    loss, _ = training_step(model)
    loss.backward()

    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.online.parameters())


@every_kind
@every_rule
def test_the_gradient_is_that_of_the_prediction_alone(kind, rule):
    # in evaluation mode, in which nothing is drawn
    model, fields = make_model(HEADS[kind], rule).eval(), observed()
    training_step(model)[0].backward()
    gradients = [parameter.grad for parameter in model.online.parameters()]

    model.zero_grad()
    with torch.no_grad():
        goal = rule(fields, model.online, model.target)
    model.online(fields.observation).at(fields.action).loss(goal).mean().backward()

    for gradient, parameter in zip(gradients, model.online.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@every_kind
@every_rule
def test_td_errors_are_not_negative_have_no_gradient_and_know_nothing_of_importance_weights(kind, rule):
    model = make_model(HEADS[kind], rule)
    weight = torch.rand(1, ROWS, generator=torch.Generator().manual_seed(0)) + 0.1

    loss, td_error = training_step(model)
    weighted_loss, same_td_error = training_step(model, weight)

    assert td_error.shape == (ROWS,)
    assert (td_error >= 0).all()
    assert td_error.max() > 0
    assert not td_error.requires_grad
    assert torch.equal(td_error, same_td_error)
    if kind != "expected":  # whose TD error is the size of the difference, not its Huber error
        torch.testing.assert_close(loss.detach(), td_error.mean())
        torch.testing.assert_close(weighted_loss.detach(), (weight[0] * td_error).mean())


@every_kind
@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        (QLearning(), {"online": 0, "target": 1}),
        (DoubleQLearning(), {"online": 1, "target": 1}),
        (MunchausenQLearning(), {"online": 0, "target": 2}),
    ],
)
def test_a_rule_asks_the_networks_no_more_often_than_it_must(kind, rule, calls):
    model = make_model(HEADS[kind], rule)
    counts = {"online": 0, "target": 0}

    def counting(name, network):
        def ask(observation):
            counts[name] += 1
            return network(observation)

        return ask

    rule(observed(), counting("online", model.online), counting("target", model.target))

    assert counts == calls


TRUE = [[0.9, 0.5], [1.0, -1.0]]


@every_kind
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (QLearning(), TRUE),
        (DoubleQLearning(), TRUE),
        # actions that are not greedy lose 0.9 times the clipped log-policy
        (MunchausenQLearning(), [[0.9, -0.4], [1.0, -1.9]]),
    ],
)
def test_repeated_updates_find_the_true_values(kind, rule, expected):
    # in state 0 the first action leads on to state 1, where it ends with a reward of 1; the second ends with 0.5 or -1
    torch.manual_seed(0)
    torso = partial(MLPTorso, hidden_sizes=())
    states = torch.eye(2).repeat(1, 8)  # several features, lest a single one of the implicit head dies
    online = QNetwork([16], 2, torso, HEADS[kind])
    optimizer = torch.optim.Adam(online.parameters(), lr=0.03)
    fields = Transition(
        states[[0, 0, 1, 1]],
        tensor([0, 1, 0, 1]),
        tensor([0.0, 0.5, 1.0, -1.0]),
        tensor([0.9, 0.0, 0.0, 0.0]),
        states[[1, 1, 1, 1]],
    )

    for step in range(400):
        if step % 10 == 0:
            target = copy.deepcopy(online)
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 400)
        with torch.no_grad():
            goal = rule(fields, online, target)
        loss = online(fields.observation).at(fields.action).loss(goal).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    q_values = online.eval()(states).q_values
    torch.testing.assert_close(q_values, tensor(expected), rtol=0, atol=0.03)


def test_a_rule_of_ones_own_only_has_to_be_callable():
    class RewardOnly(TargetRule):
        def __call__(self, transition, online, target):
            return ExpectedReturn(transition.reward)

    assert RewardOnly()(transition([3.0], [0.9]), constant([0.0]), constant([0.0])).q_values.tolist() == [3.0]
    with pytest.raises(TypeError, match="abstract"):
        TargetRule()


# whether they fit


class Least(ReturnDistribution):
    """A return that knows no mixture."""

    def __init__(self, values):
        self.values = values

    @property
    def q_values(self):
        return self.values

    def at(self, action):
        return Least(self.values.gather(1, action.unsqueeze(1)).squeeze(1))

    def backup(self, reward, discount):
        return Least(reward + discount * self.values)

    def loss(self, target):
        return (self.values - target.q_values).abs()


class LeastHead(Head):
    def __init__(self, num_features, num_actions):
        super().__init__()
        self.layer = nn.Linear(num_features, num_actions)

    def forward(self, features):
        return Least(self.layer(features))


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_a_return_without_a_mixture_goes_with_rules_that_need_none(rule):
    check_that_they_fit(LeastHead(4, 3), 4, 3, rule)


def test_a_return_without_a_mixture_is_refused_by_rules_that_need_one():
    message = (
        r"^model\.head \(LeastHead\) and model\.target_rule \(MunchausenQLearning\) cannot go together: "
        "Least has no mixture over actions"
    )
    with pytest.raises(ValueError, match=message):
        check_that_they_fit(LeastHead(4, 3), 4, 3, MunchausenQLearning())
    with pytest.raises(ValueError, match=message):
        DQNLightningModule([4], 3, head=LeastHead, target_rule=MunchausenQLearning())


def scalar_loss(prediction, target):
    return (prediction - target).square().mean()


def broadcast_loss(prediction, target):
    return (prediction - target.unsqueeze(1)).square()


def column_loss(prediction, target):
    return (prediction - target).square().unsqueeze(1)


@pytest.mark.parametrize(
    ("loss", "shape"), [(scalar_loss, r"\(\)"), (broadcast_loss, r"\(2, 2\)"), (column_loss, r"\(2, 1\)")]
)
def test_a_loss_that_is_not_one_number_per_transition_is_refused(loss, shape):
    message = (
        r"^model\.head \(ExpectedHead\) and model\.target_rule \(QLearning\) cannot go together: "
        rf"the loss of 2 transitions has shape {shape}"
    )
    with pytest.raises(ValueError, match=message):
        check_that_they_fit(ExpectedHead(4, 3, loss=loss), 4, 3, QLearning())
    with pytest.raises(ValueError, match=message):
        DQNLightningModule([4], 3, head=partial(ExpectedHead, loss=loss), target_rule=QLearning())


def test_a_head_that_forgets_an_axis_is_refused():
    with pytest.raises(ValueError, match=r"^model\.head: q_values are \(2, 5\) for 2 states, 3 actions"):
        check_that_they_fit(ExpectedHead(4, 5), 4, 3, QLearning())


def test_a_head_that_gives_a_tensor_is_refused():
    message = (
        r"^model\.head: Linear\.forward gives a Tensor, not a ReturnDistribution; of means \[B, A\] it is Expected"
    )
    with pytest.raises(ValueError, match=message):
        check_that_they_fit(nn.Linear(4, 3), 4, 3, QLearning())
    with pytest.raises(ValueError, match=message):
        DQNLightningModule([4], 3, head=nn.Linear)


@pytest.mark.parametrize("kind", ["categorical", "quantile", "implicit"])
def test_a_rule_whose_targets_are_of_another_kind_is_refused(kind):
    class MeanOnly(TargetRule):
        def __call__(self, transition, online, target):
            return ExpectedReturn(transition.reward)

    with pytest.raises(ValueError, match=r"^model\.head .* and model\.target_rule \(MeanOnly\) cannot go together"):
        check_that_they_fit(HEADS[kind](4, 3), 4, 3, MeanOnly())


@every_kind
@every_rule
@every_stream
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_trying_leaves_no_trace(kind, rule, stream, layer):
    torch.manual_seed(0)
    head = HEADS[kind](4, 3, stream=stream, layer=layer)
    weights = copy.deepcopy(head.state_dict())
    before = torch.get_rng_state()

    check_that_they_fit(head, 4, 3, rule)

    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in head.parameters())
    assert head.training
    assert all(torch.equal(weight, weights[name]) for name, weight in head.state_dict().items())


def test_trying_head_and_rule_leaves_the_head_as_it_was():
    class Normalized(nn.Sequential):
        def __init__(self, inputs, outputs):
            super().__init__(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs))

    head = ExpectedHead(4, 3, layer=Normalized)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}

    check_that_they_fit(head, 4, 3, QLearning())

    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_a_rule_that_forgets_to_choose_an_action_is_refused_by_name():
    class Forgetful(TargetRule):
        def __call__(self, transition, online, target):
            return target(transition.next_observation).backup(transition.reward, transition.discount)

    class WrongAxis(TargetRule):
        def __call__(self, transition, online, target):
            return target(transition.next_observation).at(transition.action.argmax(dim=1))

    for rule in (Forgetful(), WrongAxis()):
        with pytest.raises(ValueError, match=r"^model\.head .* and model\.target_rule .* cannot go together"):
            check_that_they_fit(ExpectedHead(4, 3), 4, 3, rule)


@pytest.mark.parametrize("temperature", [0.0, -1.0, torch.nan, torch.inf])
def test_a_temperature_must_be_above_zero_and_finite(temperature):
    with pytest.raises(ValueError, match=r"model\.target_rule\.temperature must be above 0 and finite"):
        MunchausenQLearning(temperature=temperature)
