"""Torsos of convolutions: images and planes of bits become features.

Shapes: ``B`` minibatch, ``C`` channels, ``H`` height, ``W`` width; channels always come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_dqn.learner.networks import Torso

ConvolutionFactory = Callable[[int, int], nn.Module]
"""Builds a convolution that keeps height and width, from the number of its input and output channels."""


def convolution_3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution of stride 1 that keeps height and width.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
    """
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class ConvolutionalTorso(Torso):
    """Convolutions and a fully connected layer over images: what the torsos of this file have in common.

    Args:
        observation_shape: ``(C, H, W)``.
        convolutions: From ``[B, C, H, W]`` numbers to feature maps.
        hidden_size: Size of the fully connected layer after them, with ReLU; 0 leaves it out, so that each stream of a
            head may have one of its own.
        channels_last: Whether images and kernels lie in memory with the channels last, for convolutions that are faster
            so. The numbers are the same but for rounding. See ``docs/precision.md``.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        convolutions: nn.Sequential,
        hidden_size: int = 0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.shape = tuple(observation_shape)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        with torch.no_grad():
            num_flat = convolutions(torch.zeros(1, *self.shape)).numel()
        self.num_features = hidden_size or num_flat
        hidden = [nn.Linear(num_flat, hidden_size), nn.ReLU()] if hidden_size else []
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), *hidden)
        self.layers.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # torch's stub forgets it

    def numbers(self, observation: Tensor) -> Tensor:
        """What the first convolution sees, ``[B, C, H, W]``: the one place in which pixels are scaled.

        Raises:
            ValueError: If the images are not uint8; names ``model.torso``.
        """
        if observation.dtype != torch.uint8:
            raise ValueError(
                f"model.torso: {type(self).__name__} scales uint8 images to [0, 1] itself, got {observation.dtype}"
            )
        return observation.to(torch.float32, memory_format=self.memory_format) / 255

    def forward(self, observation: Tensor) -> Tensor:
        """Features, ``[B, num_features]``.

        Raises:
            ValueError: If shape or dtype are not what the torso was built for; names ``model.torso``.
        """
        if observation.shape[1:] != self.shape:
            raise ValueError(
                f"model.torso: {type(self).__name__} was built for images {self.shape}, "
                f"got {tuple(observation.shape[1:])}"
            )
        features: Tensor = self.layers(self.numbers(observation))
        return features


class NatureTorso(ConvolutionalTorso):
    """The three convolutions of "Human-level control through deep reinforcement learning" (Mnih et al. 2015, Methods).

    The paper's fully connected layer of 512 comes after them; with a
    :class:`~lightning_dqn.learner.heads.DuelingStream` set ``hidden_size`` to 0 and give each stream a layer of its
    own, as Wang et al. (2016) do.

    Args:
        observation_shape: ``(C, H, W)``, at least 36 high and wide, for example ``(4, 84, 84)``; uint8.
        hidden_size: See :class:`ConvolutionalTorso`.
        channels_last: See :class:`ConvolutionalTorso`.

    Raises:
        ValueError: If the shape is not that of such an image; names ``model.torso``.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_size: int = 512, channels_last: bool = False) -> None:
        channels = check_image("NatureTorso", observation_shape, least=36)
        convolutions = nn.Sequential(
            *(nn.Conv2d(channels, 32, kernel_size=8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, kernel_size=4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, kernel_size=3, stride=1), nn.ReLU()),
        )
        super().__init__(observation_shape, convolutions, hidden_size, channels_last)


