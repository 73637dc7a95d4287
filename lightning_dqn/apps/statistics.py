"""Scores of several runs: aggregates, and how far they can be trusted.

All of it is from "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al. 2021), and the
intervals are those of its library, rliable. Shapes: ``N`` runs, ``M`` environments, ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_dqn.functional import interquartile_mean as middle_half

Scores = NDArray[np.float64]
Statistic = Callable[..., Scores]
"""Maps scores ``[..., N, M]``, of one or of several subjects, to numbers ``[...]``."""

RESAMPLES = 10_000
_LEVEL = 95.0  # percent


class Estimate(NamedTuple):
    """A statistic with its 95 % interval.

    Attributes:
        value: Of the scores themselves.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def interval(self, digits: int = 1) -> str:
        """Both ends, in words.

        Args:
            digits: After the point.
        """
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}"


def mean(scores: Scores) -> Scores:
    """Mean of all scores."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: Scores) -> Scores:
    """Median of all scores; that of rliable is over environments, of which there is often one."""
    return np.asarray(np.median(scores, axis=(-2, -1)))


def interquartile_mean(scores: Scores) -> Scores:
    """Mean of the middle half of all scores; see :func:`lightning_dqn.functional.interquartile_mean`."""
    everything = torch.from_numpy(np.ascontiguousarray(scores).reshape(*scores.shape[:-2], -1))
    middle: Scores = middle_half(everything).numpy()
    return middle


def optimality_gap(target: float) -> Statistic:
    """How far scores are below a target on average; what is above it makes up for nothing.

    Args:
        target: The score that is good enough.
    """
    return lambda scores: mean(np.maximum(target - scores, 0.0))


def probability_of_improvement(scores: Scores, others: Scores) -> Scores:
    """How often a run of one beats a run of the other in the same environment; a tie counts half.

    Args:
        scores: Of the one, ``[..., N, M]``.
        others: Of the other, ``[..., N', M]``.
    """
    difference = scores[..., :, None, :] - others[..., None, :, :]
    return np.asarray(((difference > 0) + (difference == 0) / 2).mean(axis=(-3, -2, -1)))


def estimate(
    statistic: Statistic, *samples: Scores, resamples: int = RESAMPLES, rng: Any = np.random.default_rng
) -> Estimate:
    """A statistic and the 95 % interval of its stratified bootstrap.

    Runs are drawn with replacement, of every environment and of every sample by themselves, and the interval is the
    middle 95 % of what the statistic says of them.

    Args:
        statistic: What is asked for.
        *samples: Scores it is asked of, each ``[N, M]``.
        resamples: ``R``.
        rng: Called with a seed, returns what draws by ``choice(number, shape)``: the same interval every time.

    Raises:
        ValueError: If a sample is empty or not ``[N, M]``.
    """
    for sample in samples:
        if sample.ndim != 2 or sample.size == 0:
            raise ValueError(f"scores must be [runs, environments] and not empty, got the shape {sample.shape}")
    generator = rng(0)
    drawn = statistic(*(_resample(generator, sample, resamples) for sample in samples))
    low, high = np.percentile(drawn, [50 - _LEVEL / 2, 50 + _LEVEL / 2])
    return Estimate(float(statistic(*samples)), float(low), float(high))


def performance_profile(scores: Scores, thresholds: Scores) -> Scores:
    """Which share of the runs scores more than each threshold.

    Args:
        scores: ``[..., N, M]``.
        thresholds: ``[T]``.

    Returns:
        ``[..., T]``, falling from 1 to 0.
    """
    return np.asarray((scores[..., None] > thresholds).mean(axis=(-3, -2)))


def band(
    statistic: Statistic, scores: Scores, resamples: int = 2_000, rng: Any = np.random.default_rng
) -> tuple[Scores, Scores, Scores]:
    """A statistic of many numbers, each with its 95 % interval.

    Args:
        statistic: Maps scores ``[..., N, M]`` to ``[..., P]``.
        scores: ``[N, M]``.
        resamples: ``R``.
        rng: As of :func:`estimate`.

    Returns:
        The numbers, and the lower and upper ends, each ``[P]``.
    """
    drawn = statistic(_resample(rng(0), scores, resamples))
    low, high = np.percentile(drawn, [50 - _LEVEL / 2, 50 + _LEVEL / 2], axis=0)
    return statistic(scores), low, high


def _resample(generator: Any, scores: Scores, resamples: int) -> Scores:
    """Runs drawn with replacement, for each environment by itself: ``[R, N, M]``."""
    runs, environments = scores.shape
    drawn: Scores = scores[generator.choice(runs, (resamples, runs, environments)), np.arange(environments)]
    return drawn
