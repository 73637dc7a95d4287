"""Prioritised experience replay: transitions are drawn in proportion to how surprising they were.

Shapes: ``K`` updates of ``B`` transitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.experience.observations import ObservationStorage
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.replay import ReplayBuffer
from lightning_dqn.experience.rows import Place
from lightning_dqn.experience.sum_tree import SumTree
from lightning_dqn.schedules import FRACTION, LinearSchedule, Schedule
from lightning_dqn.transition import ReplayBatch, Transition


class PrioritizedReplayBuffer(ReplayBuffer):
    """A ring of transitions sampled with probability ``p_i^alpha / sum p^alpha``, ``p_i = |TD error| + epsilon``.

    Each minibatch is stratified: its ``B`` draws come from ``B`` equal parts of the total. A new transition has the
    largest priority there ever was. Importance weights ``(N P(i))^-beta``, divided by the largest of their minibatch,
    correct for the draws in the loss.

    "Prioritized Experience Replay" (Schaul, Quan, Antonoglou and Silver 2016), algorithm 1 and section 3.4.

    Args:
        capacity: How many transitions it keeps; the oldest make room for new ones.
        alpha: How much priorities count, in [0, 1]; 0 is uniform sampling.
        beta: How much of the bias is corrected, in [0, 1], over environment steps.
        epsilon: Added to every TD error, at least 0. With 0 a transition without error is not drawn again.
        observations: How observations are kept; whole if not given.

    Raises:
        ValueError: If an argument is out of range; names the field.
    """

    def __init__(
        self,
        capacity: int = 100_000,
        alpha: float = 0.6,
        beta: Schedule = LinearSchedule(0.4, 1.0, 100_000),
        epsilon: float = 1e-6,
        observations: ObservationStorage | None = None,
    ) -> None:
        super().__init__(capacity, observations)
        if not 0 <= alpha <= 1:
            raise ValueError(f"data.buffer.alpha must be in [0, 1], got {alpha}")
        if not isinstance(beta, Schedule) or beta.counts_episodes:
            raise ValueError(f"data.buffer.beta must be a schedule over environment steps, got {beta!r}")
        beta.check("data.buffer.beta")
        beta.check_range("data.buffer.beta", FRACTION)
        if not 0 <= epsilon < np.inf:
            raise ValueError(f"data.buffer.epsilon must be at least 0, got {epsilon}")
        self.alpha = alpha
        self.beta = beta
        self.epsilon = epsilon
        self.max_priority = 1.0
        self.tree = SumTree(1)

    def num_bytes(self, observation_shape: Sequence[int], observation_dtype: np.dtype[Any], mask_size: int = 0) -> int:
        """What the storage and the tree will take when full, in bytes; see :class:`ReplayBuffer`."""
        return super().num_bytes(observation_shape, observation_dtype, mask_size) + SumTree.num_bytes(self.capacity)

    def allocate(
        self,
        observation_shape: Sequence[int],
        observation_dtype: np.dtype[Any],
        mask_size: int = 0,
        place: Place = Place(),
    ) -> None:
        """Makes an empty storage and tree; see :meth:`ReplayBuffer.allocate`."""
        super().allocate(observation_shape, observation_dtype, mask_size, place)
        self.tree = SumTree(self.capacity)
        self.max_priority = 1.0

    def add(self, transition: Transition[NDArray[Any]]) -> None:
        """Stores transitions with the largest priority so far; see :meth:`ReplayBuffer.add`."""
        head = self._count % self.capacity
        super().add(transition)
        self.tree.fill(head, len(transition.action), self.max_priority**self.alpha)

    def _forget(self, first: int) -> None:
        # what new transitions have overwritten has their priority
        start = max(self._first, self._count - self.capacity)
        if first > start:
            self.tree.fill(start % self.capacity, first - start, 0.0)
        super()._forget(first)

    def sample(self, num_updates: int, batch_size: int, rng: np.random.Generator, env_steps: int = 0) -> ReplayBatch:
        """Draws the minibatches of ``K`` updates in one go, each stratified.

        If all priorities are 0 the draws are uniform, without correction.

        Args:
            num_updates: ``K``.
            batch_size: ``B``.
            rng: The only source of randomness.
            env_steps: The run's clock, which ``beta`` reads.

        Returns:
            Copies, ``[K, B, ...]``.

        Raises:
            RuntimeError: If nothing has been stored yet.
        """
        self._check_filled()
        fraction = (rng.random((num_updates, batch_size)) + np.arange(batch_size)) / batch_size
        try:
            slot, drawn = self.tree.sample(fraction.reshape(-1))
        except ValueError:  # every priority is 0
            return super().sample(num_updates, batch_size, rng, env_steps)
        priority = drawn.reshape(fraction.shape)
        # (N P_i)^-beta over the largest of the minibatch, which is that of the smallest priority
        weight = (priority.min(axis=1, keepdims=True) / priority) ** self.beta(env_steps, 0)
        # by name, a transition is the last one stored in its slot
        slot = slot.reshape(weight.shape)
        name = (slot - self._count) % self.capacity + (self._count - self.capacity)
        return self._gather(name, slot, torch.from_numpy(weight.astype(np.float32)))

    def schedules(self, env_steps: int) -> dict[str, float]:
        """The present beta."""
        return {"beta": self.beta(env_steps, 0)}

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Sets the priorities of sampled transitions; of one that is named twice, the last counts.

        Transitions that have been overwritten since they were sampled are left out.

        Args:
            index: The names they were sampled under, ``[K, B]``.
            td_error: Size of the TD error of each, unweighted, ``[K, B]``, finite and not negative.

        Raises:
            ValueError: If a TD error is NaN, infinite or negative.
        """
        name = index.cpu().numpy().reshape(-1)
        if td_error.dtype == torch.bfloat16:
            td_error = td_error.float()  # numpy has no such numbers
        priority = td_error.detach().cpu().numpy().reshape(-1) + np.float64(self.epsilon)
        largest = priority.max()
        if not (priority.min() >= self.epsilon and largest < np.inf):
            wrong = priority[~((priority >= self.epsilon) & (priority < np.inf))] - self.epsilon
            raise ValueError(
                f"data.buffer: TD errors must be finite and not negative, {len(wrong)} are not, such as {wrong[0]}"
            )
        present = name >= self._first
        if not present.all():
            name, priority = name[present], priority[present]
            if not len(name):
                return
            largest = priority.max()
        self.max_priority = max(self.max_priority, float(largest))
        self.tree.update(name % self.capacity, priority**self.alpha)

    def loose_arrays(self) -> dict[str, NDArray[Any]]:
        """With the priorities as they stand in the tree; see :meth:`ReplayBuffer.loose_arrays`."""
        return super().loose_arrays() | {
            "priority": self.tree.priorities[: min(self._count, self.capacity)],
            "max_priority": np.array(self.max_priority),
            "alpha": np.array(self.alpha),
        }

    def load_state_arrays(self, arrays: Mapping[str, Saved]) -> None:
        """Takes over what :meth:`state_arrays` gave.

        Raises:
            ValueError: If it does not fit this buffer, or was saved with another ``alpha``; names the field.
        """
        missing = {"priority", "max_priority", "alpha"} - set(arrays)
        if missing:
            raise ValueError(f"data.buffer: the saved replay has no {', '.join(sorted(missing))}")
        alpha, max_priority = (float(np.asarray(arrays[name])) for name in ("alpha", "max_priority"))
        if alpha != self.alpha:
            raise ValueError(f"data.buffer.alpha: the replay was saved with {alpha}, this one has {self.alpha}")
        priority = np.asarray(arrays["priority"])
        whole = priority.shape == arrays["action"].shape and np.isfinite(priority).all() and (priority >= 0).all()
        if not whole:
            raise ValueError("data.buffer: the saved priorities are not one finite number for each transition")
        super().load_state_arrays(arrays)
        self.max_priority = max_priority
        self.tree.restore(priority)