class MinAtarTorso(ConvolutionalTorso):
    """The convolution of "MinAtar: An Atari-Inspired Testbed" (Young and Tian 2019): 16 kernels of 3x3.

    A fully connected layer of 128 comes after it. Its planes are zeros and ones, which are not scaled.

    Args:
        observation_shape: ``(C, H, W)`` with ``H == W``, for example ``(4, 10, 10)``; bool, or uint8 zeros and ones.
        hidden_size: See :class:`ConvolutionalTorso`.

    Raises:
        ValueError: If the shape is not that of such planes; names ``model.torso``.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_size: int = 128) -> None:
        channels = check_image("MinAtarTorso", observation_shape, least=3, square=True)
        convolutions = nn.Sequential(nn.Conv2d(channels, 16, kernel_size=3), nn.ReLU())
        super().__init__(observation_shape, convolutions, hidden_size)

    def numbers(self, observation: Tensor) -> Tensor:
        """Zeros and ones, ``[B, C, H, W]``.

        Raises:
            ValueError: If the planes are neither bool nor uint8; names ``model.torso``.
        """
        if observation.dtype not in (torch.bool, torch.uint8):
            raise ValueError(f"model.torso: MinAtarTorso takes planes of bool or uint8, got {observation.dtype}")
        return observation.to(torch.float32, memory_format=self.memory_format)


class ImpalaTorso(ConvolutionalTorso):
    """The large network of "IMPALA" (Espeholt et al. 2018, figure 3, right), with what "Beyond The Rainbow" added.

    A stage is a 3x3 convolution, max-pooling of 3x3 with stride 2, and two residual blocks; after the last there is a
    ReLU. Beyond The Rainbow (Clark et al. 2025) doubles the ``width``, pools the maps to 6x6, which holds the number of
    features down, and normalises the residual convolutions by their spectral norm.

    PyTorch has no deterministic gradient of adaptive pooling on a GPU: with ``pool``, ``trainer.deterministic`` cannot
    be true there.

    Args:
        observation_shape: ``(C, H, W)``, at least 8 high and wide; uint8.
        channels: Channels of each stage, before they are multiplied by ``width``.
        width: What the channels are multiplied by.
        pool: Height and width to which the maps are pooled at the end, by their maxima; ``None``: they are not.
        residual_layer: What the residual blocks are made of:
            :class:`~lightning_dqn.learner.spectral.SpectralConv2d` for Beyond The Rainbow.
        hidden_size: See :class:`ConvolutionalTorso`; 256 in IMPALA, 0 in Beyond The Rainbow.
        channels_last: See :class:`ConvolutionalTorso`.

    Raises:
        ValueError: If the shape is not that of such an image, a size is below 1, or there are no channels; names the
            field.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 32),
        width: int = 1,
        pool: int | None = None,
        residual_layer: ConvolutionFactory = convolution_3x3,
        hidden_size: int = 256,
        channels_last: bool = True,
    ) -> None:
        for name, value in (("width", width), ("pool", pool), ("channels", min(channels, default=0))):
            if value is not None and value < 1:
                raise ValueError(f"model.torso.{name} must be at least 1, got {value}")
        inputs = check_image("ImpalaTorso", observation_shape, least=8)
        layers: list[nn.Module] = []
        for outputs in [width * size for size in channels]:
            layers += [convolution_3x3(inputs, outputs), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)]
            layers += [ResidualBlock(outputs, residual_layer) for _ in range(2)]
            inputs = outputs
        layers += [nn.ReLU(), *([] if pool is None else [nn.AdaptiveMaxPool2d(pool)])]
        super().__init__(observation_shape, nn.Sequential(*layers), hidden_size, channels_last)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a ReLU, whose result is added to the input.

    Args:
        channels: Channels of input and output.
        layer: Builds the convolutions.
    """

    def __init__(self, channels: int, layer: ConvolutionFactory) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), layer(channels, channels), nn.ReLU(), layer(channels, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[B, channels, H, W]`` to the same shape."""
        added: Tensor = self.layers(maps)
        return maps + added


def check_image(torso: str, shape: Sequence[int], least: int, square: bool = False) -> int:
    """The channels of an observation, once it is known to be an image with the channels first.

    Args:
        torso: Who asks.
        shape: Of one observation.
        least: Least height and width.
        square: Whether height and width must be equal.

    Raises:
        ValueError: If it is not; names ``model.torso``.
    """
    if len(shape) == 3 and min(shape[1:]) >= least and (shape[1] == shape[2] or not square):
        return shape[0]
    hint = " Channels come first: add a wrapper that transposes." if len(shape) == 3 and shape[2] < shape[0] else ""
    raise ValueError(f"model.torso: {torso} needs images (channels, height, width), got {tuple(shape)}.{hint}")
