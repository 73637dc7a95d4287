"""Replay snapshots: a directory of arrays beside the checkpoint, whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lightning_dqn.experience.pieces import Pieces, Saved
from lightning_dqn.experience.rows import Rows
from lightning_dqn.experience.segments import (
    Layout,
    Segment,
    SegmentStore,
    layout,
    segment_files,
    segments,
    write_array,
)
from lightning_dqn.files import HashedFile, check_space, new_directory, open_regular, sha256

FORMAT_VERSION = 2
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 2**24
_HEADER_BYTES = 10_000


class SnapshotError(RuntimeError):
    """A snapshot that is missing, incomplete, damaged, or none of ours."""


class Manifest(NamedTuple):
    """What a snapshot consists of.

    Attributes:
        files: SHA-256 of each, by name.
        rings: How those of its arrays are cut that are in several files.
        meta: Plain values.
        run: Id of the run that saved it; ``None``: saved before runs had ids.
    """

    files: dict[str, str]
    rings: dict[str, Layout]
    meta: dict[str, Any]
    run: str | None


def save_snapshot(
    directory: Path,
    arrays: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
    rings: Mapping[str, Rows] | None = None,
    *stores: SegmentStore,
    run: str | None = None,
) -> str:
    """Writes arrays, rings and plain values into a directory that appears only when it is complete.

    Everything goes to a temporary directory beside it and is flushed to disk before one rename, so a crash leaves
    either the whole snapshot or none. Arrays are written and hashed in chunks; views are never copied whole.

    Args:
        directory: Where it will stand; nothing happens if it is already there.
        arrays: By name; each becomes ``<name>.npy``.
        meta: Anything JSON can hold.
        rings: By name; each becomes ``<name>.0.npy`` and so on, a segment each.
        stores: Segments that are final are linked from the first that has them; if none does, they are written into
            the first before.
        run: Id of the run that saves it; see :func:`is_snapshot_of`.

    Returns:
        The SHA-256 of its manifest, which stands for all of it.

    Raises:
        OSError: If it does not fit on the disk, with what is needed and what is free, or cannot be written.
    """
    if directory.exists():
        with open_regular(directory / _MANIFEST) as present:
            return sha256(present)
    cut = list(segments(rings or {}))
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = [array.nbytes for array in arrays.values()]
    new += [segment.num_bytes for segment in cut if not any(store.holds(segment) for store in stores)]
    check_space(directory.parent, sum(new) + _HEADER_BYTES * len(new))
    with new_directory(directory) as temporary:
        files = {segment.file: _put(segment, temporary, stores) for segment in cut}
        files |= {f"{name}.npy": write_array(temporary / f"{name}.npy", array) for name, array in arrays.items()}
        layouts = {name: layout(rows) for name, rows in (rings or {}).items()}
        manifest = {"format_version": FORMAT_VERSION, "run": run, "files": files, "rings": layouts, "meta": dict(meta)}
        with HashedFile(temporary / _MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return file.sha256


def load_snapshot(directory: Path, checksum: str | None = None) -> tuple[dict[str, Saved], dict[str, Any]]:
    """Reads a snapshot back.

    Args:
        directory: What :func:`save_snapshot` wrote.
        checksum: What it returned; not looked at if ``None``.

    Returns:
        The arrays by name, mapped from their files rather than copied into memory, rings in pieces; and the plain
        values.

    Raises:
        SnapshotError: If it is missing, of another format, does not match its checksums, or holds anything but arrays
            of numbers in regular files of its own.
    """
    manifest = read_manifest(directory, checksum)
    in_pieces = {file: name for name, cut in manifest.rings.items() for file in segment_files(name, cut)}
    arrays: dict[str, Saved] = {}
    kinds: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for name, expected in manifest.files.items():
        path = directory / name
        if path.parent != directory or path.suffix != ".npy":
            raise SnapshotError(f"{directory}: the manifest names {name!r}, which is no array of this snapshot")
        try:
            with open_regular(path) as file:
                if sha256(file) != expected:
                    raise SnapshotError(f"{path} is damaged: its checksum does not match the manifest")
                array = _map(file)
        except (OSError, ValueError, EOFError) as error:
            raise SnapshotError(f"{path} cannot be read: {error}") from error
        if name in in_pieces:  # a file that is mapped is open, and of pieces there may be more than can be
            kinds[name] = array.shape, array.dtype
        else:
            arrays[path.stem] = array
    for name, cut in manifest.rings.items():
        arrays[name] = _pieces(directory, name, cut, kinds)
    return arrays, manifest.meta


def read_manifest(directory: Path, checksum: str | None = None) -> Manifest:
    """Reads what a snapshot consists of.

    Args:
        directory: That of the snapshot.
        checksum: What :func:`save_snapshot` returned; not looked at if ``None``.

    Raises:
        SnapshotError: If it is missing, of another format or another checkpoint, or makes no sense.
    """
    try:
        with open_regular(directory / _MANIFEST) as file:
            text = file.read(_MANIFEST_BYTES)
            file.seek(0)
            found = sha256(file)
        content = json.loads(text)
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise SnapshotError(f"{directory} has snapshot format {version}, this version reads {FORMAT_VERSION}")
        files, rings, meta = (dict(content[field]) for field in ("files", "rings", "meta"))
        manifest = Manifest(files, rings, meta, content.get("run"))
        for cut in manifest.rings.values():
            _check_layout(cut, len(manifest.files))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{directory} holds no readable replay snapshot: {error}") from error
    if checksum is not None and found != checksum:
        raise SnapshotError(f"{directory} is damaged, or the replay of another checkpoint")
    return manifest


def is_snapshot_of(directory: Path, run: str) -> bool:
    """Return whether a directory is a snapshot that a run saved, and holds nothing else.

    Args:
        directory: Any path.
        run: Id of the run; the manifest must carry it.
    """
    if directory.is_symlink():
        return False
    try:
        manifest = read_manifest(directory)
        return manifest.run == run and {path.name for path in directory.iterdir()} <= {_MANIFEST, *manifest.files}
    except (OSError, SnapshotError):
        return False


def _put(segment: Segment, folder: Path, stores: Sequence[SegmentStore]) -> str:
    """Puts a segment into a folder, by a link if that can be; returns its SHA-256."""
    if stores and not any(store.holds(segment) for store in stores):
        with contextlib.suppress(OSError):  # the disk may still have room for the one file that is needed
            stores[0].add(segment)
    for store in stores:
        linked = store.link(segment, folder)
        if linked is not None:
            return linked
    return write_array(folder / segment.file, segment.read())


def _check_layout(cut: Any, num_files: int) -> None:
    if not isinstance(cut, dict) or cut.keys() != {"slots", "segment", "count"}:
        raise ValueError("a ring is cut in no way that is known")
    if any(type(number) is not int for number in cut.values()) or cut["count"] < 0:
        raise ValueError("a ring is cut into no numbers")
    if min(cut["slots"], cut["segment"]) < 1 or min(cut["count"], cut["slots"]) > cut["segment"] * num_files:
        raise ValueError("a ring is cut into segments that are not there")


def _pieces(
    directory: Path, name: str, cut: Layout, kinds: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> Pieces:
    """A ring, of whose files shapes and dtypes are known, put together."""
    files, stored = segment_files(name, cut), min(cut["count"], cut["slots"])
    missing = next((file for file in files if file not in kinds), None)
    if missing is not None:
        raise SnapshotError(f"{directory}: the manifest names no {missing}, which is a part of {name}")
    shape, dtype = kinds[files[0]]
    row = shape[1:]
    for i, file in enumerate(files):
        expected = (min(cut["segment"], stored - i * cut["segment"]), *row), dtype
        if kinds[file] != expected:
            raise SnapshotError(f"{directory / file} is no part of {name}: it holds {kinds[file]}, not {expected}")
    return Pieces((stored, *row), dtype, [partial(_open, directory / file) for file in files])


def _open(path: Path) -> NDArray[Any]:
    with open_regular(path) as file:
        return _map(file)


def _map(file: BinaryIO) -> NDArray[Any]:
    """The array in a ``.npy`` file, copied page by page as it is read (and where it is written to)."""
    file.seek(0)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"npy format {version} is not one that was written here")
    try:
        shape, is_fortran, dtype = readers[version](file, max_header_size=_HEADER_BYTES)
    except Exception as error:  # numpy parses it as Python text, and lets through whatever that raises
        raise ValueError("its header is none") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    start, end = file.tell(), file.seek(0, 2)
    # before anything is allocated or mapped: a header can claim any size
    if any(length < 0 for length in shape) or start + math.prod(shape) * dtype.itemsize != end:
        raise ValueError(f"its header says {shape} {dtype}, which is not what the file holds")
    return np.asarray(np.memmap(file, dtype, "c", start, shape, "F" if is_fortran else "C"))
