"""From features to returns."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.distributions import ExpectedReturn
from lightning_dqn.functional import huber_error, squared_error
from lightning_dqn.heads import DuelingStream, ExpectedHead, Head, LinearStream, Stream, fully_connected


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


def test_one_action_and_a_batch_of_one_keep_their_axes():
    assert ExpectedHead(5, 1)(torch.randn(1, 5)).q_values.shape == (1, 1)
    assert ExpectedHead(5, 1)(torch.randn(4, 5)).q_values.shape == (4, 1)


@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
def test_a_head_hands_its_layer_factory_to_its_stream(stream):
    layers = linears(ExpectedHead(5, 3, stream=stream, layer=CountedLinear))

    assert layers
    assert all(type(layer) is CountedLinear for layer in layers)


@pytest.mark.parametrize("stream", [LinearStream, DuelingStream])
def test_returns_are_float32_under_autocast(stream):
    head = ExpectedHead(5, 3, stream=stream)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head.stream(torch.randn(2, 5)).dtype == torch.bfloat16
        assert head(torch.randn(2, 5)).q_values.dtype == torch.float32


def test_returns_of_half_precision_layers_are_float32():
    assert ExpectedHead(5, 3).bfloat16()(torch.randn(2, 5).bfloat16()).q_values.dtype == torch.float32


def test_the_interface_of_heads_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Head()
