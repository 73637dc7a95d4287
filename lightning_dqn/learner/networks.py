"""A torso turns observations into features; a Q-network is a torso and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

from lightning_dqn.learner.distributions import ReturnDistribution
from lightning_dqn.learner.heads import Head, check_hidden_sizes, fully_connected
from lightning_dqn.learner.trying import check_torso


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

    Raises:
        ValueError: If a size is out of range; names the field.
    """

    def __init__(self, observation_shape: Sequence[int], hidden_sizes: Sequence[int] = (128, 128)) -> None:
        super().__init__()
        check_hidden_sizes("model.torso", hidden_sizes)
        sizes = [prod(observation_shape), *hidden_sizes]
        self.num_features = sizes[-1]
        self.layers = nn.Sequential(nn.Flatten(), fully_connected(sizes), *[nn.ReLU()] * bool(hidden_sizes))

    def forward(self, observation: Tensor) -> Tensor:
        """Features, ``[B, num_features]``."""
        features: Tensor = self.layers(observation.float().unsqueeze(-1))
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

    Raises:
        ValueError: If the torso does not take such observations, or gives other features than it says; names the field.
    """

    def __init__(
        self, observation_shape: Sequence[int], num_actions: int, torso: TorsoFactory, head: HeadFactory
    ) -> None:
        super().__init__()
        self.torso = torso(observation_shape)
        check_torso(self.torso, observation_shape)
        self.head = head(self.torso.num_features, num_actions)

    def forward(self, observation: Tensor) -> ReturnDistribution:
        """Returns of all actions for observations ``[B, *observation_shape]``."""
        returns: ReturnDistribution = self.head(self.torso(observation))
        return returns


class QValues(nn.Module):
    """Observations in, Q-values out: what is compiled for acting, and exported.

    Args:
        online: The network.
    """

    def __init__(self, online: nn.Module) -> None:
        super().__init__()
        self.online = online

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values ``[B, A]``, float32, of observations ``[B, *observation_shape]``."""
        q_values: Tensor = self.online(observation).q_values
        return q_values
