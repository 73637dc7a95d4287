"""One checkpoint file: where the one before it is, which checksums are known of them, and whether it is whole."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from lightning_dqn.files import open_regular, sha256

FORMAT_VERSION = 1
"""Of the file of checksums."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(:|//)")
_INSTANTIATORS = (None, "lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or holds what no checkpoint of ours does; the message begins with ``ckpt_path``."""


def is_address(path: str | Path) -> bool:
    """Whether a path leads elsewhere than to this machine."""
    return _URL.match(str(path)) is not None


def previous_of(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def generations(path: Path) -> list[Path]:
    """A checkpoint and the one before it, newest first, as far as they are there."""
    return [candidate for candidate in (path, previous_of(path)) if candidate.is_file()]


def find_checkpoint(path: str | Path) -> Path:
    """A path to load from.

    Raises:
        CheckpointError: If it is an address: what comes from elsewhere is to be looked at before it is loaded.
        FileNotFoundError: If neither it nor the one before it is there.
    """
    if is_address(path):
        raise CheckpointError(f"ckpt_path: {path} is an address, not a file; download it first")
    place = Path(path)
    place = place.resolve() if place.is_symlink() else place  # as ModelCheckpoint(save_last="link") makes it
    if not generations(place):
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    return place


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads one checkpoint, without looking for the one before.

    Args:
        path: A file; where ``<path>.sha256`` lies beside it, it must be in there.
        map_location: See :func:`torch.load`.

    Raises:
        CheckpointError: If it is damaged, holds anything but tensors and plain values, unpacks to more than it is, or
            asks for a function to be called.
    """
    with _named(path):
        known = known_checksums(path)
        if known is not None and digest(path) not in known:
            raise ValueError(f"it is not what was saved, by {checksums_of(path).name}")
        _check_archive(path)
        return _content(path, map_location)


def read_content(file: IO[bytes], name: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the content of an open checkpoint file, which has no checksum.

    Args:
        file: Open for reading.
        name: Of the file, for error messages.
        map_location: See :func:`torch.load`.

    Raises:
        CheckpointError: If the file is damaged, holds anything but tensors and plain values, or asks for a function to
            be called.
    """
    with _named(name):
        return _content(file, map_location)


@contextlib.contextmanager
def _named(source: str | Path) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # what torch raises over damaged bytes is of every kind
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"ckpt_path: {source} cannot be loaded: {reason}") from error


def _content(source: Path | IO[bytes], map_location: Any) -> dict[str, Any]:
    checkpoint = torch.load(source, map_location=map_location, weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError("it holds no state_dict")
    hyper_parameters = checkpoint.get("hyper_parameters", {})
    if not isinstance(hyper_parameters, Mapping) or hyper_parameters.get("_instantiator") not in _INSTANTIATORS:
        raise ValueError("its hyper-parameters name a function to be called")
    return checkpoint


def checksums_of(path: Path) -> Path:
    """Where the checksums of a checkpoint, and of the one before it, are kept."""
    # Lightning takes whatever has hpc_ckpt_ in its name for the checkpoint of a SLURM job
    return path.with_name(f"{path.name.replace('hpc_ckpt_', 'hpc_')}.sha256")


def known_checksums(path: Path) -> list[str] | None:
    """Checksums of a checkpoint and the one before; ``None`` if there are none to compare with."""
    stem = path.stem.removesuffix(".previous")
    for owner in (path, path.with_name(f"{stem}{path.suffix}")):
        try:
            with open_regular(checksums_of(owner)) as file:
                content = json.loads(file.read(2**16))
            return [str(one) for one in content["sha256"]] if content["format_version"] == FORMAT_VERSION else None
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def digest(path: Path) -> str:
    """Checksum of a file, SHA-256."""
    with open_regular(path) as file:
        return sha256(file)


def _check_archive(path: Path) -> None:
    # torch stores without compressing, so whatever would unpack to more than the file was not written by it
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, as no checkpoint is")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it would unpack to more than it is")
