"""Replay snapshots: a directory of arrays beside the checkpoint, whole or not there at all."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lightning_dqn.files import HashedFile, check_space, new_directory, open_regular, sha256

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_MANIFEST_BYTES = 2**24
_HEADER_BYTES = 10_000


class SnapshotError(RuntimeError):
    """A snapshot that is missing, incomplete, damaged, or none of ours."""


def save_snapshot(directory: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> str:
    """Writes arrays and plain values into a directory that appears only when it is complete.

    Everything goes to a temporary directory beside it and is flushed to disk before one rename, so a crash leaves
    either the whole snapshot or none. Arrays are written and hashed in chunks; views are never copied whole.

    Args:
        directory: Where it will stand; nothing happens if it is already there.
        arrays: By name; each becomes ``<name>.npy``.
        meta: Anything JSON can hold.

    Returns:
        The SHA-256 of its manifest, which stands for all of it.

    Raises:
        OSError: If it does not fit on the disk, with what is needed and what is free, or cannot be written.
    """
    if directory.exists():
        with open_regular(directory / _MANIFEST) as present:
            return sha256(present)
    directory.parent.mkdir(parents=True, exist_ok=True)
    check_space(directory.parent, sum(array.nbytes + _HEADER_BYTES for array in arrays.values()))
    with new_directory(directory) as temporary:
        files = {}
        for name, array in arrays.items():
            with HashedFile(temporary / f"{name}.npy") as file:
                np.save(file, array, allow_pickle=False)
            files[file.path.name] = file.sha256
        manifest = {"format_version": FORMAT_VERSION, "files": files, "meta": dict(meta)}
        with HashedFile(temporary / _MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1).encode())
    return file.sha256


def load_snapshot(directory: Path, checksum: str | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reads a snapshot back.

    Args:
        directory: What :func:`save_snapshot` wrote.
        checksum: What it returned; not looked at if ``None``.

    Returns:
        The arrays by name, mapped from their files rather than copied into memory, and the plain values.

    Raises:
        SnapshotError: If it is missing, of another format, does not match its checksums, or holds anything but arrays
            of numbers in regular files of its own.
    """
    files, meta = _read_manifest(directory, checksum)
    arrays = {}
    for name, expected in files.items():
        path = directory / name
        if path.parent != directory or path.suffix != ".npy":
            raise SnapshotError(f"{directory}: the manifest names {name!r}, which is no array of this snapshot")
        try:
            with open_regular(path) as file:
                if sha256(file) != expected:
                    raise SnapshotError(f"{path} is damaged: its checksum does not match the manifest")
                arrays[path.stem] = _map(file)
        except (OSError, ValueError, EOFError) as error:
            raise SnapshotError(f"{path} cannot be read: {error}") from error
    return arrays, meta


def prune_snapshots(parent: Path, keep: Collection[str]) -> None:
    """Removes all snapshots but some, and whatever crashed saves left behind.

    Args:
        parent: The directory they stand in.
        keep: Names of those that stay.
    """
    if parent.is_dir():
        for path in parent.iterdir():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)


def _read_manifest(directory: Path, checksum: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with open_regular(directory / _MANIFEST) as file:
            text = file.read(_MANIFEST_BYTES)
            file.seek(0)
            found = sha256(file)
        manifest = json.loads(text)
        version, files, meta = manifest["format_version"], dict(manifest["files"]), dict(manifest["meta"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{directory} holds no readable replay snapshot: {error}") from error
    if version != FORMAT_VERSION:
        raise SnapshotError(f"{directory} has snapshot format {version}, this version reads {FORMAT_VERSION}")
    if checksum is not None and found != checksum:
        raise SnapshotError(f"{directory} is damaged, or the replay of another checkpoint")
    return files, meta


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
