"""The return as quantiles: the distributions and heads of QR-DQN and IQN.

Shapes: ``B`` minibatch, ``F`` features, ``A`` actions, ``M`` quantiles of a head, ``n`` fractions of a draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Self

import torch
from torch import Tensor, nn

from lightning_dqn.functional import (
    bellman_backup,
    cosine_features,
    quantile_huber_error,
    quantile_midpoints,
    take_action,
)
from lightning_dqn.learner.distributions import ReturnDistribution, same_kind
from lightning_dqn.learner.heads import MOST, Head, LayerFactory, LinearStream, StreamFactory, check_at_least


@dataclass(frozen=True)
class QuantileReturn(ReturnDistribution):
    """The return as equally likely values, each the quantile of a fraction.

    Attributes:
        quantiles: ``[B, A, M]``, or ``[B, M]`` after :meth:`at`.
        taus: The fraction each stands for, ``[M]`` or ``[B, M]``.
        kappa: Threshold of the Huber error it is trained with.
    """

    quantiles: Tensor
    taus: Tensor
    kappa: float = 1.0

    @property
    def q_values(self) -> Tensor:
        """The mean of the quantiles."""
        return self.quantiles.mean(dim=-1)

    def at(self, action: Tensor) -> Self:
        """The quantiles of one action per row, ``[B, M]``."""
        return replace(self, quantiles=take_action(self.quantiles, action))

    def backup(self, reward: Tensor, discount: Tensor) -> Self:
        """``reward + discount * quantile``."""
        return replace(self, quantiles=bellman_backup(self.quantiles, reward, discount))

    def mixture(self, policy: Tensor, bonus: Tensor) -> Self:
        """The policy's mean of the quantiles of each fraction, ``[B, M]``.

        As in "Munchausen Reinforcement Learning" (Vieillard, Pietquin and Geist 2020), appendix B.1, "M-IQN".
        """
        mixed = (policy.unsqueeze(-1) * (self.quantiles + bonus.unsqueeze(-1))).sum(dim=1)
        return replace(self, quantiles=mixed)

    def loss(self, target: ReturnDistribution) -> Tensor:
        """Quantile Huber error between these quantiles and all of the target's, ``[B]``."""
        return quantile_huber_error(self.quantiles, self.taus, same_kind(self, target).quantiles, self.kappa)


@dataclass(frozen=True)
class ImplicitQuantileReturn(ReturnDistribution):
    """The return as a quantile function, evaluated at random fractions and only where it is asked.

    What is asked decides how many fractions: :attr:`q_values` takes those of a policy, :meth:`loss` those of a
    prediction, :meth:`backup` and :meth:`mixture` those of a target. Every draw is independent; after :meth:`at`, each
    number of fractions is drawn once, so that the mean of a prediction costs no second forward.

    Attributes:
        draw: Evaluates the quantile functions of all actions at a number of fractions.
        num_samples: Fractions of a prediction, ``N``.
        num_target_samples: Fractions of a target, ``N'``.
        num_policy_samples: Fractions of a policy, ``K``.
    """

    draw: Callable[[int], QuantileReturn]
    num_samples: int
    num_target_samples: int
    num_policy_samples: int

    @property
    def q_values(self) -> Tensor:
        """The mean over ``K`` fractions."""
        return self.draw(self.num_policy_samples).q_values

    @cached_property
    def prediction(self) -> QuantileReturn:
        """The ``N`` quantiles that the loss is about, drawn once."""
        return self.draw(self.num_samples)

    def at(self, action: Tensor) -> Self:
        """The quantile function of one action per row, whose mean is that of the prediction."""
        draw = cache(lambda number: self.draw(number).at(action))
        return replace(self, draw=draw, num_policy_samples=self.num_samples)

    def backup(self, reward: Tensor, discount: Tensor) -> QuantileReturn:
        """``reward + discount * quantile`` at ``N'`` fractions."""
        return self.draw(self.num_target_samples).backup(reward, discount)

    def mixture(self, policy: Tensor, bonus: Tensor) -> QuantileReturn:
        """The policy's mean of the quantiles at ``N'`` fractions, ``[B, N']``."""
        return self.draw(self.num_target_samples).mixture(policy, bonus)

    def loss(self, target: ReturnDistribution) -> Tensor:
        """Quantile Huber error of ``N`` quantiles against the ``N'`` of the target, ``[B]``."""
        return self.prediction.loss(target)


