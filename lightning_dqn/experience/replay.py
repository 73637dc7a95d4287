"""Experience replay: a ring of transitions, minibatches out.

Shapes: ``N`` environments, ``O`` the observation shape, ``K`` updates of ``B`` transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_dqn.experience.observations import ObservationStorage, WholeObservations, check_same_kind
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rows import FieldRows, HostRows, Place, Rows
from lightning_dqn.transition import ReplayBatch, Transition

_TORCH_DTYPES = {  # those that torch has too
    np.dtype(name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}
_NO_STORAGE = "the replay buffer has no storage yet: call allocate() first"
_STEP = np.dtype([("action", np.int64), ("reward", np.float32), ("discount", np.float32)])


class ReplayBuffer:
    """A ring of transitions, sampled uniformly and with replacement.

    "Self-improving reactive agents based on reinforcement learning, planning and teaching" (Lin 1992); uniform
    minibatches as in "Human-level control through deep reinforcement learning" (Mnih et al. 2015), algorithm 1.

    Args:
        capacity: How many transitions it keeps; the oldest make room for new ones.
        observations: How observations are kept; whole if not given.

    Raises:
        ValueError: If the capacity is below 1.
    """

    def __init__(self, capacity: int = 100_000, observations: ObservationStorage | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"data.buffer.capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.observations = WholeObservations() if observations is None else observations
        self._count = 0  # transitions ever stored: number c lies at c % capacity, and c is its name
        self._first = 0  # the oldest that can be drawn
        # steps, and masks if there are any: a draw finds what belongs to a step in one place
        self._columns: tuple[HostRows, ...] = ()

    def __len__(self) -> int:
        return self._count - self._first

    @property
    def count(self) -> int:
        """Transitions ever stored, which is the name of the next one."""
        return self._count

    @property
    def has_priorities(self) -> bool:
        """Whether it cares how surprising transitions are."""
        return type(self).update_priorities is not ReplayBuffer.update_priorities

    def num_bytes(self, observation_shape: Sequence[int], observation_dtype: np.dtype[Any], mask_size: int = 0) -> int:
        """What the storage will take when full, wherever it lies, in bytes.

        Args:
            observation_shape: ``O``.
            observation_dtype: What one number of an observation is stored as.
            mask_size: Actions whose legality is stored before and after each transition.
        """
        kept = self.observations.num_bytes(self.capacity, observation_shape, observation_dtype)
        return sum(kept) + self.capacity * (_STEP.itemsize + 2 * mask_size)

    def allocate(
        self,
        observation_shape: Sequence[int],
        observation_dtype: np.dtype[Any],
        mask_size: int = 0,
        place: Place = Place(),
    ) -> None:
        """Makes an empty storage for observations of this kind; what was stored before is gone.

        Args:
            observation_shape: ``O``.
            observation_dtype: What one number of an observation is stored as.
            mask_size: Actions whose legality is stored before and after each transition; 0: masks are not used.
            place: Where observations are kept; the rest is always in memory.

        Raises:
            MemoryError: If it would not fit, before anything is allocated.
            ValueError: If torch has no such dtype, or the observations are not for this kind of storage.
        """
        if np.dtype(observation_dtype) not in _TORCH_DTYPES:
            raise ValueError(f"data.env_id: observations of dtype {observation_dtype} have no torch counterpart")
        placed, _ = self.observations.num_bytes(self.capacity, observation_shape, observation_dtype)
        in_memory = self.num_bytes(observation_shape, observation_dtype, mask_size) - placed
        place.check_fits(placed, in_memory, "data.buffer.capacity")
        self.observations.allocate(self.capacity, observation_shape, observation_dtype, place)
        masks = (np.empty((self.capacity, mask_size), np.bool_) for _ in range(2 if mask_size else 0))
        self._columns = tuple(HostRows(column) for column in (np.empty(self.capacity, _STEP), *masks))
        self._count = self._first = 0

    def remember(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Takes note of what all environments show now, before transitions are made of it.

        Args:
            observation: ``[N, *O]``.
            where: Environments whose observation is not the one noted last, ``[N]``; ``None``: all.

        Returns:
            A reference to each observation, ``[N, ...]``, which stands for it in the transitions to :meth:`add`: the
            observations themselves where they are kept whole.
        """
        reference = self.observations.remember(observation, where)
        self._forget(self.observations.oldest_whole(self._first, self._count))
        return reference

    def remember_history(self, observation: NDArray[Any], env: NDArray[np.int64], num_envs: int) -> NDArray[Any]:
        """Takes note of what environments have shown in several steps; see :meth:`remember`.

        Args:
            observation: In the order of time, and of environments where that is the same, ``[T, *O]``.
            env: Of which environment each is, ``[T]``.
            num_envs: ``N``, the same at every call.

        Returns:
            A reference to each, ``[T, ...]``.
        """
        noted = self.observations.remember_history(observation, env, num_envs)
        self._forget(self.observations.oldest_whole(self._first, self._count))
        return noted

    def add(self, transition: Transition[NDArray[Any]]) -> None:
        """Stores transitions, overwriting the oldest where there is no room.

        Args:
            transition: Fields ``[M, ...]``, copied, with references in place of observations; ``M`` may be 0 and at
                most the capacity.

        Raises:
            RuntimeError: Before :meth:`allocate`.
            ValueError: If there are more of them than fit at all.
        """
        if not self._columns:
            raise RuntimeError(_NO_STORAGE)
        count = len(transition.action)
        if count > self.capacity:
            raise ValueError(f"data.buffer.capacity: {count} transitions at once do not fit into {self.capacity}")
        step = np.empty(count, _STEP)
        step["action"], step["reward"], step["discount"] = transition[1:4]
        masks = transition[5:] if len(self._columns) > 1 else ()
        for column, rows in zip(self._columns, (step, *masks), strict=True):
            assert rows is not None, "this buffer stores action masks"
            column.put(self._count, rows)
        self.observations.put(self._count, transition.observation, transition.next_observation)
        self._count += count
        self._forget(self.observations.oldest_whole(max(self._first, self._count - self.capacity), self._count))

    def sample(self, num_updates: int, batch_size: int, rng: np.random.Generator, env_steps: int = 0) -> ReplayBatch:
        """Draws the minibatches of ``K`` updates in one gather.

        Args:
            num_updates: ``K``.
            batch_size: ``B``.
            rng: The only source of randomness.
            env_steps: The run's clock; uniform sampling is the same at all times.

        Returns:
            Copies, ``[K, B, ...]``.

        Raises:
            RuntimeError: If nothing has been stored yet.
        """
        self._check_filled()
        name = self._first + rng.integers(len(self), size=(num_updates, batch_size))
        return self._gather(name, name % self.capacity, torch.ones(num_updates, batch_size))

    def schedules(self, env_steps: int) -> dict[str, float]:
        """The values its draws depend on at this moment, by the name they are logged under (``collect/<name>``)."""
        return {}

    def update_priorities(self, index: Tensor, td_error: Tensor) -> None:
        """Tells how surprising sampled transitions turned out to be; uniform sampling does not care.

        Args:
            index: The names they were sampled under, ``[K, B]``.
            td_error: Size of the TD error of each, unweighted, ``[K, B]``.
        """

    def rings(self) -> dict[str, Rows]:
        """What is stored row by row, by name.

        A row stays as it was put until the ring has come round. So what has changed since another moment is told by how
        many had been put then.
        """
        return self.observations.rings() | self._fields()

    def loose_arrays(self) -> dict[str, NDArray[Any]]:
        """What else there is to save, by name; it may change anywhere."""
        numbers = {"count": np.array(self._count, np.int64), "first": np.array(self._first, np.int64)}
        return self.observations.loose_arrays() | numbers

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """All of both, the rows from slot 0 of their ring on; views where that can be."""
        return {name: rows.numpy(0, len(rows)) for name, rows in self.rings().items()} | self.loose_arrays()

    def load_state_arrays(self, arrays: Mapping[str, Saved]) -> None:
        """Takes over what :meth:`state_arrays` gave, into an allocated buffer of the same kind.

        Raises:
            ValueError: If it does not fit this buffer; names the field.
        """
        fields = self._fields()
        missing = {*fields, "count", "first"} - set(arrays)
        if missing:
            raise ValueError(f"data.buffer: the saved replay has no {', '.join(sorted(missing))}")
        for name in ("count", "first"):
            check_same_kind(name, arrays, (), np.dtype(np.int64))
        count, first = (int(np.asarray(arrays[name])) for name in ("count", "first"))
        size = min(count, self.capacity)
        if len(arrays["action"]) != size:
            raise ValueError(f"data.buffer.capacity: another one than that of the saved replay (got {self.capacity}).")
        for name, rows in fields.items():
            check_same_kind(name, arrays, (size, *rows.shape[1:]), rows.dtype)
        self.observations.load_state_arrays(arrays, count)
        for name, rows in fields.items():
            rows.restore(arrays[name], count)
        self._count, self._first = count, first

    @property
    def storage(self) -> Transition[Tensor]:
        """All slots of the ring, fields ``[capacity, ...]``: observations copied, the rest as it lies there.

        Raises:
            RuntimeError: Before :meth:`allocate`.
        """
        fields = {name: torch.from_numpy(rows.array) for name, rows in self._fields().items()}
        observation, next_observation = self.observations.take(np.arange(self.capacity))
        return Transition(observation=observation, next_observation=next_observation, **fields)

    def _fields(self) -> dict[str, HostRows]:
        if not self._columns:
            raise RuntimeError(_NO_STORAGE)
        step, *masks = self._columns
        fields: dict[str, HostRows] = {name: FieldRows(step, name) for name in _STEP.names or ()}
        return fields | dict(zip(("action_mask", "next_action_mask"), masks, strict=False))

    def _forget(self, first: int) -> None:
        """Leaves out of all draws what is older than ``first``."""
        self._first = first

    def _check_filled(self) -> None:
        if self._count == self._first:
            raise RuntimeError(
                "the replay buffer is empty: an ExperienceCollector has to fill it, "
                "and the ExperienceDataModule has to be given to the Trainer as `datamodule=`"
            )

    def _gather(self, name: NDArray[np.int64], slot: NDArray[np.int64], weight: Tensor) -> ReplayBatch:
        step, *masks = (column.array.take(slot, axis=0) for column in self._columns)
        observation, next_observation = self.observations.take(slot)
        action, reward, discount = (torch.from_numpy(step[field]) for field in _STEP.names or ())
        legal = (torch.from_numpy(mask) for mask in masks)
        transition = Transition(observation, action, reward, discount, next_observation, *legal)
        return ReplayBatch(transition, torch.from_numpy(name), weight)


