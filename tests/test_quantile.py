"""The return as quantiles, at fixed fractions and at drawn ones."""

import math
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn import DQNLightningModule, MLPTorso, ReplayBatch, Transition
from lightning_dqn.functional import cosine_features, quantile_huber_error
from lightning_dqn.learner.heads import DuelingStream, LinearStream
from lightning_dqn.learner.quantile import ImplicitQuantileHead, ImplicitQuantileReturn, QuantileHead, QuantileReturn
from lightning_dqn.learner.targets import DoubleQLearning, MunchausenQLearning, QLearning


def set_linear(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(tensor(weight))
        layer.bias.copy_(tensor(bias))


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


# QuantileReturn


@pytest.fixture
def returns():
    """Three quantiles of two actions for two states."""
    quantiles = tensor([[[0.0, 1.0, 5.0], [3.0, 3.0, 3.0]], [[-1.0, 0.0, 4.0], [6.0, 7.0, 8.0]]])
    return QuantileReturn(quantiles, tensor([1 / 6, 1 / 2, 5 / 6]), 0.5)


def test_q_values_are_the_means_of_the_quantiles(returns):
    assert returns.q_values.tolist() == [[2.0, 3.0], [1.0, 7.0]]


def test_at_gives_the_quantiles_of_one_action_per_row(returns):
    chosen = returns.at(tensor([1, 0]))

    assert chosen.quantiles.tolist() == [[3.0, 3.0, 3.0], [-1.0, 0.0, 4.0]]
    assert chosen.q_values.tolist() == [3.0, 1.0]
    assert chosen.taus is returns.taus
    assert chosen.kappa == 0.5


def test_a_backup_moves_every_quantile(returns):
    # 1 + 0.5 * [0, 1, 5];  terminal, 10
    backed_up = returns.at(tensor([0, 1])).backup(tensor([1.0, 10.0]), tensor([0.5, 0.0]))

    assert backed_up.quantiles.tolist() == [[1.0, 1.5, 3.5], [10.0, 10.0, 10.0]]
    assert backed_up.taus is returns.taus
    assert backed_up.kappa == 0.5


def test_a_mixture_is_the_policys_mean_at_each_fraction(returns):
    # 1/4 ([0, 1, 5] + 4) + 3/4 ([3, 3, 3] - 1);  all of the first action, whose bonus is 2
    mixture = returns.mixture(tensor([[0.25, 0.75], [1.0, 0.0]]), tensor([[4.0, -1.0], [2.0, 0.0]]))

    assert mixture.quantiles.tolist() == [[2.5, 2.75, 3.75], [1.0, 2.0, 6.0]]
    assert mixture.taus is returns.taus
    assert mixture.kappa == 0.5


def test_loss_is_the_quantile_huber_error_with_the_fractions_and_the_kappa_of_the_prediction():
    # differences 1, -1, 4 and -1, -3, 2;  quadratic to 2, then 2 (|d| - 1): 0.5, 0.5, 6 and 0.5, 4, 2
    prediction = QuantileReturn(tensor([[0.0, 2.0]]), tensor([0.25, 0.75]), 2.0)
    target = QuantileReturn(tensor([[1.0, -1.0, 4.0]]), tensor([0.1, 0.2, 0.9]), 7.0)

    expected = (0.125 + 0.375 + 1.5) / 3 + (0.125 + 1.0 + 1.5) / 3
    assert prediction.loss(target).tolist() == pytest.approx([expected])


def test_the_td_error_is_the_loss_without_its_gradient():
    prediction = QuantileReturn(tensor([[0.0, 2.0]], requires_grad=True), tensor([0.25, 0.75]))
    target = QuantileReturn(tensor([[1.0, -1.0]]), tensor([0.25, 0.75]))

    loss = prediction.loss(target)
    td_error = prediction.td_error(target, loss)

    assert loss.requires_grad
    assert not td_error.requires_grad
    assert td_error.tolist() == loss.tolist()
    assert td_error.item() > 0


# QuantileHead


def test_200_quantiles_at_the_midpoints_by_default():
    head = QuantileHead(5, 3)

    returns = head(torch.randn(2, 5))

    assert isinstance(head.stream, LinearStream)
    assert returns.quantiles.shape == (2, 3, 200)
    assert returns.kappa == 1.0
    torch.testing.assert_close(returns.taus, tensor([(2 * i + 1) / 400 for i in range(200)]))


def test_a_quantile_head_hands_out_what_its_stream_says():
    head = QuantileHead(1, 2, num_quantiles=2, kappa=0.0)
    set_linear(linears(head)[0], [[1.0], [2.0], [3.0], [4.0]], [0.0, 0.0, 0.0, 1.0])

    returns = head(tensor([[1.0], [-10.0]]))

    assert returns.quantiles.tolist() == [[[1.0, 2.0], [3.0, 5.0]], [[-10.0, -20.0], [-30.0, -39.0]]]
    assert returns.taus.tolist() == [0.25, 0.75]
    assert returns.kappa == 0.0


def test_dueling_takes_the_mean_over_the_actions_of_each_quantile():
    # values [10, 20], advantages [[0, 4], [2, 0]] with means [1, 2]
    head = QuantileHead(1, 2, DuelingStream, num_quantiles=2)
    value, advantage = linears(head)
    set_linear(value, [[0.0]] * 2, [10.0, 20.0])
    set_linear(advantage, [[0.0]] * 4, [0.0, 4.0, 2.0, 0.0])

    assert head(torch.zeros(1, 1)).quantiles.tolist() == [[[9.0, 22.0], [11.0, 18.0]]]


def test_the_fractions_follow_the_head_but_are_no_weight():
    head = QuantileHead(5, 3, num_quantiles=4)

    assert not any("taus" in name for name in [*dict(head.named_parameters()), *head.state_dict()])
    assert head.to("meta").taus.device.type == "meta"


def test_a_quantile_head_finds_the_quantiles_of_evenly_spread_rewards():
    # uniform on [0, 1]: the quantile of a fraction is the fraction
    torch.manual_seed(0)
    head = QuantileHead(1, 1, num_quantiles=4, kappa=0.0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.2)
    reward = (torch.arange(1000) + 0.5) / 1000

    for _ in range(100):
        prediction = head(torch.ones(1000, 1)).at(torch.zeros(1000, dtype=torch.int64))
        loss = prediction.loss(prediction.backup(reward, torch.zeros(1000))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    quantiles = head(torch.ones(1, 1)).quantiles[0, 0]
    torch.testing.assert_close(quantiles, tensor([1 / 8, 3 / 8, 5 / 8, 7 / 8]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("num_quantiles", [1, 0, math.nan])
def test_fewer_than_two_quantiles_are_refused(num_quantiles):
    with pytest.raises(ValueError, match=r"^model\.head\.num_quantiles must be at least 2"):
        QuantileHead(5, 3, num_quantiles=num_quantiles)


@pytest.mark.parametrize("head", [QuantileHead, ImplicitQuantileHead])
@pytest.mark.parametrize("kappa", [-1.0, math.nan])
def test_a_negative_kappa_is_refused(head, kappa):
    with pytest.raises(ValueError, match=r"^model\.head\.kappa must be at least 0"):
        head(5, 3, kappa=kappa)


# ImplicitQuantileReturn


class Drawn:
    """A made-up quantile function, ``10 a + number of the draw + tau``, that remembers what it was asked."""

    def __init__(self, rows=2):
        self.rows = rows
        self.numbers = []

    def __call__(self, number):
        self.numbers.append(number)
        taus = torch.arange(float(number)).expand(self.rows, number) / number
        quantiles = tensor([[[0.0], [10.0]]]) + len(self.numbers) + taus.unsqueeze(1)
        return QuantileReturn(quantiles, taus, 1.0)


def implicit(drawn):
    return ImplicitQuantileReturn(drawn, num_samples=3, num_target_samples=4, num_policy_samples=2)


def test_q_values_are_means_over_the_fractions_of_a_policy_drawn_anew_every_time():
    returns = implicit(Drawn())

    # 1 + mean(0, 1/2), then 2 + mean(0, 1/2)
    assert returns.q_values.tolist() == [[1.25, 11.25]] * 2
    assert returns.q_values.tolist() == [[2.25, 12.25]] * 2
    assert returns.draw.numbers == [2, 2]


def test_a_backup_asks_for_the_fractions_of_a_target():
    returns = implicit(Drawn())

    backed_up = returns.at(tensor([1, 0])).backup(tensor([100.0, 200.0]), tensor([1.0, 2.0]))

    assert returns.draw.numbers == [4]
    assert backed_up.quantiles.tolist() == [[111.0, 111.25, 111.5, 111.75], [202.0, 202.5, 203.0, 203.5]]


def test_a_mixture_asks_for_the_fractions_of_a_target():
    returns = implicit(Drawn())

    mixture = returns.mixture(tensor([[0.5, 0.5], [1.0, 0.0]]), tensor([[2.0, -1.0], [0.0, 0.0]]))

    # 1/2 (1 + tau + 2) + 1/2 (11 + tau - 1)
    assert returns.draw.numbers == [4]
    assert mixture.quantiles.tolist() == [[6.5, 6.75, 7.0, 7.25], [1.0, 1.25, 1.5, 1.75]]


def test_a_prediction_is_drawn_once_for_its_loss_its_mean_and_its_priority():
    returns = implicit(Drawn())
    target = QuantileReturn(tensor([[0.0, 0.5, 3.0], [11.0, 12.0, 13.0]]), tensor([0.5]))

    chosen = returns.at(tensor([0, 1]))
    loss = chosen.loss(target)
    again = chosen.loss(target)
    td_error = chosen.td_error(target, loss)
    q_values = chosen.q_values

    assert returns.draw.numbers == [3]
    quantiles = tensor([[1.0, 4 / 3, 5 / 3], [11.0, 11 + 1 / 3, 11 + 2 / 3]])
    taus = tensor([0.0, 1 / 3, 2 / 3])
    torch.testing.assert_close(loss, quantile_huber_error(quantiles, taus, target.quantiles))
    assert torch.equal(loss, again)
    assert torch.equal(td_error, loss)
    torch.testing.assert_close(q_values, quantiles.mean(dim=1))


def test_nothing_is_drawn_before_it_is_asked():
    drawn = Drawn()

    implicit(drawn).at(tensor([0, 1]))

    assert drawn.numbers == []


# ImplicitQuantileHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    sizes = {"num_samples": 5, "num_target_samples": 7, "num_policy_samples": 3, "num_cosines": 6}
    return ImplicitQuantileHead(4, 2, **sizes, kappa=0.5)


def test_the_embedding_of_the_fraction_is_multiplied_into_the_features():
    # relu(1 + cos(pi tau)) is 2, 1 and 0 for the fractions 0, 1/2 and 1; the second action is worth 10 times as much
    head = ImplicitQuantileHead(1, 2, num_cosines=2)
    embedding, stream = linears(head)
    set_linear(embedding, [[1.0, 1.0]], [0.0])
    set_linear(stream, [[1.0], [10.0]], [0.0, 1.0])

    quantiles = head.quantiles(tensor([[3.0], [-1.0]]), tensor([[0.0, 0.5, 1.0], [1.0, 1.0, 0.0]]))

    expected = [[[6.0, 3.0, 0.0], [61.0, 31.0, 1.0]], [[0.0, 0.0, -2.0], [1.0, 1.0, -19.0]]]
    torch.testing.assert_close(quantiles, tensor(expected))


def test_the_embedding_ends_in_a_relu():
    # cos(pi tau) is 1, 0 and -1
    head = ImplicitQuantileHead(1, 2, num_cosines=2)
    embedding, stream = linears(head)
    set_linear(embedding, [[0.0, 1.0]], [0.0])
    set_linear(stream, [[1.0], [1.0]], [0.0, 0.0])

    quantiles = head.quantiles(tensor([[1.0]]), tensor([[0.0, 0.5, 1.0]]))

    torch.testing.assert_close(quantiles, tensor([[[1.0, 0.0, 0.0]] * 2]))


@pytest.mark.parametrize("stream", [LinearStream, partial(DuelingStream, hidden_sizes=[3])])
def test_the_quantiles_equal_the_loop_over_states_and_fractions(stream):
    torch.manual_seed(0)
    head = ImplicitQuantileHead(4, 2, stream, num_cosines=6)
    features, taus = torch.randn(3, 4), torch.rand(3, 5)

    quantiles = head.quantiles(features, taus)

    assert quantiles.shape == (3, 2, 5)
    for b in range(3):
        for j in range(5):
            cosines = tensor([math.cos(math.pi * i * taus[b, j].item()) for i in range(6)])
            embedded = torch.relu(linears(head)[0](cosines))
            expected = head.stream((features[b] * embedded).unsqueeze(0)).flatten()
            torch.testing.assert_close(quantiles[b, :, j], expected)


def test_the_embedding_sees_the_cosines_of_the_fractions(head):
    seen = []
    head.embedding.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    taus = tensor([[0.0, 0.3], [1.0, 0.9]])

    head.quantiles(torch.randn(2, 4), taus)

    assert torch.equal(seen[0], cosine_features(taus, 6))
    assert seen[0][0, 0].tolist() == [1.0] * 6
    assert seen[0][..., 0].tolist() == [[1.0, 1.0]] * 2


def test_numbers_of_fractions_by_default():
    head = ImplicitQuantileHead(5, 3)

    returns = head(torch.randn(2, 5))

    assert (returns.num_samples, returns.num_target_samples, returns.num_policy_samples) == (64, 64, 32)
    assert returns.prediction.quantiles.shape == (2, 3, 64)
    assert returns.prediction.kappa == 1.0
    assert head.embedding[0].in_features == 64


def test_dueling_takes_the_mean_over_the_actions_at_each_fraction():
    # relu(1 + cos(pi tau)) times a value of 10 and advantages of 1 and 5: 10 + [-2, 2]
    head = ImplicitQuantileHead(1, 2, DuelingStream, num_cosines=2)
    embedding, value, advantage = linears(head)
    set_linear(embedding, [[1.0, 1.0]], [0.0])
    set_linear(value, [[10.0]], [0.0])
    set_linear(advantage, [[1.0], [5.0]], [0.0, 0.0])

    quantiles = head.quantiles(torch.ones(1, 1), tensor([[0.0, 0.5, 1.0]]))

    torch.testing.assert_close(quantiles, tensor([[[16.0, 8.0, 0.0], [24.0, 12.0, 0.0]]]))


def test_in_training_mode_every_draw_and_row_has_random_fractions_of_its_own(head):
    returns = head(torch.randn(50, 4))

    taus = torch.cat([returns.draw(20).taus.flatten(), returns.draw(20).taus.flatten()])

    assert len(taus.unique()) > 1990  # among 2000 float32 numbers in [0, 1) two may coincide
    assert taus.min() >= 0
    assert taus.max() < 1
    assert taus.mean().item() == pytest.approx(0.5, abs=0.03)
    assert taus.var().item() == pytest.approx(1 / 12, abs=0.01)


def test_in_evaluation_mode_the_fractions_are_evenly_spaced_and_no_random_number_is_drawn(head):
    head.eval()
    features, before = torch.randn(2, 4), torch.get_rng_state()

    first, second = head(features), head(features)

    torch.testing.assert_close(first.draw(4).taus, tensor([[0.125, 0.375, 0.625, 0.875]] * 2))
    assert torch.equal(first.q_values, second.q_values)
    assert torch.equal(torch.get_rng_state(), before)
    midpoints = tensor([[1 / 6, 1 / 2, 5 / 6]] * 2)
    torch.testing.assert_close(first.q_values, head.quantiles(features, midpoints).mean(dim=2))


def test_the_loss_carries_the_drawn_fractions_and_kappa(head):
    # kappa 0.5: the loss is not the one of kappa 1
    returns = head(torch.randn(3, 4)).at(tensor([0, 1, 1]))
    target = QuantileReturn(3 * torch.randn(3, 7), torch.rand(3, 7))
    prediction = returns.prediction

    expected = quantile_huber_error(prediction.quantiles, prediction.taus, target.quantiles, 0.5)

    assert prediction.taus.shape == (3, 5)
    assert torch.equal(returns.loss(target), expected)


def test_an_implicit_quantile_head_finds_the_quantile_function_of_evenly_spread_rewards():
    # uniform on [0, 1]: the quantile function is the identity
    torch.manual_seed(0)
    head = ImplicitQuantileHead(16, 1, num_samples=32, kappa=0.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    action, features = torch.zeros(32, dtype=torch.int64), torch.ones(32, 16)
    reward = (torch.arange(32) + 0.5) / 32

    for _ in range(300):
        loss = head(features).at(action).loss(QuantileReturn(reward.expand(32, 32), reward)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    taus = torch.linspace(0.1, 0.9, 9).unsqueeze(0)
    quantiles = head.quantiles(torch.ones(1, 16), taus)[:, 0]
    torch.testing.assert_close(quantiles, taus, rtol=0, atol=0.06)


@pytest.mark.parametrize("field", ["num_samples", "num_target_samples", "num_policy_samples", "num_cosines"])
@pytest.mark.parametrize("number", [1, 0, math.nan])
def test_fewer_than_two_fractions_or_cosines_are_refused(field, number):
    with pytest.raises(ValueError, match=rf"^model\.head\.{field} must be at least 2"):
        ImplicitQuantileHead(5, 3, **{field: number})


# what a training step asks of the networks


class SpiedHead(ImplicitQuantileHead):
    """Writes down who was asked for which fractions of what."""

    asked: list = []

    def quantiles(self, features, taus):
        self.asked.append((self.name, features, taus))
        return super().quantiles(features, taus)


ROWS, FEATURES = 6, 4


@pytest.fixture
def spied_model(monkeypatch):
    """A module whose online network asks for 5, target network for 7 and policy for 3 fractions."""

    def make(rule, **sizes):
        sizes = {"num_samples": 5, "num_target_samples": 7, "num_policy_samples": 3} | sizes
        monkeypatch.setattr(SpiedHead, "name", "check", raising=False)
        torch.manual_seed(0)
        model = DQNLightningModule(
            [FEATURES], 2, partial(MLPTorso, hidden_sizes=()), partial(SpiedHead, **sizes), target_rule=rule
        )
        model.online.head.name, model.target.head.name = "online", "target"
        monkeypatch.setattr(SpiedHead, "asked", [])
        return model

    return make


def learn(model):
    generator = torch.Generator().manual_seed(0)
    number = torch.rand(1, ROWS, generator=generator)
    transition = Transition(
        torch.randn(1, ROWS, FEATURES, generator=generator),
        torch.randint(2, (1, ROWS), generator=generator),
        number,
        0.9 * number,
        torch.randn(1, ROWS, FEATURES, generator=generator),
    )
    batch = ReplayBatch(transition, torch.zeros(1, ROWS, dtype=torch.int64), number + 0.1)
    model.on_train_batch_start(batch, 0)
    outputs = model.training_step(batch, 0)
    seen = {"now": transition.observation[0], "next": transition.next_observation[0]}
    asked = [
        (name, next(when for when, x in seen.items() if torch.equal(x, features)), *taus.shape)
        for name, features, taus in SpiedHead.asked
    ]
    return outputs, sorted(asked)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (QLearning(), [("online", "now", ROWS, 5), ("target", "next", ROWS, 3), ("target", "next", ROWS, 7)]),
        (DoubleQLearning(), [("online", "next", ROWS, 3), ("online", "now", ROWS, 5), ("target", "next", ROWS, 7)]),
        (
            MunchausenQLearning(),
            [
                ("online", "now", ROWS, 5),
                ("target", "next", ROWS, 3),
                ("target", "next", ROWS, 7),
                ("target", "now", ROWS, 3),
            ],
        ),
    ],
)
def test_a_training_step_asks_for_each_purpose_once_with_its_own_number_of_fractions(spied_model, rule, expected):
    _, asked = learn(spied_model(rule))

    assert asked == expected


@pytest.mark.parametrize(("rule", "draws"), [(QLearning(), 3), (DoubleQLearning(), 3), (MunchausenQLearning(), 4)])
def test_choosing_and_valuing_have_fractions_of_their_own(spied_model, rule, draws):
    # of equal number, so that a draw could be used twice
    learn(spied_model(rule, num_samples=4, num_target_samples=4, num_policy_samples=4))

    taus = torch.stack([taus for _, _, taus in SpiedHead.asked])

    assert taus.shape == (draws, ROWS, 4)
    assert len(taus.flatten().unique()) == taus.numel()


def test_acting_asks_for_the_fractions_of_a_policy(spied_model):
    model = spied_model(QLearning())
    observation = torch.randn(ROWS, FEATURES)

    model.act(observation)
    model.eval()
    model.act(observation)

    (acting, _, random), (evaluating, _, even) = SpiedHead.asked
    assert acting == evaluating == "online"
    assert random.shape == (ROWS, 3)
    assert len(random.unique()) == 3 * ROWS
    torch.testing.assert_close(even, tensor([[1 / 6, 1 / 2, 5 / 6]] * ROWS))


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning(), MunchausenQLearning()])
def test_priorities_are_the_losses_of_the_very_draw_that_is_learned_from(spied_model, rule):
    outputs, _ = learn(spied_model(rule))

    weight = torch.rand(1, ROWS, generator=torch.Generator().manual_seed(0)) + 0.1
    (td_error,) = outputs["td_error"]
    torch.testing.assert_close(outputs["loss"].detach(), (weight[0] * td_error).mean())
