"""How a replay buffer keeps observations: whole, one before and one after each transition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rows import Place, Rows, make_rows


class ObservationStorage(ABC):
    """Keeps what was observed before and after each transition.

    Observations come in when they are seen (:meth:`remember`) and go from hand to hand as *references*, rows of an
    array with whatever stands for them; with a transition its two references are put into its slot, and observations
    are taken out again by slot. Shapes: ``N`` environments, ``O`` the observation shape.
    """

    @abstractmethod
    def num_bytes(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
        """Bytes it takes when full: of observations, where these are kept, and of what is always in memory.

        Args:
            capacity: Transitions.
            shape: ``O``.
            dtype: What one number of an observation is stored as.
        """

    @abstractmethod
    def allocate(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any], place: Place) -> None:
        """Makes an empty storage; what was kept before is gone.

        Args:
            capacity: Transitions.
            shape: ``O``.
            dtype: What one number of an observation is stored as.
            place: Where observations are kept.

        Raises:
            ValueError: If it is not for such observations; names the field.
        """

    @abstractmethod
    def remember(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Takes note of what all environments show now.

        Args:
            observation: ``[N, *O]``.
            where: Environments whose observation is not the one noted last, ``[N]``; ``None``: all.

        Returns:
            A reference to each, ``[N, ...]``.
        """

    def remember_history(self, observation: NDArray[Any], env: NDArray[np.int64], num_envs: int) -> NDArray[Any]:
        """Takes note of what environments have shown, one moment after the other.

        Args:
            observation: In the order of time, and of environments where that is the same, ``[T, *O]``.
            env: Of which environment each is, ``[T]``.
            num_envs: ``N``, the same at every call.

        Returns:
            A reference to each, ``[T, ...]``.
        """
        moments = np.flatnonzero(np.diff(env) <= 0) + 1
        shown = np.zeros((num_envs, *observation.shape[1:]), observation.dtype)
        references = []
        for seen, rows in zip(np.split(observation, moments), np.split(env, moments), strict=True):
            where = np.zeros(num_envs, np.bool_)
            where[rows], shown[rows] = True, seen
            references.append(self.remember(shown, where)[rows])
        return np.concatenate(references)

    @abstractmethod
    def put(self, name: int, reference: NDArray[Any], next_reference: NDArray[Any]) -> None:
        """Keeps the observations of transitions that are stored one after the other, the first as ``name``.

        Args:
            name: Its place in the order of all transitions ever stored; the slot is that modulo the capacity.
            reference: To what was acted on, ``[M, ...]``.
            next_reference: To what followed, ``[M, ...]``.
        """

    @abstractmethod
    def take(self, slot: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """What was acted on and what followed, each ``[*slot.shape, *O]``."""

    @abstractmethod
    def oldest_whole(self, first: int, count: int) -> int:
        """The first transition of ``first`` to ``count`` from which on all observations are still there."""

    @abstractmethod
    def rings(self) -> dict[str, Rows]:
        """What is kept row by row, by name; see :meth:`ReplayBuffer.rings`."""

    def loose_arrays(self) -> dict[str, NDArray[Any]]:
        """What else there is to save, by name."""
        return {}

    @abstractmethod
    def load_state_arrays(self, arrays: Mapping[str, Saved], count: int) -> None:
        """Takes over what was in :meth:`rings` and :meth:`loose_arrays`.

        Args:
            arrays: By name.
            count: Transitions that had ever been stored.

        Raises:
            ValueError: If something is missing or does not fit; names the field.
        """


class WholeObservations(ObservationStorage):
    """Every observation as it is, twice: for the transition it leads to and the one it follows from.

    The quickest for small observations, and right for any.

    Attributes:
        before: What was acted on, ``[capacity, *O]``.
        after: What followed.
    """

    before: Rows
    after: Rows

    def num_bytes(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
        """See :meth:`ObservationStorage.num_bytes`."""
        return 2 * capacity * int(np.prod(shape)) * np.dtype(dtype).itemsize, 0

    def allocate(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any], place: Place) -> None:
        """See :meth:`ObservationStorage.allocate`."""
        self.before, self.after = (make_rows(capacity, shape, dtype, place) for _ in range(2))

    def remember(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """The observations themselves, which are kept when their transitions are."""
        return observation

    def remember_history(self, observation: NDArray[Any], env: NDArray[np.int64], num_envs: int) -> NDArray[Any]:
        """The observations themselves."""
        return observation

    def put(self, name: int, reference: NDArray[Any], next_reference: NDArray[Any]) -> None:
        """See :meth:`ObservationStorage.put`."""
        self.before.put(name, reference)
        self.after.put(name, next_reference)

    def take(self, slot: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See :meth:`ObservationStorage.take`."""
        return self.before.take(slot), self.after.take(slot)

    def oldest_whole(self, first: int, count: int) -> int:
        """The first: observations come and go with their transition."""
        return first

    def rings(self) -> dict[str, Rows]:
        """See :meth:`ObservationStorage.rings`."""
        return {"observation": self.before, "next_observation": self.after}

    def load_state_arrays(self, arrays: Mapping[str, Saved], count: int) -> None:
        """See :meth:`ObservationStorage.load_state_arrays`."""
        for name, rows in self.rings().items():
            check_same_kind(name, arrays, (min(count, rows.shape[0]), *rows.shape[1:]), rows.dtype)
        for name, rows in self.rings().items():
            rows.restore(arrays[name], count)


def check_same_kind(name: str, arrays: Mapping[str, Saved], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuses a saved array that is missing or not what this buffer holds.

    Args:
        name: Which.
        arrays: All that was saved.
        shape: What it must be.
        dtype: What it must be.

    Raises:
        ValueError: If it is not; names it.
    """
    if name not in arrays:
        raise ValueError(f"data.buffer: the saved replay has no {name}")
    saved = arrays[name]
    if saved.shape != shape or saved.dtype != dtype:
        raise ValueError(
            f"data.buffer: the saved {name} is {saved.shape} {saved.dtype}, this buffer holds {shape} {dtype}; resume "
            "with the capacity and environment it was saved with"
        )
