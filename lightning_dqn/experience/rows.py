"""Many equal rows in a ring, wherever they lie: in memory, in a file on disk, on an accelerator."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.experience.memory import check_device_fits, check_disk_fits, check_fits
from lightning_dqn.experience.pieces import Saved


class Place(NamedTuple):
    """Where observations lie.

    Attributes:
        directory: A folder on disk; a file in it is mapped into memory. ``None``: in memory.
        device: An accelerator; ``None`` or the CPU: here.
    """

    directory: Path | None = None
    device: torch.device | None = None

    @property
    def is_memory(self) -> bool:
        """Whether it is this machine's memory that is taken."""
        return self.directory is None and not self.is_device

    @property
    def is_device(self) -> bool:
        """Whether it is an accelerator's memory that is taken."""
        return self.device is not None and self.device.type != "cpu"

    def check_fits(self, num_bytes: int, elsewhere: int, field: str) -> None:
        """Refuses what would not fit; nothing is allocated.

        Args:
            num_bytes: What is going to lie here.
            elsewhere: What lies in memory, wherever the rest does.
            field: Named in the error.

        Raises:
            MemoryError: With what is needed and what there is.
        """
        check_fits(elsewhere + num_bytes * self.is_memory, field)
        if self.directory is not None:
            check_disk_fits(num_bytes, self.directory, field)
        elif self.is_device:
            assert self.device is not None
            check_device_fits(num_bytes, self.device, field)


class Rows(ABC):
    """A ring of rows of one shape and dtype.

    Attributes:
        shape: That of all rows, ``(count, *row)``.
        dtype: As numpy calls it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _count = _begun = 0

    def __len__(self) -> int:
        """How many there are."""
        return min(self.count, self.shape[0])

    @property
    def row_bytes(self) -> int:
        """What one of them takes."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def count(self) -> int:
        """How many were ever put, those being written left out."""
        return self._count

    @property
    def begun(self) -> int:
        """How many were ever put, those being written included.

        So another thread that looks at :attr:`count`, reads, and finds that :attr:`begun` has not reached what it read,
        has read rows as they were put.
        """
        return self._begun

    @abstractmethod
    def put(self, name: int, rows: NDArray[Any]) -> None:
        """Writes rows one after the other, beginning again at the front where the ring ends.

        Args:
            name: The first of them goes to ``name`` modulo the count of the ring.
            rows: ``[M, *row]``, at most as many as the ring has.
        """

    @abstractmethod
    def take(self, slot: NDArray[np.int64]) -> Tensor:
        """Copies of rows, ``[*slot.shape, *row]``, on the device they lie on."""

    @abstractmethod
    def numpy(self, start: int, stop: int) -> NDArray[Any]:
        """The rows in these slots: a view of them where that can be, else a copy."""

    def restore(self, saved: Saved, count: int) -> None:
        """Takes over rows that were saved when ``count`` had been put.

        Args:
            saved: From slot 0 on, ``[M, *row]``.
            count: See :attr:`count`.
        """
        start = 0
        for piece in [saved] if isinstance(saved, np.ndarray) else saved:
            self.put(start, piece)
            start += len(piece)
        self._begun = self._count = count

    def _parts(self, name: int, count: int) -> tuple[int, int]:
        """The slot of the first row, and how many rows come before the ring's end."""
        head = name % self.shape[0]
        return head, min(count, self.shape[0] - head)


class HostRows(Rows):
    """Rows in an array of numpy's, in memory or in a file that is mapped there.

    Args:
        array: Where they are kept, ``[count, *row]``.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def put(self, name: int, rows: NDArray[Any]) -> None:
        """See :meth:`Rows.put`."""
        self._begun = name + len(rows)
        head, until_end = self._parts(name, len(rows))
        self.array[head : head + until_end] = rows[:until_end]
        if until_end < len(rows):
            self.array[: len(rows) - until_end] = rows[until_end:]
        self._count = self._begun

    def take(self, slot: NDArray[np.int64]) -> Tensor:
        """See :meth:`Rows.take`."""
        return torch.from_numpy(self.array.take(slot, axis=0))  # numpy takes rows in half the time torch does

    def numpy(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Rows.numpy`."""
        return self.array[start:stop]


class FieldRows(HostRows):
    """One field of rows that have several, seen where it lies; it counts as they do.

    Args:
        rows: Which have it.
        name: Of the field.
    """

    def __init__(self, rows: HostRows, name: str) -> None:
        super().__init__(rows.array[name])
        self._rows = rows

    @property
    def count(self) -> int:
        """See :attr:`Rows.count`."""
        return self._rows.count

    @property
    def begun(self) -> int:
        """See :attr:`Rows.begun`."""
        return self._rows.begun

    def restore(self, saved: Saved, count: int) -> None:
        """See :meth:`Rows.restore`."""
        super().restore(saved, count)
        self._rows._begun = self._rows._count = count


class DeviceRows(Rows):
    """Rows in a tensor, on whatever device.

    Args:
        rows: Where they are kept, ``[count, *row]``.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.shape = tuple(rows.shape)
        self.dtype = torch.empty(0, dtype=rows.dtype).numpy().dtype

    def put(self, name: int, rows: NDArray[Any]) -> None:
        """See :meth:`Rows.put`."""
        self._begun = name + len(rows)
        head, until_end = self._parts(name, len(rows))
        moved = torch.from_numpy(np.ascontiguousarray(rows, self.dtype)).to(self.rows.device)
        self.rows[head : head + until_end] = moved[:until_end]
        if until_end < len(rows):
            self.rows[: len(rows) - until_end] = moved[until_end:]
        self._count = self._begun

    def take(self, slot: NDArray[np.int64]) -> Tensor:
        """See :meth:`Rows.take`."""
        taken = self.rows.index_select(0, torch.from_numpy(slot.reshape(-1)).to(self.rows.device))
        return taken.view(*slot.shape, *self.shape[1:])

    def numpy(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Rows.numpy`."""
        copied: NDArray[Any] = self.rows[start:stop].cpu().numpy()
        return copied


def make_rows(count: int, shape: Sequence[int], dtype: np.dtype[Any], place: Place) -> Rows:
    """Makes room for rows; what they hold is undefined.

    Args:
        count: How many.
        shape: Shape of one.
        dtype: What one number is stored as; torch must have it too.
        place: Where they are to lie. A file on disk has no name: it is gone with the process, however that ends.

    Raises:
        OSError: If the disk is full, or the directory cannot be written to.
    """
    whole = (count, *shape)
    if place.directory is not None:
        return HostRows(_map_file(whole, dtype, place.directory))
    if place.is_device:
        return DeviceRows(torch.empty(whole, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, device=place.device))
    return HostRows(np.empty(whole, dtype))


def _map_file(shape: tuple[int, ...], dtype: np.dtype[Any], directory: Path) -> NDArray[Any]:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        # all of it at once: a disk that fills up later would kill the process where it writes to memory
        os.posix_fallocate(file.fileno(), 0, prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)
