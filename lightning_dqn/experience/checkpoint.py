"""Replay snapshots: a directory of arrays beside the checkpoint, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


class SnapshotError(RuntimeError):
    """A snapshot that is missing, incomplete or damaged."""


def save_snapshot(directory: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Writes arrays and plain values into a directory that appears only when it is complete.

    Everything goes to a temporary directory beside it and is flushed to disk before one rename, so a crash leaves
    either the whole snapshot or none.

    Args:
        directory: Where it will stand; nothing happens if it is already there.
        arrays: By name; each becomes ``<name>.npy``.
        meta: Anything JSON can hold.
    """
    if directory.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    files = {}
    for name, array in arrays.items():
        path = temporary / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, np.asarray(array, order="C"), allow_pickle=False)
            _flush(file.fileno())
        files[path.name] = _sha256(path)
    manifest = {"format_version": FORMAT_VERSION, "files": files, "meta": dict(meta)}
    with (temporary / _MANIFEST).open("w") as text:
        json.dump(manifest, text, indent=1)
        text.flush()
        _flush(text.fileno())
    _flush_directory(temporary)
    temporary.replace(directory)
    _flush_directory(directory.parent)


def load_snapshot(directory: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Reads a snapshot back.

    Args:
        directory: What :func:`save_snapshot` wrote.

    Returns:
        The arrays by name, and the plain values.

    Raises:
        SnapshotError: If it is missing, of another format, or does not match its checksums.
    """
    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
        version, files, meta = manifest["format_version"], dict(manifest["files"]), manifest["meta"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{directory} holds no readable replay snapshot: {error}") from error
    if version != FORMAT_VERSION:
        raise SnapshotError(f"{directory} has snapshot format {version}, this version reads {FORMAT_VERSION}")
    arrays = {}
    for name, checksum in files.items():
        path = directory / name
        if path.parent != directory or path.suffix != ".npy":
            raise SnapshotError(f"{directory}: the manifest names {name!r}, which is no array of this snapshot")
        try:
            if _sha256(path) != checksum:
                raise SnapshotError(f"{path} is damaged: its checksum does not match the manifest")
            arrays[path.stem] = np.load(path, allow_pickle=False)
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
