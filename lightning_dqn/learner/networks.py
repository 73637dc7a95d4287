"""Torsos turn observations into features; a Q-network is a torso and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from lightning_dqn.learner.distributions import ReturnDistribution
from lightning_dqn.learner.heads import Head, fully_connected


class Torso(nn.Module, ABC):
    """Maps observations ``[B, *observation_shape]`` to features ``[B, num_features]``.

    A torso of your own takes the observation shape as its first argument and sets ``num_features``.
    """

    num_features: int

    @abstractmethod
    def forward(self, observation: Tensor) -> Tensor:
        """Features, ``[B, num_features]``."""


class MLPTorso(Torso):
    """Fully connected layers with ReLU, over the flattened observation.

    Args:
        observation_shape: Shape of one observation.
        hidden_sizes: Sizes of the layers; the last is ``num_features``. Empty: the observation itself, which makes
            the Q-function linear.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_sizes: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        sizes = [prod(observation_shape), *hidden_sizes]
        self.num_features = sizes[-1]
        self.layers = nn.Sequential(nn.Flatten(), fully_connected(sizes), *[nn.ReLU()] * bool(hidden_sizes))

    def forward(self, observation: Tensor) -> Tensor:
        """Features, ``[B, num_features]``."""
        features: Tensor = self.layers(observation.float().unsqueeze(-1))
        return features


class NatureTorso(Torso):
    """The three convolutions of "Human-level control through deep reinforcement learning" (Mnih et al. 2015, Methods).

    The paper's fully connected layer of 512 comes after them; with a
    :class:`~lightning_dqn.learner.heads.DuelingStream` set ``hidden_size`` to 0 and give each stream a layer of its own,
    as Wang et al. (2016) do.

    Args:
        observation_shape: ``(channels, height, width)``, channels first, for example ``(4, 84, 84)``.
        hidden_size: Size of the fully connected layer; 0 leaves it out.

    Raises:
        ValueError: If the shape is not that of a channel-first image at least 36 pixels high and wide.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_size: int = 512) -> None:
        super().__init__()
        shape = tuple(observation_shape)
        if len(shape) != 3 or min(shape[1:]) < 36:
            hint = " Channels come first: add a wrapper that transposes." if len(shape) == 3 and shape[2] < 36 else ""
            raise ValueError(f"model.torso: NatureTorso needs images (channels, height, width), got {shape}.{hint}")
        convolutions = nn.Sequential(
            *(nn.Conv2d(shape[0], 32, kernel_size=8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, kernel_size=4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, kernel_size=3, stride=1), nn.ReLU()),
            nn.Flatten(),
        )
        with torch.no_grad():
            num_flat = convolutions(torch.zeros(1, *shape)).shape[1]
        self.num_features = hidden_size or num_flat
        hidden = [nn.Linear(num_flat, hidden_size), nn.ReLU()] if hidden_size else []
        self.layers = nn.Sequential(*convolutions, *hidden)

    def forward(self, observation: Tensor) -> Tensor:
        """Features, ``[B, num_features]``, of images in uint8.

        Raises:
            TypeError: If the images are not uint8: they are scaled to [0, 1] here, and must not have been before.
        """
        if observation.dtype != torch.uint8:
            raise TypeError(f"NatureTorso scales uint8 images itself, got {observation.dtype}")
        features: Tensor = self.layers(observation.float() / 255)
        return features


TorsoFactory = Callable[[Sequence[int]], Torso]
"""Builds a torso from the shape of one observation."""

HeadFactory = Callable[[int, int], Head]
"""Builds a head from the number of features and of actions."""


class QNetwork(nn.Module):
    """A torso and a head: observations in, returns of all actions out.

    Args:
        observation_shape: Shape of one observation.
        num_actions: Number of actions, ``A``.
        torso: Builds the torso.
        head: Builds the head.
    """

    def __init__(
        self, observation_shape: Sequence[int], num_actions: int, torso: TorsoFactory, head: HeadFactory
    ) -> None:
        super().__init__()
        self.torso = torso(observation_shape)
        self.head = head(self.torso.num_features, num_actions)

    def forward(self, observation: Tensor) -> ReturnDistribution:
        """Returns of all actions for observations ``[B, *observation_shape]``."""
        returns: ReturnDistribution = self.head(self.torso(observation))
        return returns
