"""From features to returns: streams give each action its numbers, heads say what these numbers mean.

The head of a mean is here; those of whole distributions stand with them, in ``categorical.py`` and ``quantile.py``.
Shapes: ``B`` minibatch, ``F`` features, ``A`` actions, ``M`` numbers per action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf

from torch import Tensor, nn

from lightning_dqn.functional import dueling_aggregate, huber_error
from lightning_dqn.learner.distributions import ElementwiseLoss, ExpectedReturn, ReturnDistribution

LayerFactory = Callable[[int, int], nn.Module]
"""Builds a layer from its input and output size, as :class:`torch.nn.Linear` does."""

MOST = 100_000  # of anything in a network: far above any use, and torch says of 10^30 what nobody understands


def fully_connected(sizes: Sequence[int], layer: LayerFactory = nn.Linear) -> nn.Sequential:
    """Layers with a ReLU between each two, none after the last.

    Args:
        sizes: Input size, hidden sizes, output size.
        layer: What each layer is made of.

    Raises:
        ValueError: If a hidden size is out of range.
    """
    check_hidden_sizes("model.head.stream", sizes[1:-1])
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [layer(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def check_hidden_sizes(field: str, sizes: Sequence[int]) -> None:
    """Refuses sizes of layers that are none, or that no memory holds.

    Args:
        field: Of what has these layers.
        sizes: Of its hidden layers.

    Raises:
        ValueError: Naming the field.
    """
    if not all(1 <= size <= MOST for size in sizes):
        raise ValueError(f"{field}.hidden_sizes must be at least 1 and at most {MOST:,} each, got {list(sizes)}")


class Stream(nn.Module, ABC):
    """Maps features ``[B, F]`` to ``M`` numbers per action, ``[B, A, M]``."""

    def __init__(self, num_actions: int, numbers_per_action: int) -> None:
        super().__init__()
        self.shape = (num_actions, numbers_per_action)

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Numbers of every action, ``[B, A, M]``."""


class LinearStream(Stream):
    """One stack of layers for all actions.

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        numbers_per_action: ``M``.
        layer: What the layers are made of.
        hidden_sizes: Sizes of layers before the last; none by default, as the torso has its own.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        numbers_per_action: int,
        layer: LayerFactory = nn.Linear,
        hidden_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(num_actions, numbers_per_action)
        self.layers = fully_connected([num_features, *hidden_sizes, num_actions * numbers_per_action], layer)

    def forward(self, features: Tensor) -> Tensor:
        """Numbers of every action, ``[B, A, M]``."""
        numbers: Tensor = self.layers(features)
        return numbers.view(-1, *self.shape)


class DuelingStream(Stream):
    """A stream for the state's value and one for the advantages of its actions.

    "Dueling Network Architectures for Deep Reinforcement Learning" (Wang et al. 2016), section 3.

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        numbers_per_action: ``M``.
        layer: What the layers are made of.
        hidden_sizes: Sizes of the layers of *each* of the two streams before its last.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        numbers_per_action: int,
        layer: LayerFactory = nn.Linear,
        hidden_sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(num_actions, numbers_per_action)
        self.value = fully_connected([num_features, *hidden_sizes, numbers_per_action], layer)
        self.advantage = fully_connected([num_features, *hidden_sizes, num_actions * numbers_per_action], layer)

    def forward(self, features: Tensor) -> Tensor:
        """Numbers of every action, ``[B, A, M]``."""
        value: Tensor = self.value(features)
        advantage: Tensor = self.advantage(features)
        return dueling_aggregate(value.unsqueeze(1), advantage.view(-1, *self.shape))


StreamFactory = Callable[[int, int, int, LayerFactory], Stream]
"""Builds a stream from ``F``, ``A``, ``M`` and the kind of layer."""


class Head(nn.Module, ABC):
    """Maps features ``[B, F]`` to the returns of all actions."""

    @abstractmethod
    def forward(self, features: Tensor) -> ReturnDistribution:
        """The returns of all actions, in float32 whatever the precision of the features."""


class ExpectedHead(Head):
    """Says the mean of each action's return: the head of DQN, Double DQN and Dueling DQN.

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        stream: Linear or dueling.
        layer: What the layers are made of.
        loss: Elementwise loss of the TD error: :func:`~lightning_dqn.functional.huber_error` or
            :func:`~lightning_dqn.functional.squared_error`, or a function of your own.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        stream: StreamFactory = LinearStream,
        layer: LayerFactory = nn.Linear,
        loss: ElementwiseLoss = huber_error,
    ) -> None:
        super().__init__()
        self.stream = stream(num_features, num_actions, 1, layer)
        self.loss = loss

    def forward(self, features: Tensor) -> ExpectedReturn:
        """Means of all actions, ``[B, A]``."""
        numbers: Tensor = self.stream(features)
        # float() here, once: targets, losses and priorities then stay in fp32 under every precision setting
        return ExpectedReturn(numbers.squeeze(-1).float(), self.loss)


def check_at_least(least: float, most: float = inf, **arguments: float) -> None:
    """Refuses arguments of a head that are too small, too large or infinite.

    Raises:
        ValueError: Naming the field.
    """
    for name, value in arguments.items():
        if value == inf:
            raise ValueError(f"model.head.{name} must be finite")
        if not value >= least:
            raise ValueError(f"model.head.{name} must be at least {least}, got {value}")
        if value > most:
            raise ValueError(f"model.head.{name} must be at most {most:,}, got {value}")