class QuantileHead(Head):
    """Says the values below which the return falls with evenly spaced probabilities: the head of QR-DQN.

    "Distributional Reinforcement Learning with Quantile Regression" (Dabney, Rowland, Bellemare and Munos 2018).

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        stream: Linear or dueling.
        layer: What the layers are made of.
        num_quantiles: ``M``, at least 2.
        kappa: Threshold of the Huber error, at least 0; 0 is plain quantile regression.

    Raises:
        ValueError: If there are fewer than 2 quantiles or ``kappa`` is negative; names the field.
    """

    taus: Tensor

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        stream: StreamFactory = LinearStream,
        layer: LayerFactory = nn.Linear,
        num_quantiles: int = 200,
        kappa: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(2, MOST, num_quantiles=num_quantiles)
        check_at_least(0, kappa=kappa)
        self.kappa = kappa
        self.stream = stream(num_features, num_actions, num_quantiles, layer)
        self.register_buffer("taus", quantile_midpoints(num_quantiles), persistent=False)

    def forward(self, features: Tensor) -> QuantileReturn:
        """Quantiles of all actions, ``[B, A, M]``."""
        numbers: Tensor = self.stream(features)
        return QuantileReturn(numbers.float(), self.taus, self.kappa)


class ImplicitQuantileHead(Head):
    """Says the quantile of any fraction it is asked for: the head of IQN.

    "Implicit Quantile Networks for Distributional Reinforcement Learning" (Dabney, Ostrovski, Silver and Munos 2018).
    In evaluation mode the mean is that of evenly spaced fractions, so that a greedy policy repeats itself.

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        stream: Linear or dueling; applied to the features of every fraction.
        layer: What the layers of the stream are made of.
        num_samples: Fractions of a prediction, ``N``, at least 2.
        num_target_samples: Fractions of its target, ``N'``, at least 2.
        num_policy_samples: Fractions over which the mean is taken to choose an action, ``K``, at least 2.
        num_cosines: Cosines in the embedding of a fraction, at least 2.
        kappa: Threshold of the Huber error, at least 0; 0 is plain quantile regression.

    Raises:
        ValueError: If one of them is too small; names the field.
    """

    samples_while_acting = True

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        stream: StreamFactory = LinearStream,
        layer: LayerFactory = nn.Linear,
        num_samples: int = 64,
        num_target_samples: int = 64,
        num_policy_samples: int = 32,
        num_cosines: int = 64,
        kappa: float = 1.0,
    ) -> None:
        super().__init__()
        check_at_least(2, MOST, num_samples=num_samples, num_target_samples=num_target_samples)
        check_at_least(2, MOST, num_policy_samples=num_policy_samples, num_cosines=num_cosines)
        check_at_least(0, kappa=kappa)
        self.num_samples = num_samples
        self.num_target_samples = num_target_samples
        self.num_policy_samples = num_policy_samples
        self.num_cosines = num_cosines
        self.kappa = kappa
        self.embedding = nn.Sequential(nn.Linear(num_cosines, num_features), nn.ReLU())
        self.stream = stream(num_features, num_actions, 1, layer)

    def forward(self, features: Tensor) -> ImplicitQuantileReturn:
        """Quantile functions of all actions, evaluated where they are asked."""

        # a shape, not len(), which is a number of Python's and would fix the size of a batch when this is exported
        def draw(number: int) -> QuantileReturn:
            taus = self._fractions(features.shape[0], number, features.device)
            return QuantileReturn(self.quantiles(features, taus), taus, self.kappa)

        return ImplicitQuantileReturn(draw, self.num_samples, self.num_target_samples, self.num_policy_samples)

    def quantiles(self, features: Tensor, taus: Tensor) -> Tensor:
        """Evaluates the quantile functions.

        Args:
            features: ``[B, F]``.
            taus: Fractions, ``[B, n]``.

        Returns:
            The quantiles of all actions, ``[B, A, n]``, float32.
        """
        embedded: Tensor = self.embedding(cosine_features(taus, self.num_cosines))
        numbers: Tensor = self.stream((features.unsqueeze(1) * embedded).flatten(0, 1))
        return numbers.view(*taus.shape, -1).transpose(1, 2).float()

    def _fractions(self, batch_size: int, number: int, device: torch.device) -> Tensor:
        if self.training:
            return torch.rand(batch_size, number, device=device)
        return quantile_midpoints(number).to(device).expand(batch_size, number)