class ReplayDataset(IterableDataset[ReplayBatch]):
    """The buffer as the Trainer sees it: an endless stream of batches, cut into epochs of a fixed length.

    It has a length on purpose: for a dataset without one the Trainer fetches a batch ahead, so that every batch is
    drawn one iteration too early and the first from an empty buffer. Give it to the Trainer as it is, not in a
    :class:`~torch.utils.data.DataLoader`.

    Args:
        buffer: Where the batches come from.
        batch_size: ``B``.
        gradient_steps: ``K``, updates per batch.
        iterations_per_epoch: Batches in an epoch.
        rng: Which transitions are drawn.
        clock: Says how many environment steps have been taken.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        batch_size: int,
        gradient_steps: int,
        iterations_per_epoch: int,
        rng: np.random.Generator,
        clock: Callable[[], int] = int,
    ) -> None:
        self.clock = clock
        self.buffer = buffer
        self.batch_size = batch_size
        self.gradient_steps = gradient_steps
        self.iterations_per_epoch = iterations_per_epoch
        self.rng = rng

    def __len__(self) -> int:
        return self.iterations_per_epoch

    def __iter__(self) -> Iterator[ReplayBatch]:
        """Draws from what the buffer holds at the moment of each draw.

        Raises:
            RuntimeError: In a worker process, which would see a copy of the buffer that never fills.
        """
        _refuse_workers()
        while True:
            yield self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.clock())

    def state_dict(self) -> dict[str, int]:
        """Nothing; but having one tells the Trainer that the stream can be resumed, which the collector sees to."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing to do."""


def _refuse_workers() -> None:
    if get_worker_info() is not None:
        raise RuntimeError(
            "num_workers must be 0: worker processes hold a copy of the replay buffer that new experience never "
            "reaches. Pass the dataset itself to the Trainer; it needs no DataLoader."
        )
