"""Torsos, and the network made of a torso and a head."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.learner.categorical import CategoricalHead
from lightning_dqn.learner.convolutions import NatureTorso
from lightning_dqn.learner.heads import DuelingStream, ExpectedHead, LinearStream
from lightning_dqn.learner.networks import MLPTorso, QNetwork, QValues, Torso
from lightning_dqn.learner.noisy import NoisyLinear
from lightning_dqn.learner.quantile import ImplicitQuantileHead, QuantileHead


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# MLPTorso


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (3, 2, 2), [5]])
def test_an_mlp_takes_observations_of_any_shape(shape):
    torso = MLPTorso(shape, hidden_sizes=(7,))

    assert torso.num_features == 7
    assert torso(torch.randn(5, *shape)).shape == (5, 7)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float16, torch.float64])
def test_an_mlp_takes_observations_of_any_dtype(dtype):
    torso = MLPTorso((3,), hidden_sizes=(7,))
    observation = tensor([[0, 1, 1], [1, 0, 1]])

    features = torso(observation.to(dtype))

    assert features.dtype == torch.float32
    assert torch.equal(features, torso(observation.float()))


def test_an_mlp_does_not_rescale_its_input():
    torso = MLPTorso((1,), hidden_sizes=())

    assert torso(tensor([[255]], dtype=torch.uint8)).tolist() == [[255.0]]


def test_an_mlp_ends_in_a_relu():
    torch.manual_seed(0)
    torso = MLPTorso((4,), hidden_sizes=(8, 6))

    kinds = [type(layer) for layer in torso.modules() if isinstance(layer, nn.Linear | nn.ReLU)]

    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert torso.num_features == 6
    assert torso(torch.randn(100, 4)).min() == 0


def test_hidden_sizes_are_128_and_128_by_default():
    assert count(MLPTorso((4,))) == (4 * 128 + 128) + (128 * 128 + 128)


def test_an_mlp_without_hidden_layers_hands_the_observation_through():
    torso = MLPTorso((2, 3), hidden_sizes=())
    observation = torch.randn(5, 2, 3)

    assert torso.num_features == 6
    assert count(torso) == 0
    assert torch.equal(torso(observation), observation.flatten(1))  # and negative numbers stay negative


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# QNetwork


class SumTorso(Torso):
    def __init__(self, observation_shape):
        super().__init__()
        self.shape = observation_shape
        self.num_features = 2

    def forward(self, observation):
        total = observation.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, -total], dim=1)


def test_a_network_hands_features_of_the_torso_to_the_head():
    network = QNetwork((3,), 2, SumTorso, ExpectedHead)
    observation = torch.randn(4, 3)

    assert network.torso.shape == (3,)
    assert network(observation).q_values.shape == (4, 2)
    assert torch.equal(network(observation).q_values, network.head(network.torso(observation)).q_values)


def test_a_linear_q_function_of_one_hot_observations_is_a_table():
    network = QNetwork((3,), 2, lambda shape: MLPTorso(shape, hidden_sizes=()), ExpectedHead)
    layer = next(module for module in network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        layer.weight.copy_(tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))  # a row per action
        layer.bias.zero_()

    q_values = network(torch.eye(3, dtype=torch.int8)).q_values

    assert q_values.tolist() == [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]


@pytest.mark.parametrize("head", [ExpectedHead, CategoricalHead, QuantileHead, ImplicitQuantileHead])
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_every_head_stands_on_every_torso(head, layer):
    duelling = partial(head, stream=partial(DuelingStream, hidden_sizes=[4]), layer=layer)
    flat, pictured = (
        QNetwork((2, 3), 3, MLPTorso, duelling),
        QNetwork((1, 36, 36), 3, partial(NatureTorso, hidden_size=8), duelling),
    )

    assert flat(torch.randn(5, 2, 3)).q_values.shape == (5, 3)
    assert pictured(images(2, 1, 36, 36)).q_values.shape == (2, 3)


@pytest.mark.parametrize("head", [ExpectedHead, CategoricalHead, QuantileHead, ImplicitQuantileHead])
def test_the_returns_of_an_observation_cost_one_pass_through_the_torso(head):
    network, passes = QNetwork((3,), 2, MLPTorso, head), []
    network.torso.register_forward_hook(lambda *_: passes.append(1))

    returns = network(torch.randn(4, 3))
    prediction = returns.at(tensor([0, 1, 1, 0]))
    target = prediction.backup(torch.ones(4), torch.ones(4))
    loss = prediction.loss(target)
    prediction.td_error(target, loss)

    assert returns.q_values.shape == (4, 2)
    assert len(passes) == 1


@pytest.mark.parametrize("head", [ExpectedHead, CategoricalHead, QuantileHead, ImplicitQuantileHead])
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_a_copy_says_the_same_and_shares_nothing(head, layer):
    network = QNetwork((3,), 2, MLPTorso, partial(head, layer=layer)).eval()
    copied, observation = copy.deepcopy(network), torch.randn(4, 3)
    before = network(observation).q_values

    assert torch.equal(copied(observation).q_values, before)
    with torch.no_grad():
        for number in [*copied.parameters(), *copied.buffers()]:
            number.fill_(7.0)
    assert torch.equal(network(observation).q_values, before)


def test_the_interface_of_torsos_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Torso()


@pytest.mark.parametrize("sizes", [(0,), (8, -1), (-3, 8), (8, 100_001), (10**30,)])
def test_a_layer_without_neurons_or_with_too_many_is_refused_by_name(sizes):
    said = r"hidden_sizes must be at least 1 and at most 100,000 each, got \["
    with pytest.raises(ValueError, match=rf"^model\.torso\.{said}"):
        MLPTorso([3], sizes)
    with pytest.raises(ValueError, match=rf"^model\.head\.stream\.{said}"):
        LinearStream(4, 2, 1, hidden_sizes=sizes)


# QValues


def test_q_values_are_the_means_of_the_returns():
    network = QNetwork((4,), 3, partial(MLPTorso, hidden_sizes=(5,)), CategoricalHead)
    observation = torch.randn(2, 4)
    assert torch.equal(QValues(network)(observation), network(observation).q_values)
