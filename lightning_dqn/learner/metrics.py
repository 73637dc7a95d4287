"""The scores of played episodes, as a torchmetrics metric so that ranks add theirs up."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_dqn.functional import interquartile_mean


class EpisodeMetrics(Metric):
    """Mean return, interquartile mean of the return, and mean length of episodes.

    Attributes:
        episodes: How many the last scores are of, those of all ranks.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.add_state("returns", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    def update(self, returns: Tensor, lengths: Tensor) -> None:
        """Adds finished episodes.

        Args:
            returns: Undiscounted, ``[E]``.
            lengths: In environment steps, ``[E]``.
        """
        self.returns.append(returns.to(self.device, torch.float32))  # type: ignore[union-attr,operator]
        self.lengths.append(lengths.to(self.device, torch.float32))  # type: ignore[union-attr,operator]

    def compute(self) -> dict[str, Tensor]:
        """``return``, ``return_iqm`` and ``episode_length``, scalars."""
        returns, lengths = dim_zero_cat(self.returns), dim_zero_cat(self.lengths)  # type: ignore[arg-type]
        self.episodes = len(returns)
        return {
            "return": returns.mean(),
            "return_iqm": interquartile_mean(returns),
            "episode_length": lengths.mean(),
        }
