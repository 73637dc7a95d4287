from functools import partial

import numpy as np

from lightning_dqn.experience.pieces import Pieces


def cut(array, *sizes):
    """An array in pieces, and a list of those that were read."""
    read = []

    def piece(start, stop):
        read.append((start, stop))
        return array[start:stop]

    ends = np.cumsum(sizes).tolist()
    parts = [partial(piece, stop - size, stop) for size, stop in zip(sizes, ends, strict=True)]
    return Pieces(array.shape, array.dtype, parts), read


def test_pieces_are_read_one_after_the_other_and_only_when_asked_for():
    array = np.arange(14, dtype=np.int32).reshape(7, 2)
    pieces, read = cut(array, 3, 3, 1)
    assert (len(pieces), pieces.shape, pieces.dtype) == (7, (7, 2), np.dtype(np.int32))
    assert read == []
    for i, piece in enumerate(pieces):
        assert len(read) == i + 1
        assert (piece == array[slice(*read[-1])]).all()


def test_put_together_they_are_the_array():
    array = np.arange(6, dtype=np.float32)
    pieces, _ = cut(array, 4, 2)
    assert np.asarray(pieces).dtype == array.dtype
    assert (np.asarray(pieces) == array).all()
    assert np.isfinite(np.asarray(pieces, np.float64)).all()
    assert np.asarray(cut(array[:0], 0)[0]).shape == (0,)
