"""From features to returns."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.functional import huber_error, squared_error
from lightning_dqn.learner.categorical import CategoricalHead, CategoricalReturn
from lightning_dqn.learner.distributions import ExpectedReturn
from lightning_dqn.learner.heads import (
    MOST,
    DuelingStream,
    ExpectedHead,
    Head,
    LinearStream,
    Stream,
    check_at_least,
    fully_connected,
)
from lightning_dqn.learner.noisy import NoisyLinear
from lightning_dqn.learner.quantile import ImplicitQuantileHead, ImplicitQuantileReturn, QuantileHead, QuantileReturn

HEADS = {
    "expected": (ExpectedHead, ExpectedReturn),
    "categorical": (partial(CategoricalHead, num_atoms=6, v_min=-2.0, v_max=3.0), CategoricalReturn),
    "quantile": (partial(QuantileHead, num_quantiles=6), QuantileReturn),
    "implicit": (partial(ImplicitQuantileHead, num_samples=6, num_cosines=4), ImplicitQuantileReturn),
}
every_head = pytest.mark.parametrize(("head", "kind"), HEADS.values(), ids=HEADS)
every_stream = pytest.mark.parametrize(
    "stream", [LinearStream, DuelingStream, partial(DuelingStream, hidden_sizes=[8])]
)
every_layer = pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear, partial(NoisyLinear, sigma=0.1)])


class CountedLinear(nn.Linear):
    """A layer that can be told from an ordinary one."""


def linears(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def sizes(module):
    return [(layer.in_features, layer.out_features) for layer in linears(module)]


def set_linear(layer, weight, bias):
    with torch.no_grad():
        layer.weight.copy_(tensor(weight))
        layer.bias.copy_(tensor(bias))


# fully_connected


@pytest.mark.parametrize(
    ("layer_sizes", "kinds"),
    [
        ([3], []),
        ([3, 2], [nn.Linear]),
        ([3, 4, 2], [nn.Linear, nn.ReLU, nn.Linear]),
        ([3, 4, 5, 2], [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]),
    ],
)
def test_a_relu_stands_between_layers_and_not_after_the_last(layer_sizes, kinds):
    layers = fully_connected(layer_sizes)

    assert [type(layer) for layer in layers] == kinds
    assert sizes(layers) == list(itertools.pairwise(layer_sizes))


# streams


@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
@pytest.mark.parametrize("hidden_sizes", [(), (7,), (7, 9)])
@pytest.mark.parametrize("numbers_per_action", [1, 4])
def test_streams_give_every_action_its_numbers(stream, hidden_sizes, numbers_per_action):
    made = stream(5, 3, numbers_per_action, hidden_sizes=hidden_sizes)

    assert made(torch.randn(2, 5)).shape == (2, 3, numbers_per_action)


def test_layers_of_a_linear_stream():
    assert sizes(LinearStream(5, 3, 4)) == [(5, 12)]
    assert sizes(LinearStream(5, 3, 4, hidden_sizes=[7, 9])) == [(5, 7), (7, 9), (9, 12)]


def test_layers_of_a_dueling_stream():
    plain, deep = DuelingStream(5, 3, 4), DuelingStream(5, 3, 4, hidden_sizes=[7])

    assert sizes(plain.value) == [(5, 4)]
    assert sizes(plain.advantage) == [(5, 12)]
    assert sizes(deep.value) == [(5, 7), (7, 4)]
    assert sizes(deep.advantage) == [(5, 7), (7, 12)]


def test_a_linear_stream_lays_out_the_numbers_action_by_action():
    stream = LinearStream(1, 3, 2)
    set_linear(stream.layers[0], [[0.0]] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])

    assert stream(torch.zeros(1, 1)).tolist() == [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]]


def test_a_dueling_stream_centres_its_advantages():
    # V = 10 x, A = [1, 2, 6] x with mean 3 x: Q = [8, 9, 13] x, of each row alone
    stream = DuelingStream(1, 3, 1)
    set_linear(stream.value[0], [[10.0]], [0.0])
    set_linear(stream.advantage[0], [[1.0], [2.0], [6.0]], [0.0, 0.0, 0.0])

    assert stream(tensor([[1.0], [-2.0]])).squeeze(-1).tolist() == [[8.0, 9.0, 13.0], [-16.0, -18.0, -26.0]]


def test_a_dueling_stream_lays_out_the_numbers_action_by_action():
    # advantages [0 1] [2 3] [4 5] with means [2 3], on top of the values [10 20]
    stream = DuelingStream(1, 3, 2)
    set_linear(stream.value[0], [[0.0]] * 2, [10.0, 20.0])
    set_linear(stream.advantage[0], [[0.0]] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])

    assert stream(torch.zeros(1, 1)).tolist() == [[[8.0, 18.0], [10.0, 20.0], [12.0, 22.0]]]


@pytest.mark.parametrize("numbers_per_action", [1, 4])
def test_the_mean_over_actions_is_the_value_stream(numbers_per_action):
    torch.manual_seed(0)
    stream = DuelingStream(5, 3, numbers_per_action, hidden_sizes=[8])
    features = torch.randn(6, 5)

    torch.testing.assert_close(stream(features).mean(dim=1), stream.value(features))


@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
def test_streams_keep_samples_apart(stream):
    torch.manual_seed(0)
    made = stream(5, 3, 2, hidden_sizes=[8]).double()
    features = torch.randn(6, 5).double()

    whole, single = made(features), torch.cat([made(row) for row in features.split(1)])

    torch.testing.assert_close(whole, single, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("stream", "count"), [(LinearStream, 2), (DuelingStream, 4)])
def test_every_layer_comes_from_the_factory(stream, count):
    made = stream(5, 3, 1, CountedLinear, hidden_sizes=[7])

    assert [type(layer) for layer in linears(made)] == [CountedLinear] * count


def test_the_interface_of_streams_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Stream(3, 1)


# heads


def test_an_expected_head_is_linear_with_a_huber_error_by_default():
    head = ExpectedHead(5, 3)

    returns = head(torch.randn(2, 5))

    assert isinstance(head.stream, LinearStream)
    assert isinstance(returns, ExpectedReturn)
    assert returns.q_values.shape == (2, 3)
    assert returns.error is huber_error


def test_an_expected_head_hands_out_what_its_stream_says():
    torch.manual_seed(0)
    head = ExpectedHead(5, 3, stream=partial(DuelingStream, hidden_sizes=[8]), loss=squared_error)
    features = torch.randn(2, 5)

    returns = head(features)

    assert torch.equal(returns.q_values, head.stream(features).squeeze(-1))
    assert returns.error is squared_error
    assert sizes(head.stream.value) == [(5, 8), (8, 1)]


@every_head
@every_stream
@every_layer
@pytest.mark.parametrize(("rows", "num_actions"), [(7, 3), (1, 3), (4, 1), (1, 1)])
def test_every_head_gives_returns_of_its_kind_for_every_action(head, kind, stream, layer, rows, num_actions):
    returns = head(5, num_actions, stream=stream, layer=layer)(torch.randn(rows, 5))

    assert type(returns) is kind
    assert returns.q_values.shape == (rows, num_actions)
    assert returns.q_values.dtype == torch.float32
    chosen = returns.at(torch.zeros(rows, dtype=torch.int64))
    assert isinstance(chosen, kind)
    assert chosen.q_values.shape == (rows,)
    backed_up = chosen.backup(torch.ones(rows), torch.ones(rows))
    assert backed_up.q_values.shape == (rows,)
    assert chosen.loss(backed_up).shape == (rows,)
    mixture = returns.mixture(torch.full((rows, num_actions), 1 / num_actions), torch.zeros(rows, num_actions))
    assert mixture.q_values.shape == (rows,)


@every_head
@every_stream
@every_layer
def test_the_loss_has_a_gradient_for_every_parameter(head, kind, stream, layer):
    torch.manual_seed(0)
    made = head(5, 3, stream=stream, layer=layer)
    features, action = torch.randn(12, 5), torch.arange(12) % 3
    with torch.no_grad():
        target = made(torch.randn(12, 5)).at(action).backup(torch.randn(12), torch.full((12,), 0.9))

    made(features).at(action).loss(target).mean().backward()

    parameters = dict(made.named_parameters())
    assert len(parameters) >= 2
    assert [name for name, parameter in parameters.items() if parameter.grad.abs().sum() == 0] == []
    # a hidden unit may be dead, but every number of every action has its part in the loss
    last = [
        parameter for name, parameter in parameters.items() if "stream" in name and parameter.shape[0] in (1, 3, 6, 18)
    ]
    assert len(last) >= 2
    assert all((parameter.grad != 0).any(dim=-1).all() for parameter in last)


@every_head
def test_the_return_of_an_action_is_about_that_action_alone(head, kind):
    torch.manual_seed(0)
    made = head(5, 3).eval()
    features, action = torch.randn(2, 5), torch.tensor([2, 0])

    made(features).at(action).q_values.sum().backward()

    (last,) = linears(made.stream)
    rows_of_actions = last.weight.grad.unflatten(0, (3, -1)).abs().sum(dim=(1, 2))
    assert rows_of_actions[1] == 0
    assert rows_of_actions[0] > 0
    assert rows_of_actions[2] > 0


@every_head
@every_layer
@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
def test_in_evaluation_mode_every_head_repeats_itself(head, kind, stream, layer):
    made, features = head(5, 3, stream=stream, layer=layer).eval(), torch.randn(2, 5)

    assert torch.equal(made(features).q_values, made(features).q_values)


@every_head
@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
def test_a_head_hands_its_layer_factory_to_its_stream(head, kind, stream):
    layers = linears(head(5, 3, stream=stream, layer=CountedLinear).stream)

    assert layers
    assert all(type(layer) is CountedLinear for layer in layers)


@every_head
@every_stream
@every_layer
def test_returns_are_float32_under_autocast(head, kind, stream, layer):
    made = head(5, 3, stream=stream, layer=layer)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        returns = made(torch.randn(2, 5))
        if kind is ImplicitQuantileReturn:
            returns = returns.prediction
        assert made.stream(torch.randn(2, 5)).dtype == torch.bfloat16
        assert returns.q_values.dtype == torch.float32
    assert {part.dtype for part in vars(returns).values() if isinstance(part, torch.Tensor)} == {torch.float32}


def test_returns_of_half_precision_layers_are_float32():
    assert ExpectedHead(5, 3).bfloat16()(torch.randn(2, 5).bfloat16()).q_values.dtype == torch.float32


@pytest.mark.parametrize("value", [1, -5.0, float("nan")])
def test_what_is_too_small_is_refused_by_name(value):
    check_at_least(2, num_atoms=2, num_quantiles=3)
    with pytest.raises(ValueError, match=rf"^model\.head\.num_atoms must be at least 2, got {value}$"):
        check_at_least(2, num_quantiles=3, num_atoms=value)


@pytest.mark.parametrize("value", [100_001, 10**30])
def test_what_is_too_large_is_refused_by_name(value):
    check_at_least(2, MOST, num_atoms=100_000)
    with pytest.raises(ValueError, match=rf"^model\.head\.num_atoms must be at most 100,000, got {value}$"):
        check_at_least(2, MOST, num_atoms=value)
    with pytest.raises(ValueError, match=r"^model\.head\.num_atoms must be at most 100,000"):
        CategoricalHead(4, 2, num_atoms=value)
    with pytest.raises(ValueError, match=r"^model\.head\.num_quantiles must be at most 100,000"):
        QuantileHead(4, 2, num_quantiles=value)
    with pytest.raises(ValueError, match=r"^model\.head\.num_cosines must be at most 100,000"):
        ImplicitQuantileHead(4, 2, num_cosines=value)


def test_the_interface_of_heads_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Head()


def test_an_infinite_threshold_is_refused():
    with pytest.raises(ValueError, match=r"model\.head\.kappa must be finite"):
        QuantileHead(4, 3, kappa=float("inf"))
