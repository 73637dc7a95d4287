"""The two records that cross borders: one stored step, and a batch of them as the learner sees it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
S = TypeVar("S")


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
        action_mask: Which actions were legal at ``observation``, ``[..., A]``, bool; ``None`` if all always are.
        next_action_mask: The same at ``next_observation``; all true where the episode terminated.
    """

    observation: T
    action: T
    reward: T
    discount: T
    next_observation: T
    action_mask: T | None = None
    next_action_mask: T | None = None

    def map(self, function: Callable[[T], S]) -> Transition[S]:
        """Applies a function to every field there is.

        Args:
            function: Maps one field to its counterpart.
        """
        fields = (None if field is None else function(field) for field in self)
        return type(self)(*fields)  # type: ignore[arg-type, return-value]


class ReplayBatch(NamedTuple):
    """The minibatches of one Lightning batch: ``K`` updates of ``B`` transitions each.

    Attributes:
        transition: The transitions, every field ``[K, B, ...]``.
        index: By what name the buffer knows each, ``[K, B]``, int64: its place in the order of all ever stored, so that
            a transition that has been overwritten meanwhile is not mistaken for the one that took its place.
        weight: Importance weight of each sample in the loss, ``[K, B]``, float32; ones under uniform replay.
    """

    transition: Transition[Tensor]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index(), which nobody asks of a batch
    weight: Tensor

    def to(self, device: torch.device) -> ReplayBatch:
        """The batch on a device, and itself if that is where it is; the Trainer calls this.

        What goes from the host to a GPU goes through page-locked memory, so that it is copied beside what the GPU is
        doing and nobody waits for it.

        Args:
            device: Where to.
        """
        if self.weight.device == self.index.device == self.transition.observation.device == device:
            return self
        move = partial(_move, device=device)
        return self._replace(transition=self.transition.map(move), index=move(self.index), weight=move(self.weight))


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
