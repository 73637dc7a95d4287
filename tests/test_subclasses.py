"""A subclass of a shipped return, explorer or record keeps its type, its own methods and its own fields."""

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn, tensor
from torch.utils.data import DataLoader

from lightning_dqn import (
    DoubleQLearning,
    DQNLightningModule,
    EpsilonLadder,
    Head,
    MLPTorso,
    MunchausenQLearning,
    QLearning,
    ReplayBatch,
    Transition,
)
from lightning_dqn.learner.categorical import CategoricalReturn
from lightning_dqn.learner.distributions import ExpectedReturn
from lightning_dqn.learner.quantile import ImplicitQuantileReturn, QuantileReturn
from lightning_dqn.learner.targets import check_that_they_fit

RULES = [QLearning(), DoubleQLearning(), MunchausenQLearning()]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


@dataclass(frozen=True)
class ScaledReturn(ExpectedReturn):
    """A mean whose loss is a multiple of the absolute error."""

    scale: float = 1.0

    def loss(self, target):
        assert target.scale == self.scale
        return self.scale * (self.values - target.values).abs()


@dataclass(frozen=True)
class ExpectileReturn(QuantileReturn):
    """Quantiles that are trained with the squared error of one expectile."""

    expectile: float = 0.5

    def loss(self, target):
        assert target.expectile == self.expectile
        difference = target.quantiles.unsqueeze(1) - self.quantiles.unsqueeze(2)
        weight = (self.expectile - (difference < 0).float()).abs()
        return (weight * difference**2).mean(dim=(1, 2))


@dataclass(frozen=True)
class SquaredReturn(CategoricalReturn):
    """Probabilities that are trained with a multiple of the squared error of probabilities on the atoms 0, 1 and 2."""

    scale: float = 1.0

    def loss(self, target):
        assert target.scale == self.scale
        # a hat of width 1 around each atom
        shares = (1 - (target.atoms.unsqueeze(1) - self.atoms.unsqueeze(1)).abs()).clamp(min=0)
        projected = (shares * target.log_probabilities.exp().unsqueeze(1)).sum(dim=2)
        return self.scale * (self.log_probabilities.exp() - projected).square().sum(dim=1)


@dataclass(frozen=True)
class MeanReturn(ImplicitQuantileReturn):
    """A quantile function of which the mean alone is trained, with a multiple of the squared error."""

    scale: float = 1.0

    def loss(self, target):
        return self.scale * (self.q_values - target.q_values).square()


class ConstantHead(Head):
    """A head of one action whose numbers, the same in every state, are its parameters."""

    def __init__(self, num_features, num_actions, numbers, make):
        super().__init__()
        self.numbers = nn.Parameter(tensor(numbers))
        self.make = make

    def forward(self, features):
        return self.make(self.numbers.expand(len(features), 1, -1))


TAUS, ATOMS = tensor([0.25, 0.75]), tensor([0.0, 1.0, 2.0])


def scaled(numbers):
    return ScaledReturn(numbers.squeeze(2), scale=4.0)


def expectile(numbers):
    return ExpectileReturn(numbers, TAUS, expectile=0.9)


def squared(numbers):
    return SquaredReturn(numbers.log_softmax(dim=2), ATOMS, scale=3.0)


def mean(numbers):
    return MeanReturn(lambda number: QuantileReturn(numbers, TAUS), 2, 2, 2, scale=4.0)


# The reward is 1 and the discount 0.5, and with one action every rule has the same target.
# kind: (make, numbers, loss, learned numbers); the learning rate is 1
BY_HAND = {
    # |4 - (1 + 0.5 * 4)| = 1, four times; the gradient is 4
    "expected": (scaled, [4.0], 4.0, [0.0]),
    # targets 1 and 2: (0.9 * 1^2 + 0.9 * 2^2 + 0.1 * 1^2 + 0.1 * 0^2) / 4;
    # gradients -2 * 0.9 * (1 + 2) / 4 = -1.35 and 2 * 0.1 * 1 / 4 = 0.05
    "quantile": (expectile, [0.0, 2.0], 1.15, [1.35, 1.95]),
    # probabilities 1/4, 1/2, 1/4 move to 1, 1.5, 2: on the atoms they are 0, 1/2, 1/2; three times 1/16 + 0 + 1/16;
    # p_i (g_i - sum_j p_j g_j) with g = 3 * 2 * (1/4, 0, -1/4), whose mean under p is 0: gradients 0.375, 0 and -0.375
    "categorical": (squared, [0.0, float(np.log(2)), 0.0], 0.375, [-0.375, float(np.log(2)), 0.375]),
    # the mean is 1 and its target 1.5: four times 0.25; the gradient of each quantile is 4 * 2 * -0.5 / 2 = -2
    "implicit": (mean, [0.0, 2.0], 1.0, [2.0, 4.0]),
}
every_kind = pytest.mark.parametrize("kind", BY_HAND)


@every_rule
@every_kind
def test_update_of_a_subclass_minimises_its_own_loss(kind, rule, make_trainer):
    make, numbers, loss, learned = BY_HAND[kind]
    ones = torch.ones(1, 2)
    action = torch.zeros(1, 2, dtype=torch.int64)
    transition = Transition(torch.zeros(1, 2, 3), action, ones, 0.5 * ones, torch.zeros(1, 2, 3))
    model = DQNLightningModule(
        [3],
        1,
        torso=partial(MLPTorso, hidden_sizes=(2,)),
        head=partial(ConstantHead, numbers=numbers, make=make),
        target_rule=rule,
        optimizer=partial(torch.optim.SGD, lr=1.0),
    )
    trainer = make_trainer(log_every_n_steps=1)

    trainer.fit(model, DataLoader([ReplayBatch(transition, action, ones)], batch_size=None))

    assert model.gradient_steps == 1
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(loss)
    assert model.online.head.numbers.tolist() == pytest.approx(learned, abs=1e-6)


