"""The maths of value-based learning as pure functions of tensors, each with its paper and equation.

Shapes: ``B`` minibatch, ``A`` actions, ``M`` numbers per action (1 for an expected value).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def take_action(values: Tensor, action: Tensor) -> Tensor:
    """Picks each row's entry of its own action: ``values[b, action[b]]``.

    Args:
        values: One entry per action, ``[B, A, ...]``.
        action: Action indices, ``[B]``, int64.

    Returns:
        The chosen entries, ``[B, ...]``.
    """
    index = action.unsqueeze(1)
    for size in values.shape[2:]:
        index = index.unsqueeze(-1).expand(*index.shape, size)
    return values.gather(1, index).squeeze(1)


def bellman_backup(value: Tensor, reward: Tensor, discount: Tensor) -> Tensor:
    """The Bellman operator ``reward + discount * value`` (Sutton and Barto 2018, equation 3.14).

    It is the same affine map for means, support atoms and quantiles, which is why every head shares it.

    Args:
        value: Value of the next state, ``[B]`` or ``[B, M]``.
        reward: Reward of the window, ``[B]``.
        discount: ``gamma ** k``, 0 where the episode terminated, ``[B]``.

    Returns:
        The backed-up value, shaped like ``value``.
    """
    for _ in value.shape[1:]:
        reward, discount = reward.unsqueeze(-1), discount.unsqueeze(-1)
    return reward + discount * value


def dueling_aggregate(value: Tensor, advantage: Tensor) -> Tensor:
    """Combines the two streams with the mean over *actions* taken off the advantages, so that ``mean_a Q == V``.

    "Dueling Network Architectures for Deep Reinforcement Learning" (Wang et al. 2016), equation 9.

    Args:
        value: State values, ``[B, 1, M]``.
        advantage: Advantages, ``[B, A, M]``.

    Returns:
        Action values, ``[B, A, M]``.
    """
    return value + advantage - advantage.mean(dim=1, keepdim=True)


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error ``(prediction - target) ** 2`` per element; its slope at a difference ``d`` is ``2 d``.

    "Playing Atari with Deep Reinforcement Learning" (Mnih et al. 2013), equation 2.

    Raises:
        ValueError: If the shapes differ; broadcasting ``[B]`` against ``[B, 1]`` would silently give ``[B, B]``.
    """
    _same_shape(prediction, target)
    return (prediction - target).square()


def huber_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Huber error with threshold 1 per element: ``d**2 / 2`` for ``|d| <= 1``, else ``|d| - 1/2``; slope at most 1.

    The "clipped error" of "Human-level control through deep reinforcement learning" (Mnih et al. 2015, Methods), as a
    loss ("Robust Estimation of a Location Parameter", Huber 1964).

    Raises:
        ValueError: If the shapes differ.
    """
    _same_shape(prediction, target)
    return F.huber_loss(prediction, target, reduction="none")


def interquartile_mean(values: Tensor) -> Tensor:
    """Mean of the middle half: the lowest and the highest quarter, each rounded down, are left out.

    "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (Agarwal et al. 2021), section 4.3.

    Args:
        values: Scores, ``[N]`` with ``N >= 1``.

    Returns:
        A scalar; the plain mean where ``N < 4``.
    """
    cut = values.numel() // 4
    ordered = torch.sort(values).values
    return ordered[cut : values.numel() - cut].mean()


def _same_shape(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one shape")
