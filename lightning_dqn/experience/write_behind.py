"""What a snapshot will need, written while training goes on."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from lightning_dqn.experience.rows import Rows
from lightning_dqn.experience.segments import SegmentStore, segments
from lightning_dqn.files import check_space, is_held, scratch_directory

_PAUSE = 1.0  # seconds between two looks at the rings
_RESERVE = 2**30  # bytes of a disk that are left to those who cannot wait


class WriteBehind:
    """Writes the segments of rings as they become final, into two stores in turn; a thread does it.

    Two, so that a snapshot and the one before never share a file: what damages one leaves the other whole. A snapshot
    shares files with the one before the last, whose place it takes. Until the first turn both are filled: there are no
    two snapshots yet that take room on the disk.

    Nothing is asked of whoever fills the rings: what was overtaken while it was read is noticed and left out.

    Args:
        path: The folder of the stores stands beside it, and is named after it.
        rings: What is going to be saved, by name.

    Raises:
        OSError: If the folder cannot be made, or the disk has no locks or no hard links.
    """

    def __init__(self, path: Path, rings: Mapping[str, Rows]) -> None:
        self._rings = rings
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch_directory(path))
            if not is_held(folder):
                raise OSError(errno.ENOLCK, "no locks", str(folder))
            (folder / "probe").touch()
            (folder / "link").hardlink_to(folder / "probe")
            self._stores = [SegmentStore(folder / "0"), SegmentStore(folder / "1")]
            self._remove = stack.pop_all().close
        self._filled = 2  # stores that the thread fills

    @property
    def store(self) -> SegmentStore:
        """The one that the next snapshot takes its files from; not to be used while the thread is at work."""
        return self._stores[0]

    @property
    def other(self) -> SegmentStore:
        """The one that the last snapshot had its files from."""
        return self._stores[1]

    def switch(self) -> None:
        """Goes over to the other store; not while the thread is at work."""
        self._stores.reverse()
        self._filled = 1

    def start(self) -> None:
        """Begins to write; if the disk fails, no more is written until the next start."""
        self._ended.clear()
        self._thread = threading.Thread(
            target=self._run, args=(self._stores[: self._filled],), name="replay", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Writes no more, once the segment is written that is under way."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Writes no more, and leaves no folder."""
        self.stop()
        self._remove()

    def _run(self, stores: Sequence[SegmentStore]) -> None:
        with contextlib.suppress(OSError):  # the save will say what is wrong with the disk, if it still is
            while True:
                for store, segment in product(stores, segments(self._rings)):
                    if self._ended.is_set():
                        return
                    if segment.is_final(segment.stamp()) and not store.holds(segment):
                        check_space(store.folder, segment.num_bytes + _RESERVE)
                        store.add(segment)
                if self._ended.wait(_PAUSE):
                    return
