"""Torsos of convolutions: their layers, what they take, and what pixels become."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, tensor

from lightning_dqn.hparams import describe
from lightning_dqn.learner.convolutions import ImpalaTorso, MinAtarTorso, NatureTorso, ResidualBlock, convolution_3x3
from lightning_dqn.learner.heads import DuelingStream
from lightning_dqn.learner.networks import QNetwork
from lightning_dqn.learner.noisy import NoisyLinear
from lightning_dqn.learner.quantile import ImplicitQuantileHead
from lightning_dqn.learner.spectral import SpectralConv2d

CONVOLUTIONS = (4 * 8 * 8 * 32 + 32) + (32 * 4 * 4 * 64 + 64) + (64 * 3 * 3 * 64 + 64)
IMAGES = {"nature": (partial(NatureTorso, hidden_size=16), (1, 36, 36)), "impala": (ImpalaTorso, (2, 9, 12))}
TORSOS = IMAGES | {"minatar": (MinAtarTorso, (4, 10, 10))}
BTR = partial(ImpalaTorso, width=2, pool=6, residual_layer=SpectralConv2d, hidden_size=0)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def observations(kind, number=2):
    _, shape = TORSOS[kind]
    return images(number, *shape) % 2 if kind == "minatar" else images(number, *shape)


def make(kind, **kwargs):
    torch.manual_seed(0)
    torso, shape = TORSOS[kind]
    return torso(shape, **kwargs)


def kinds(torso, *of):
    return [type(layer) for layer in torso.modules() if isinstance(layer, of)]


def first_convolution_sees(torso, observation):
    seen = []
    first = next(layer for layer in torso.modules() if isinstance(layer, nn.Conv2d))
    hook = first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    torso(observation)
    hook.remove()
    return seen[0]


# NatureTorso


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


@pytest.mark.parametrize("hidden_size", [0, 16])
def test_every_layer_of_the_nature_torso_ends_in_a_relu(hidden_size):
    torso = NatureTorso((1, 36, 36), hidden_size)

    assert kinds(torso, nn.Conv2d, nn.Linear, nn.ReLU) == [nn.Conv2d, nn.ReLU] * 3 + [nn.Linear, nn.ReLU] * bool(
        hidden_size
    )


@pytest.mark.parametrize("shape", [(1, 36, 36), (3, 36, 50), (2, 64, 48)])
def test_the_nature_torso_takes_images_of_other_sizes(shape):
    assert NatureTorso(shape, hidden_size=16)(images(2, *shape)).shape == (2, 16)


# MinAtarTorso


@pytest.mark.parametrize("channels", [4, 10])
def test_the_minatar_torso_has_the_layers_of_the_paper(channels):
    # 10 -> 10 - 3 + 1 = 8; 16 * 8 * 8 = 1024
    torso = MinAtarTorso((channels, 10, 10))

    assert kinds(torso, nn.Conv2d, nn.Linear, nn.ReLU) == [nn.Conv2d, nn.ReLU, nn.Linear, nn.ReLU]
    assert count(torso) == (channels * 9 * 16 + 16) + (1024 * 128 + 128)
    assert torso.num_features == 128
    assert torso(torch.ones(3, channels, 10, 10, dtype=torch.bool)).shape == (3, 128)


def test_planes_of_bits_are_zeros_and_ones_to_the_network_whatever_their_dtype():
    torso, planes = make("minatar"), observations("minatar")

    assert torch.equal(first_convolution_sees(torso, planes), planes.to(torch.float32))
    assert torch.equal(first_convolution_sees(torso, planes.bool()), planes.to(torch.float32))
    assert planes.max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_planes_of_other_numbers_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"^model\.torso: MinAtarTorso takes planes of bool or uint8, got {dtype}$"):
        make("minatar")(observations("minatar").to(dtype))


@pytest.mark.parametrize("shape", [(10, 10, 4), (10, 10, 7)])
def test_planes_with_channels_last_are_refused_with_advice(shape):
    with pytest.raises(ValueError, match=r"^model\.torso: MinAtarTorso .*Channels come first"):
        MinAtarTorso(shape)


# ImpalaTorso


def test_the_impala_torso_has_the_layers_of_the_paper():
    # 84 -> 42 -> 21 -> 11; 32 * 11 * 11 = 3872
    torso = ImpalaTorso((4, 84, 84))

    sizes = [(layer.in_channels, layer.out_channels) for layer in torso.modules() if isinstance(layer, nn.Conv2d)]
    assert sizes == [(4, 16), *[(16, 16)] * 4, (16, 32), *[(32, 32)] * 4, (32, 32), *[(32, 32)] * 4]
    assert kinds(torso, nn.Linear, nn.MaxPool2d, nn.AdaptiveMaxPool2d) == [nn.MaxPool2d] * 3 + [nn.Linear]
    assert torso.num_features == 256
    weights = sum(9 * inputs * outputs + outputs for inputs, outputs in sizes)
    assert count(torso) == weights + 3872 * 256 + 256
    assert torso(images(2, 4, 84, 84)).shape == (2, 256)


def test_the_impala_torso_equals_a_loop_over_its_figure():
    torch.manual_seed(0)
    torso, observation = ImpalaTorso((2, 9, 12), channels=(3, 4), pool=2, hidden_size=5), images(2, 2, 9, 12)
    parameters = iter(torso.parameters())

    def convolve(maps):
        return nn.functional.conv2d(maps, next(parameters), next(parameters), padding=1)

    maps = observation / 255
    for _ in range(2):
        maps = nn.functional.max_pool2d(convolve(maps), 3, 2, padding=1)
        for _ in range(2):
            maps = maps + convolve(convolve(maps.relu()).relu())
    maps = nn.functional.adaptive_max_pool2d(maps.relu(), 2)
    features = nn.functional.linear(maps.flatten(1), next(parameters), next(parameters)).relu()

    torch.testing.assert_close(torso(observation), features)
    assert next(parameters, None) is None


def test_width_multiplies_the_channels_and_pooling_holds_the_features_down():
    torso = BTR((4, 84, 84))

    assert torso.num_features == 64 * 6 * 6 == 2304
    assert torso(images(1, 4, 84, 84)).shape == (1, 2304)


def test_pooling_takes_the_largest_of_each_part():
    torso = ImpalaTorso((1, 8, 8), channels=(1,), pool=2, hidden_size=0)
    pool = next(layer for layer in torso.modules() if isinstance(layer, nn.AdaptiveMaxPool2d))

    maps = tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 9.0, 8.0], [7.0, 6.0, 5.0, 4.0]])

    assert pool(maps[None, None]).flatten().tolist() == [5, 7, 9, 9]


def test_only_the_residual_convolutions_are_normalised():
    torso = BTR((4, 84, 84))
    blocks = [module for module in torso.modules() if isinstance(module, ResidualBlock)]

    assert len(blocks) == 6
    assert kinds(torso, nn.Conv2d).count(SpectralConv2d) == 12
    assert all(kinds(block, nn.Conv2d) == [SpectralConv2d] * 2 for block in blocks)


def test_the_network_of_beyond_the_rainbow_has_as_many_weights_as_its_authors_count():
    # 2.91 million without those of the noise, 5.28 million with them (Clark et al. 2025), for the 18 actions of the ALE
    head = partial(
        ImplicitQuantileHead, stream=partial(DuelingStream, hidden_sizes=[512]), num_samples=8, num_cosines=64
    )

    plain = QNetwork((4, 84, 84), 18, BTR, head)
    noisy = QNetwork((4, 84, 84), 18, BTR, partial(head, layer=NoisyLinear))

    assert count(plain) == 2_908_851
    assert count(noisy) == 5_278_918
    sigmas = [parameter.numel() for name, parameter in noisy.named_parameters() if name.endswith("_sigma")]
    assert count(noisy) - sum(sigmas) == 2_908_851


@pytest.mark.parametrize(
    ("field", "kwargs"),
    [
        ("width", {"width": 0}),
        ("pool", {"pool": 0}),
        ("channels", {"channels": ()}),
        ("channels", {"channels": (16, 0)}),
    ],
)
def test_sizes_below_one_are_refused_by_name(field, kwargs):
    with pytest.raises(ValueError, match=rf"^model\.torso\.{field} must be at least 1, got 0$"):
        ImpalaTorso((4, 84, 84), **kwargs)


def test_an_impala_torso_can_be_written_down():
    assert describe(partial(ImpalaTorso, residual_layer=SpectralConv2d)) == {
        "class_path": "lightning_dqn.learner.convolutions.ImpalaTorso",
        "init_args": {"residual_layer": {"class_path": "lightning_dqn.learner.spectral.SpectralConv2d"}},
    }
    assert describe(convolution_3x3) == "lightning_dqn.learner.convolutions.convolution_3x3"


# what they have in common


@pytest.mark.parametrize("kind", TORSOS)
def test_the_fully_connected_layer_can_be_left_out(kind):
    torso = make(kind, hidden_size=0)

    assert not kinds(torso, nn.Linear)
    assert torso(observations(kind)).shape == (2, torso.num_features)


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_scaled_to_one_exactly_once(kind, channels_last):
    torso, observation = make(kind, channels_last=channels_last), observations(kind)
    observation[0, 0, 0, :2] = tensor([0, 255])

    seen = first_convolution_sees(torso, observation)

    assert seen.min() == 0
    assert seen.max() == 1
    assert torch.equal(seen, observation.to(torch.float32) / 255)
    assert torch.equal(torso(observation), torso.layers(seen))


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_images_that_may_have_been_scaled_already_are_refused(kind, dtype):
    with pytest.raises(ValueError, match=rf"^model\.torso: \w+ scales uint8 images to \[0, 1\] itself, got {dtype}$"):
        make(kind)(observations(kind).to(dtype))


@pytest.mark.parametrize("kind", TORSOS)
def test_images_of_another_shape_than_the_torso_was_built_for_are_refused(kind):
    observation = observations(kind)
    with pytest.raises(ValueError, match=r"^model\.torso: \w+ was built for images \(.*\), got \("):
        make(kind)(observation.movedim(1, -1))
    with pytest.raises(ValueError, match=r"^model\.torso: \w+ was built for images"):
        make(kind)(observation[0])


@pytest.mark.parametrize("torso", [NatureTorso, ImpalaTorso, MinAtarTorso])
@pytest.mark.parametrize("shape", [(84, 84, 4), (210, 160, 3), (84, 84, 1)])
def test_images_with_channels_last_are_refused_with_advice(torso, shape):
    with pytest.raises(ValueError, match=r"^model\.torso: .*\(channels, height, width\).*Channels come first"):
        torso(shape)


@pytest.mark.parametrize(
    ("torso", "shape"),
    [
        *((NatureTorso, shape) for shape in [(4,), (84, 84), (4, 4, 84, 84), (4, 35, 84), (4, 84, 35)]),
        *((ImpalaTorso, shape) for shape in [(4,), (84, 84), (4, 4, 84, 84), (4, 7, 84), (4, 84, 7)]),
        *((MinAtarTorso, shape) for shape in [(4,), (10, 10), (4, 4, 10, 10), (2, 2, 2), (4, 10, 11)]),
    ],
)
def test_what_is_no_image_or_too_small_is_refused(torso, shape):
    with pytest.raises(ValueError, match=rf"^model\.torso: {torso.__name__} needs images .*got .*\)\.$"):
        torso(shape)


@pytest.mark.parametrize("torso", [BTR, partial(NatureTorso, hidden_size=32)])
def test_the_layout_in_memory_changes_the_numbers_by_rounding_alone(torso):
    made = []
    for channels_last in (False, True):
        torch.manual_seed(0)
        made.append(torso((4, 36, 40), channels_last=channels_last))
    plain, last = made
    last.load_state_dict(plain.state_dict())
    observation = images(3, 4, 36, 40)

    features = [torso(observation) for torso in made]
    for output in features:
        output.square().sum().backward()

    kernels = [next(layer for layer in torso.modules() if isinstance(layer, nn.Conv2d)).weight for torso in made]
    assert [kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels] == [False, True]
    assert first_convolution_sees(last, observation).is_contiguous(memory_format=torch.channels_last)
    assert first_convolution_sees(plain, observation).is_contiguous()
    torch.testing.assert_close(features[0], features[1], rtol=1e-5, atol=1e-6)
    for mine, other in zip(plain.parameters(), last.parameters(), strict=True):
        assert (mine.grad - other.grad).norm() <= 1e-5 * other.grad.norm()


@pytest.mark.parametrize("kind", TORSOS)
def test_a_copy_keeps_layout_and_numbers(kind):
    torso, observation = make(kind), observations(kind)
    torso.eval()

    copied = copy.deepcopy(torso)

    assert torch.equal(copied(observation), torso(observation))
    assert [p.stride() for p in copied.parameters()] == [p.stride() for p in torso.parameters()]
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in torso.parameters()}