@every_kind
def test_results_of_a_subclass_have_its_type_and_fields(kind):
    make, numbers, *_ = BY_HAND[kind]
    returns = make(tensor(numbers).expand(2, 3, -1))
    own = [name for name in ("scale", "expectile") if hasattr(returns, name)]
    chosen = returns.at(tensor([0, 2]))
    results = [chosen]
    if kind != "implicit":  # whose targets are quantiles, by design
        results += [
            chosen.backup(torch.ones(2), torch.ones(2)),
            returns.mixture(torch.full((2, 3), 1 / 3), torch.zeros(2, 3)),
        ]
    for result in results:
        assert type(result) is type(returns)
        assert [getattr(result, name) for name in own] == [getattr(returns, name) for name in own] != [1.0]


def test_implicit_return_of_one_action_keeps_what_a_subclass_overrides():
    @dataclass(frozen=True)
    class LowestReturn(ImplicitQuantileReturn):
        @property
        def q_values(self):
            return self.draw(self.num_policy_samples).quantiles.amin(dim=-1)

    quantiles = QuantileReturn(tensor([[[1.0, 5.0], [2.0, 3.0]]]), TAUS)

    chosen = LowestReturn(lambda number: quantiles, 2, 2, 2).at(tensor([1]))

    assert chosen.q_values.tolist() == [2.0]


# -- the check at set-up -----------------------------------------------------------------------------------------------


class LosingAt(ExpectileReturn):
    def at(self, action):
        return QuantileReturn(super().at(action).quantiles, self.taus, self.kappa)


class LosingBackup(ExpectileReturn):
    def backup(self, reward, discount):
        return ExpectileReturn(super().backup(reward, discount).quantiles, self.taus, self.kappa)


class LosingMixture(ExpectileReturn):
    def mixture(self, policy, bonus):
        return QuantileReturn(super().mixture(policy, bonus).quantiles, self.taus, self.kappa)


@pytest.mark.parametrize(
    ("kind", "method", "parent"),
    [
        (LosingAt, "at", "QuantileReturn"),
        (LosingBackup, "backup", "ExpectileReturn"),
        (LosingMixture, "mixture", "QuantileReturn"),
    ],
)
def test_set_up_with_a_method_that_loses_the_subclass_is_refused(kind, method, parent):
    head = partial(ConstantHead, numbers=[0.0, 2.0], make=lambda numbers: kind(numbers, TAUS, expectile=0.9))

    with pytest.raises(ValueError, match=r"^model\.head: ") as refused:
        DQNLightningModule([3], 1, head=head, target_rule=MunchausenQLearning())

    assert str(refused.value) == (
        f"model.head: {kind.__name__}.{method} must return its own type (got its parent {parent}, whose methods would "
        "replace its own). Build the result with dataclasses.replace(self, ...)."
    )


@pytest.mark.parametrize("field_of", ["init=False", "no dataclass"])
def test_set_up_with_a_field_that_cannot_be_copied_is_refused_in_one_line(field_of):
    @dataclass(frozen=True)
    class Computed(ExpectedReturn):
        more: int = field(init=False)

        def at(self, action):
            return replace(self, values=self.values[:, 0], more=3)

    class Plain(ExpectedReturn):
        def __init__(self, means):
            super().__init__(means)

    kind = Computed if field_of == "init=False" else Plain
    head = ConstantHead(3, 1, [4.0], lambda numbers: kind(numbers.squeeze(2)))

    with pytest.raises(ValueError, match=r"^model\.head \(ConstantHead\) and model\.target_rule .*: [^\n]+$"):
        check_that_they_fit(head, 3, 1, QLearning())


def test_set_up_with_results_of_another_kind_is_taken():
    """A return may regress its prediction on a return of another class, as quantile functions do on quantiles."""

    @dataclass(frozen=True)
    class Narrowed(ExpectedReturn):
        def backup(self, reward, discount):
            return MeanTarget(reward + discount * self.values)

    @dataclass(frozen=True)
    class MeanTarget(ExpectedReturn):
        pass

    for rule in (QLearning(), DoubleQLearning()):
        check_that_they_fit(ConstantHead(3, 1, [4.0], lambda numbers: Narrowed(numbers.squeeze(2))), 3, 1, rule)


# -- brothers ----------------------------------------------------------------------------------------------------------


def test_share_of_a_ladder_subclass_keeps_its_type_and_attributes():
    class HalvedLadder(EpsilonLadder):
        def __init__(self, factor):
            super().__init__(0.4, 7.0)
            self.factor = factor

        def epsilons(self, num_envs):
            return self.factor * super().epsilons(num_envs)

    shares = [HalvedLadder(0.5).share(index, 2).epsilons(1) for index in range(2)]

    assert np.concatenate(shares).tolist() == pytest.approx([0.5 * 0.4, 0.5 * 0.4**8])


def test_records_of_a_subclass_keep_their_type():
    class Marked(Transition):
        @property
        def is_terminal(self):
            return self.discount == 0

    class MarkedBatch(ReplayBatch):
        pass

    ones = torch.ones(1, 2)
    batch = MarkedBatch(Marked(ones, ones, ones, ones, ones), ones, ones)

    assert type(batch.transition.map(lambda field: field[0])) is Marked
    moved = batch.to(torch.device("meta"))
    assert type(moved) is MarkedBatch
    assert type(moved.transition) is Marked
