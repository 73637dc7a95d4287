"""A sum tree with wide nodes: draws and updates of many items at once, in a handful of array operations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_WIDTH = 32
_SHIFT = 5  # _WIDTH == 2 ** _SHIFT

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class SumTree:
    """Priorities in float64, with the sums of every 32 and of every 32 times 32 of them.

    A draw finds its group of 1,024 items in the running sum over all of these, then its block of 32, then its item, so
    the number of array operations does not depend on the capacity. Where an item changes, the sums above it are taken
    anew rather than shifted by the difference: what is rounded away never adds up.

    Args:
        capacity: Number of items; all begin with priority 0.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        groups = -(-capacity // _WIDTH**2)
        self._items = _aligned(groups * _WIDTH)
        self._blocks = _aligned(groups)
        self._groups = np.zeros(groups)

    @staticmethod
    def num_bytes(capacity: int) -> int:
        """Memory a tree takes, in bytes."""
        return 8 * -(-capacity // _WIDTH**2) * (1 + _WIDTH + _WIDTH**2)

    @property
    def priorities(self) -> Floats:
        """Of all items, ``[capacity]``; a view, not to be written to."""
        return self._items.reshape(-1)[: self.capacity]

    @property
    def total(self) -> float:
        """Sum of all priorities."""
        return float(self._groups.sum())

    def fill(self, start: int, count: int, priority: float) -> None:
        """Gives ``count`` items from ``start`` on the same priority, going on at 0 after the last.

        Args:
            start: First item.
            count: How many, at most the capacity.
            priority: Finite and not negative.
        """
        until_end = min(count, self.capacity - start)
        for first, last in ((start, start + until_end), (0, count - until_end)):
            if first < last:
                self._items.reshape(-1)[first:last] = priority
                self._sum_up(np.arange(first >> _SHIFT, (last - 1 >> _SHIFT) + 1))

    def update(self, item: Indices, priority: Floats) -> None:
        """Sets priorities; of an item that is given twice, the last counts.

        Args:
            item: ``[n]``, within the capacity.
            priority: ``[n]``, finite and not negative.
        """
        self._items.reshape(-1)[item] = priority
        self._sum_up(item >> _SHIFT)

    def restore(self, priorities: Floats) -> None:
        """Sets the priorities of the first items, and 0 for the rest.

        Args:
            priorities: ``[n]``, ``n`` at most the capacity.
        """
        self._items.fill(0.0)
        self._items.reshape(-1)[: len(priorities)] = priorities
        self._sum_up(np.arange(len(self._items)))

    def sample(self, fraction: Floats) -> tuple[Indices, Floats]:
        """Finds the items that lie at fractions of the total.

        Args:
            fraction: In [0, 1), ``[n]``.

        Returns:
            The items, every one of positive priority, ``[n]``; and their priorities, ``[n]``.

        Raises:
            ValueError: If all priorities are 0.
        """
        sums = self._groups.cumsum()
        if not sums[-1] > 0:
            raise ValueError("every priority is 0: nothing can be drawn in proportion to it")
        rest = fraction * sums[-1]
        group = np.minimum(sums.searchsorted(rest, side="right"), len(sums) - 1)
        rest -= (sums - self._groups).take(group)
        child, sums = _search(self._blocks, group, rest)
        block = (group << _SHIFT) + child
        rest -= sums.take(child + np.arange(0, sums.size, _WIDTH)) - self._blocks.take(block)
        child, _ = _search(self._items, block, rest)
        item = (block << _SHIFT) + child
        priority = self._items.take(item)
        if not priority.min() > 0:
            item, priority = self._step_aside(item, priority)
        return item, priority

    def _sum_up(self, block: Indices) -> None:
        self._blocks.reshape(-1)[block] = _row_sums(self._items.take(block, axis=0))
        group = block >> _SHIFT
        self._groups[group] = _row_sums(self._blocks.take(group, axis=0))

    def _step_aside(self, item: Indices, priority: Floats) -> tuple[Indices, Floats]:
        # a rounded sum can point just past the last item of a block, onto one that must never be drawn
        drawable = self._items.reshape(-1).nonzero()[0]
        nearest = np.maximum(drawable.searchsorted(item, side="right") - 1, 0)
        item = np.where(priority > 0, item, drawable[nearest])
        return item, self._items.take(item)


def _search(level: Floats, row: Indices, rest: Floats) -> tuple[NDArray[np.uint8], Floats]:
    """Finds in each row the child that ``rest`` falls into.

    Returns:
        The child, ``[n]``, and the running sums of its row, ``[n, 32]``.
    """
    sums = level.take(row, axis=0)
    torch.from_numpy(sums).cumsum_(1)  # numpy's running sums along the last axis are many times slower
    # one bit for each child that ends at or before it, counted: nothing here branches on what was drawn
    ended = np.packbits(sums <= rest[:, None]).view(np.uint32)
    return np.minimum(np.bitwise_count(ended), _WIDTH - 1), sums


def _row_sums(rows: Floats) -> Floats:
    sums: Floats = np.einsum("ij->i", rows)  # every row in the same way, however many there are
    return sums


def _aligned(rows: int) -> Floats:
    """Zeros, ``[rows, 32]``, of which no row touches one more cache line than it must."""
    memory = np.zeros(rows * _WIDTH + 7)
    skipped = -memory.ctypes.data % 64 // 8
    return memory[skipped : skipped + rows * _WIDTH].reshape(rows, _WIDTH)
