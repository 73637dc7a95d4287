"""Torsos, and the network made of a torso and a head."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.learner.categorical import CategoricalHead
from lightning_dqn.learner.heads import DuelingStream, ExpectedHead
from lightning_dqn.learner.networks import MLPTorso, NatureTorso, QNetwork, Torso
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


# NatureTorso

CONVOLUTIONS = (4 * 8 * 8 * 32 + 32) + (32 * 4 * 4 * 64 + 64) + (64 * 3 * 3 * 64 + 64)


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_nature_torso_has_the_layers_of_the_paper():
    # 84 -> (84 - 8) / 4 + 1 = 20 -> (20 - 4) / 2 + 1 = 9 -> 9 - 3 + 1 = 7; 64 * 7 * 7 = 3136
    torso = NatureTorso((4, 84, 84))

    convolutions = [
        (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        for layer in torso.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    assert convolutions == [(4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)]
    assert count(torso) == CONVOLUTIONS + 3136 * 512 + 512 == 1_684_128
    assert torso.num_features == 512
    assert torso(images(2, 4, 84, 84)).shape == (2, 512)


def test_the_fully_connected_layer_can_be_left_out():
    torso = NatureTorso((4, 84, 84), hidden_size=0)

    assert count(torso) == CONVOLUTIONS
    assert torso.num_features == 3136
    assert torso(images(2, 4, 84, 84)).shape == (2, 3136)


@pytest.mark.parametrize("hidden_size", [0, 16])
def test_every_layer_of_the_nature_torso_ends_in_a_relu(hidden_size):
    torso = NatureTorso((1, 36, 36), hidden_size)

    kinds = [type(layer) for layer in torso.modules() if isinstance(layer, nn.Conv2d | nn.Linear | nn.ReLU)]

    assert kinds == [nn.Conv2d, nn.ReLU] * 3 + [nn.Linear, nn.ReLU] * bool(hidden_size)


@pytest.mark.parametrize("shape", [(1, 36, 36), (3, 36, 50), (2, 64, 48)])
def test_the_nature_torso_takes_images_of_other_sizes(shape):
    assert NatureTorso(shape, hidden_size=16)(images(2, *shape)).shape == (2, 16)


def test_images_are_scaled_to_one_exactly_once():
    torch.manual_seed(0)
    torso = NatureTorso((1, 36, 36), hidden_size=16)
    seen = []
    first = next(layer for layer in torso.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    observation = images(2, 1, 36, 36)
    observation[0, 0, 0, :2] = tensor([0, 255])

    features = torso(observation)

    assert seen[0].min() == 0
    assert seen[0].max() == 1
    assert torch.equal(seen[0], observation.to(torch.float32) / 255)
    assert torch.equal(features, torso.layers(observation.to(torch.float32) / 255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_images_that_may_have_been_scaled_already_are_refused(dtype):
    with pytest.raises(TypeError, match="uint8"):
        NatureTorso((1, 36, 36), hidden_size=16)(torch.zeros(2, 1, 36, 36, dtype=dtype))


@pytest.mark.parametrize("shape", [(84, 84, 4), (210, 160, 3), (84, 84, 1)])
def test_images_with_channels_last_are_refused_with_advice(shape):
    with pytest.raises(ValueError, match=r"^model\.torso: .*\(channels, height, width\).*Channels come first"):
        NatureTorso(shape)


@pytest.mark.parametrize("shape", [(4,), (84, 84), (4, 4, 84, 84), (4, 35, 84), (4, 84, 35)])
def test_what_is_no_image_or_too_small_is_refused(shape):
    with pytest.raises(ValueError, match=r"^model\.torso: "):
        NatureTorso(shape)


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
