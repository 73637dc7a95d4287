"""Rings cut into segments, a file each; those that will not change for a while are kept to be linked from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_dqn.experience.rows import Rows
from lightning_dqn.files import HashedFile

_SEGMENT_BYTES = 2**23
Layout = dict[str, int]


class Segment(NamedTuple):
    """Neighbouring slots of a ring.

    Attributes:
        file: Name of the file that holds their rows.
        rows: The ring.
        start: The first slot.
        stop: The slot after the last.
    """

    file: str
    rows: Rows
    start: int
    stop: int

    def stamp(self, count: int | None = None) -> int:
        """How many rows had ever been put here; as long as that is the same, so is what is here.

        Args:
            count: Of rows ever put into the ring; ``None``: those that are there whole.
        """
        laps, head = divmod(self.rows.count if count is None else count, self.rows.shape[0])
        size = self.stop - self.start
        return laps * size + min(max(head - self.start, 0), size)

    def is_final(self, stamp: int) -> bool:
        """Whether nothing can change here before the ring has come round."""
        return stamp > 0 and stamp % (self.stop - self.start) == 0

    def read(self) -> NDArray[Any]:
        """The rows there are, a view where that can be."""
        return self.rows.numpy(self.start, min(self.stop, len(self.rows)))

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return self.rows.row_bytes * (min(self.stop, len(self.rows)) - self.start)


def layout(rows: Rows) -> Layout:
    """How a ring is cut: ``slots`` it has, slots in a ``segment``, and the ``count`` of rows ever put."""
    segment = max(1, _SEGMENT_BYTES // max(1, rows.row_bytes))
    return {"slots": rows.shape[0], "segment": segment, "count": rows.count}


def segment_files(name: str, cut: Layout) -> list[str]:
    """The files that the rows of a ring are in, from slot 0 on; at least one."""
    stored = min(cut["count"], cut["slots"])
    return [f"{name}.{i}.npy" for i in range(max(1, -(-stored // cut["segment"])))]


def segments(rings: Mapping[str, Rows]) -> Iterator[Segment]:
    """All segments in which there is something, of all rings; one of a ring that is empty."""
    for name, rows in rings.items():
        cut = layout(rows)
        for i, file in enumerate(segment_files(name, cut)):
            start = i * cut["segment"]
            yield Segment(file, rows, start, min(start + cut["segment"], cut["slots"]))


def write_array(path: Path, array: NDArray[Any]) -> str:
    """Writes an array and waits until it is on disk; returns the SHA-256 of the file."""
    with HashedFile(path) as file:
        np.save(file, array, allow_pickle=False)
    return file.sha256


class _Stored(NamedTuple):
    stamp: int
    sha256: str
    num_bytes: int


class SegmentStore:
    """Segments as they stood when they became final, each in a file that a snapshot can have by a hard link.

    Args:
        folder: Where to keep them; made here.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._stored: dict[str, _Stored] = {}

    def holds(self, segment: Segment) -> bool:
        """Whether a segment is here as it is now."""
        stored = self._stored.get(segment.file)
        return stored is not None and stored.stamp == segment.stamp()

    def add(self, segment: Segment) -> None:
        """Writes a segment, if it is final, and stays so until it has been read.

        Raises:
            OSError: If it cannot be written; nothing is left of it then.
        """
        stamp = segment.stamp()
        if not segment.is_final(stamp):
            return
        array = np.array(segment.read())
        if segment.stamp(segment.rows.begun) != stamp:
            return
        path = self._make_room(segment)
        try:
            digest = write_array(path, array)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._stored[segment.file] = _Stored(stamp, digest, path.stat().st_size)

    def adopt(
        self, directory: Path, files: Mapping[str, str], cuts: Mapping[str, Layout], rings: Mapping[str, Rows]
    ) -> None:
        """Takes over the final segments of a snapshot that rings have been restored from.

        Args:
            directory: That of the snapshot.
            files: SHA-256 of each file in it.
            cuts: How its rings were cut; one that is cut otherwise now is left out.
            rings: The same rings, which may have gone on.

        Raises:
            OSError: If they cannot be linked.
        """
        for name, rows in rings.items():
            cut = cuts.get(name, {})
            if cut | {"count": rows.count} != layout(rows):
                continue
            for segment in segments({name: rows}):
                stamp = segment.stamp(cut["count"])
                if segment.is_final(stamp) and segment.file in files:
                    path = self._make_room(segment)
                    path.hardlink_to(directory / segment.file)
                    self._stored[segment.file] = _Stored(stamp, files[segment.file], path.stat().st_size)

    def link(self, segment: Segment, folder: Path) -> str | None:
        """Links a segment into a folder, if it is here as it is now.

        Returns:
            Its SHA-256; ``None`` where it has to be written.
        """
        path, stored = self.folder / segment.file, self._stored.get(segment.file)
        if stored is None or stored.stamp != segment.stamp():
            return None
        try:
            if path.stat().st_size != stored.num_bytes:  # what is cut short need not spread
                return None
            (folder / segment.file).hardlink_to(path)
        except OSError:
            return None
        return stored.sha256

    def _make_room(self, segment: Segment) -> Path:
        # a new file, not the old one written over: snapshots may have that
        self._stored.pop(segment.file, None)
        path = self.folder / segment.file
        path.unlink(missing_ok=True)
        return path
