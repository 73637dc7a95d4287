"""Stacks of frames kept frame by frame: a frame that many stacks share is stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.experience.observations import ObservationStorage, check_same_kind
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rows import HostRows, Place, Rows, make_rows


class SharedFrames(ObservationStorage):
    """Observations are stacks of frames, each of which is stored once and referred to by its name.

    A name is the frame's place in the order of all ever stored. A stack whose older frames are those of the stack seen
    before it, moved on by one, brings one new frame; any other stack is taken apart, and equal neighbours in it (as at
    the start of an episode) are one frame. So whatever an environment does at the start, at the end and in between, a
    stack is read as it was seen. Frames are compared, not assumed.

    The ring of frames has room for one frame a transition, and ``spare_frames`` for those at both ends of episodes.
    Should these not suffice, the oldest transitions go a little before the buffer is full.

    Args:
        stack_size: Frames in an observation: observations are ``(stack_size * channels, height, width)``, the newest
            frame last, as unsigned bytes or booleans. 1 for images that are not stacked: then a transition shares its
            image with the next.
        spare_frames: Frames that are kept beyond one for each transition.

    Raises:
        ValueError: If an argument is out of range; names the field.
    """

    frames: Rows

    def __init__(self, stack_size: int = 4, spare_frames: int = 2_048) -> None:
        if stack_size < 1:
            raise ValueError(f"data.buffer.observations.stack_size must be at least 1, got {stack_size}")
        if spare_frames < 0:
            raise ValueError(f"data.buffer.observations.spare_frames must be at least 0, got {spare_frames}")
        self.stack_size = stack_size
        self.spare_frames = spare_frames
        self._count = 0  # frames ever stored: number f lies at f % len(frames), and f is its name

    def num_bytes(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int]:
        """Bytes of frames and of their names; see :meth:`ObservationStorage.num_bytes`."""
        frame = prod(shape) // self.stack_size * np.dtype(dtype).itemsize
        return (capacity + self.spare_frames) * frame, capacity * 2 * self.stack_size * 8

    def allocate(self, capacity: int, shape: Sequence[int], dtype: np.dtype[Any], place: Place) -> None:
        """Makes an empty storage; see :meth:`ObservationStorage.allocate`.

        Raises:
            ValueError: If observations are not stacks of images.
        """
        self._check_images(shape, np.dtype(dtype))
        self._shape = tuple(shape)
        frame = (shape[0] // self.stack_size, *shape[1:])
        self.frames = make_rows(capacity + self.spare_frames, frame, dtype, place)
        self._names = HostRows(np.empty((capacity, 2, self.stack_size), np.int64))
        self._count = 0
        self._reach = 0  # how many frames ago the oldest frame of a transition was stored, when it was: at most
        self._seen: NDArray[Any] | None = None
        self._seen_names = np.full((0, self.stack_size), -1)

    def remember(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Stores the frames that are new.

        Args:
            observation: ``[N, *O]``.
            where: Environments whose observation is not the one noted last, ``[N]``; ``None``: all.

        Returns:
            Names of the frames of each observation, ``[N, stack_size]``, int64.
        """
        stacks = observation.reshape(len(observation), self.stack_size, *self.frames.shape[1:])
        if self._seen is None or len(self._seen) != len(stacks):
            self._seen = np.zeros_like(stacks)
            self._seen_names = np.full(stacks.shape[:2], -1)
        rows = np.arange(len(stacks)) if where is None else np.flatnonzero(where)
        stacks, names = stacks[rows], self._seen_names[rows]
        moved_on = _equal(stacks[:, :-1], self._seen[rows, 1:]) & (names[:, 0] >= 0)
        new = np.ones(names.shape, np.bool_)
        new[moved_on, :-1] = False
        taken_apart = np.flatnonzero(~moved_on)
        if len(taken_apart):
            apart = stacks[taken_apart]
            new[taken_apart, 1:] = ~_equal_frames(apart[:, 1:], apart[:, :-1])
        # a frame that is not new has the name of the one before it in the stack, or the one it had when last seen
        following = self._count - 1 + new.cumsum().reshape(names.shape)
        following[moved_on, :-1] = names[moved_on, 1:]
        self.frames.put(self._count, stacks[new])
        self._count += int(new.sum())
        self._seen[rows] = stacks
        self._seen_names[rows] = following
        return self._seen_names.copy()

    def put(self, name: int, reference: NDArray[Any], next_reference: NDArray[Any]) -> None:
        """Keeps the names of the frames; see :meth:`ObservationStorage.put`.

        Raises:
            ValueError: If frames of an unfinished window are gone before it closes.
        """
        if not len(reference):
            return
        self._names.put(name, np.stack((reference, next_reference), axis=1))
        self._reach = max(self._reach, self._count - int(reference.min()), self._count - int(next_reference.min()))
        if self._reach > self.frames.shape[0]:
            raise ValueError(
                f"data.buffer.observations.spare_frames: {self.frames.shape[0]} frames are not enough for the windows "
                f"that are open at once, which reach back {self._reach}; choose more, or a larger data.buffer.capacity"
            )

    def take(self, slot: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Stacks put together again, each ``[*slot.shape, *O]``."""
        names = self._names.array.take(slot, axis=0) % self.frames.shape[0]
        before, after = (self.frames.take(np.ascontiguousarray(names[..., when, :])) for when in (0, 1))
        return before.view(*slot.shape, *self._shape), after.view(*slot.shape, *self._shape)

    def oldest_whole(self, first: int, count: int) -> int:
        """See :meth:`ObservationStorage.oldest_whole`."""
        # a transition was stored after its newest frame, and neither it nor one after it reaches back further than
        # `reach` from there
        gone = self._count - self.frames.shape[0]
        names = self._names.array
        while first < count and names[first % len(names)].max() + 1 - self._reach < gone:
            first += 1
        return first

    def rings(self) -> dict[str, Rows]:
        """See :meth:`ObservationStorage.rings`."""
        return {"frames": self.frames, "frame_names": self._names}

    def loose_arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`ObservationStorage.loose_arrays`."""
        return {"frame_count": np.array([self._count, self._reach], np.int64), "frames_seen": self._seen_names}

    def load_state_arrays(self, arrays: Mapping[str, Saved], count: int) -> None:
        """See :meth:`ObservationStorage.load_state_arrays`."""
        check_same_kind("frame_count", arrays, (2,), np.dtype(np.int64))
        stored, reach = (int(number) for number in np.asarray(arrays["frame_count"]))
        for name, rows, put in (("frames", self.frames, stored), ("frame_names", self._names, count)):
            check_same_kind(name, arrays, (min(put, rows.shape[0]), *rows.shape[1:]), rows.dtype)
        seen = np.asarray(arrays.get("frames_seen", np.empty((0, 0))))
        check_same_kind("frames_seen", arrays, (len(seen), self.stack_size), np.dtype(np.int64))
        self.frames.restore(arrays["frames"], stored)
        self._names.restore(arrays["frame_names"], count)
        self._count, self._reach = stored, reach
        self._seen_names = seen.copy()
        self._seen = self.frames.take(np.maximum(seen, 0) % self.frames.shape[0]).cpu().numpy()

    def _check_images(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        if dtype not in (np.uint8, np.bool_):
            raise ValueError(
                f"data.buffer.observations: frames are kept as unsigned bytes or booleans, but the observations are "
                f"{dtype}; scale them in the network, not in a wrapper"
            )
        if len(shape) != 3:
            raise ValueError(
                f"data.buffer.observations: SharedFrames keeps images (channels, height, width), but the observations "
                f"are {tuple(shape)}; leave data.buffer.observations out"
            )
        if shape[2] < min(shape[:2]):
            raise ValueError(
                f"data.buffer.observations: channels come first, but the observations are {tuple(shape)}; transpose "
                "them in a wrapper"
            )
        if shape[0] % self.stack_size:
            raise ValueError(
                f"data.buffer.observations.stack_size: {shape[0]} channels are no stack of {self.stack_size} frames; "
                f"the observations are {tuple(shape)}"
            )


def _equal(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether all frames of two stacks are equal, ``[N]``; true of no frames at all."""
    return np.asarray(_equal_frames(left, right).all(axis=1), np.bool_)


def _equal_frames(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    """Which frames of two stacks are equal, ``[N, frames]``."""
    return np.asarray((left == right).all(axis=tuple(range(2, left.ndim))), np.bool_)
