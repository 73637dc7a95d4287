"""The two records that cross borders: one stored step, and a batch of them as the learner sees it."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Transition(NamedTuple, Generic[T]):
    """An n-step transition, any number of them stacked along leading axes.

    Gamma, n and termination meet before a transition is made and leave as one ``discount``, so everything downstream
    is one-step Q-learning: the target is ``reward + discount * value(next_observation)``.

    Attributes:
        observation: What the agent acted on, ``[..., *observation_shape]``.
        action: Index of the action taken, in ``[0, num_actions)``, ``[...]``, int64.
        reward: Discounted sum of the rewards of the window, ``[...]``, float32.
        discount: ``gamma ** k`` for a window of ``k`` steps, 0 only where the episode *terminated*, ``[...]``, float32.
        next_observation: The observation ``k`` steps later, never that of a following episode.
    """

    observation: T
    action: T
    reward: T
    discount: T
    next_observation: T


class ReplayBatch(NamedTuple):
    """The minibatches of one Lightning batch: ``K`` updates of ``B`` transitions each.

    Attributes:
        transition: The transitions, every field ``[K, B, ...]``.
        index: Where each stands in the buffer, ``[K, B]``, int64.
        weight: Importance weight of each sample in the loss, ``[K, B]``, float32; ones under uniform replay.
    """

    transition: Transition[Tensor]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of a batch
    weight: Tensor
