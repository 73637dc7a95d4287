"""Normalisation of observations by running statistics that belong to the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import inf
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from lightning_dqn.learner.convolutions import ConvolutionalTorso
from lightning_dqn.learner.networks import MLPTorso, Torso, TorsoFactory

Network = TypeVar("Network", bound=nn.Module)


class RunningMoments(nn.Module):
    """A module that holds the mean and variance of each number of an observation, over all minibatches so far.

    Args:
        shape: Shape of one observation.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(tuple(shape)))
        self.register_buffer("var", torch.ones(tuple(shape)))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, observation: Tensor) -> None:
        """Merge the moments of a minibatch into those of all minibatches before.

        "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (Chan, Golub and LeVeque 1979),
        equation 2.1. Under several ranks the minibatches of all ranks are merged, so all ranks have equal statistics.

        Args:
            observation: ``[B, *shape]``, float32.
        """
        rows = _of_all_ranks(observation)
        var, mean = torch.var_mean(rows, dim=0, correction=0)
        total = self.count + rows.shape[0]
        share = rows.shape[0] / total  # of the new minibatch
        difference = mean - self.mean
        self.var.copy_(self.var.lerp(var, share) + difference.square() * share * (1 - share))
        self.mean.add_(difference * share)
        self.count.copy_(total)


class NormalizedTorso(Torso):
    """A torso that normalises observations to mean 0 and variance 1 before another torso.

    The statistics are those of the observations in all minibatches learned from so far, each number of an observation
    having its own. An update merges its minibatch first and normalises with the result. Acting, targets and evaluation
    use the statistics as they are. They are buffers, so checkpoints contain them; the target network shares them with
    the online network, because both sides of an update must see an observation in the same way.

    Args:
        observation_shape: Shape of one observation.
        torso: Builds the torso that gets the normalised observations, in float32. Torsos of images scale pixels
            themselves and are refused.
        clip: Normalised numbers are clipped to ``[-clip, clip]``.
        epsilon: Added to the variance before the square root.

    Raises:
        ValueError: If ``clip`` or ``epsilon`` is out of range, or the torso is one of images; names the field.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        torso: TorsoFactory = MLPTorso,
        clip: float = 10.0,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__()
        for name, value in (("clip", clip), ("epsilon", epsilon)):
            if not 0 < value < inf:
                raise ValueError(f"model.torso.{name}: must be positive and finite (got {value}).")
        self.clip = clip
        self.epsilon = epsilon
        self.torso = torso(observation_shape)
        if isinstance(self.torso, ConvolutionalTorso):
            name = type(self.torso).__name__
            raise ValueError(f"model.torso.torso: {name} scales images itself. Use model.torso: {name}.")
        self.num_features = self.torso.num_features
        self.moments = RunningMoments(observation_shape)

    def forward(self, observation: Tensor) -> Tensor:
        """Return features, ``[B, num_features]``."""
        observation = observation.float()
        if self.training and torch.is_grad_enabled():
            self.moments.update(observation)
        deviation = (observation - self.moments.mean) / (self.moments.var + self.epsilon).sqrt()
        features: Tensor = self.torso(deviation.clamp(-self.clip, self.clip))
        return features


def target_copy(online: Network) -> Network:
    """Return a copy of a network that has weights of its own and shares its running statistics of observations.

    Args:
        online: The network that is trained.
    """
    shared = {id(module): module for module in online.modules() if isinstance(module, RunningMoments)}
    return copy.deepcopy(online, shared).requires_grad_(False)


def _of_all_ranks(rows: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
