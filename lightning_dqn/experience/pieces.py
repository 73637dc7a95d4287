"""Arrays that lie in several files, one piece after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Pieces:
    """An array cut along its rows; who goes through it has one piece in memory at a time.

    Args:
        shape: That of the whole, ``(count, *row)``.
        dtype: What its numbers are.
        read: A function for each piece, which gives ``[M, *row]``.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], read: Sequence[Callable[[], NDArray[Any]]]
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """The pieces, from the first row on."""
        return (read() for read in self._read)

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        """The whole, in memory; for those who can afford it."""
        return np.concatenate(list(self)).astype(dtype or self.dtype, copy=False)


Saved = NDArray[Any] | Pieces
