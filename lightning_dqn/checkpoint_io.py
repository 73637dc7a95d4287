"""Checkpoint files that survive crashes, full disks and damage: whole, checked, the one before kept."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_dqn.files import NewFile, check_space, clean_leftovers, flush_directory, open_regular, sha256, unfinished

_FORMAT_VERSION = 1
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(:|//)")
_INSTANTIATORS = (None, "lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")
_Accept = Callable[[Mapping[str, Any], Path], str | None]


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or holds what no checkpoint of ours does; the message begins with ``ckpt_path``."""


class CrashSafeCheckpointIO(TorchCheckpointIO):
    """Writes ``latest.ckpt`` and its checksums, ``latest.ckpt.sha256``; keeps ``latest.previous.ckpt``, the one before.

    However a process is killed, each of the two checkpoints is whole and known to the checksums. A save that fails is
    said and not raised. What is loaded is compared with its checksum, and never holds more than tensors and plain
    values; where it is damaged, the one before is loaded instead, with a warning.

    Args:
        accept: Says why a checkpoint, given with its path, is of no use although it is whole; ``None`` if it is.
        written: Called with every checkpoint that is safely on disk.
    """

    def __init__(
        self, accept: _Accept | None = None, written: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self._accept = accept
        self._written = written
        self._rejected: set[str] = set()  # of checkpoints that were not loaded, and must not become the one before
        self._failed: Path | None = None
        self._in_place_of: dict[Path, list[Path]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, or warns if that cannot be done; the last one is then still there.

        Args:
            checkpoint: What the Trainer collected.
            path: Where to; an address elsewhere than on this machine is left to Lightning.
            storage_options: Not used.
        """
        if storage_options is not None or _URL.match(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        try:
            self._write(checkpoint, place)
        except OSError as error:
            self._failed = place
            rank_zero_warn(f"{path} could not be saved, training goes on with the last one that was: {error}")
            return
        self._failed = None
        if self._written is not None:
            self._written(checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Reads a checkpoint, or the one before if it is damaged.

        Args:
            path: A file on this machine.
            map_location: See :func:`torch.load`.
            weights_only: Not looked at: nothing but tensors and plain values is ever loaded.

        Raises:
            CheckpointError: If there is nothing whole to load, or the path is the address of another machine.
            FileNotFoundError: If there is nothing at all.
        """
        place = find_checkpoint(path)
        problems: list[str] = []
        second_best: tuple[Path, dict[str, Any]] | None = None
        for candidate in generations(place):
            try:
                checkpoint = read_checkpoint(candidate, map_location)
                reason = None if self._accept is None else self._accept(checkpoint, candidate)
                if reason is None:
                    return self._instead(place, candidate, checkpoint, problems)
                problems.append(f"ckpt_path: {candidate} is not all there: {reason}")
                second_best = second_best or (candidate, checkpoint)
            except CheckpointError as error:
                problems.append(str(error))
            with contextlib.suppress(OSError):
                self._rejected.add(_digest(candidate))
        if second_best is None:
            raise CheckpointError("; ".join(problems))
        return self._instead(place, *second_best, problems)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint with all that belongs to it, unless what was to replace it could not be saved."""
        if _URL.match(str(path)):
            super().remove_checkpoint(path)
            return
        place = Path(path)
        if self._failed is not None:
            self._in_place_of.setdefault(self._failed, []).append(place)
            return
        if place.is_dir():
            shutil.rmtree(place)
        for file in (place, _checksums_of(place), previous_of(place)):
            file.unlink(missing_ok=True)
        for other in self._in_place_of.pop(place, []):
            self.remove_checkpoint(other)

    @staticmethod
    def _instead(place: Path, taken: Path, checkpoint: dict[str, Any], problems: list[str]) -> dict[str, Any]:
        if taken != place:
            progress = f"epoch {checkpoint.get('epoch')}, step {checkpoint.get('global_step')}"
            rank_zero_warn(f"{'; '.join(problems)}. Taking the one before, {taken} ({progress}).")
        return checkpoint

    def _write(self, checkpoint: dict[str, Any], place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(place.parent)
        check_space(place.parent, _num_bytes(checkpoint))
        with NewFile(place) as file:
            try:
                torch.save(checkpoint, cast("IO[bytes]", file))
            except RuntimeError:
                if file.error is not None:  # which torch reports as a failure of its own
                    raise file.error from None
                raise
            file.settle()
            # the names first, so that there is no moment at which one of the two checkpoints is unknown to them
            known = [file.sha256, *self._keep(place)]
            with NewFile(_checksums_of(place)) as names:
                names.write(json.dumps({"format_version": _FORMAT_VERSION, "sha256": known}).encode())

    def _keep(self, place: Path) -> list[str]:
        """Makes the last checkpoint the one before, if it is good; returns the checksum of the one before, if any."""
        known = _known(place)
        for candidate in (place, previous_of(place)):
            with contextlib.suppress(OSError):
                found = _digest(candidate)
                if found not in self._rejected and (known is None or found in known):
                    if candidate == place:
                        _duplicate(place, previous_of(place))
                    return [found]
        return []


def install_checkpoint_io(
    trainer: Trainer, accept: _Accept | None = None, written: Callable[[Mapping[str, Any]], None] | None = None
) -> bool:
    """Gives a Trainer :class:`CrashSafeCheckpointIO` in place of Lightning's plain one; early enough in ``setup``.

    Args:
        trainer: One with another plugin keeps it.
        accept: See :class:`CrashSafeCheckpointIO`.
        written: See there.

    Returns:
        Whether the Trainer has one now that calls ``accept`` and ``written``.
    """
    present = trainer.strategy.checkpoint_io
    if isinstance(present, CrashSafeCheckpointIO):
        present._accept, present._written = accept, written
    elif type(present) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CrashSafeCheckpointIO(accept, written)
    else:
        return False
    return True


def saves_fully(trainer: Trainer) -> bool:
    """Whether a run saves checkpoints that can be gone on from, not only when somebody asks for one."""
    return bool(_full_savers(trainer))


def full_checkpoint(trainer: Trainer) -> tuple[Path, str]:
    """The folder of a run's full checkpoints, beside which its replay is kept, and the name of the latest of them."""
    callback = min(_full_savers(trainer), key=lambda callback: callback.monitor is not None, default=None)
    if callback is None:
        return Path(trainer.default_root_dir), "latest"
    return Path(callback.dirpath or trainer.default_root_dir), callback.filename or "latest"


def checkpoint_folders(trainer: Trainer) -> set[Path]:
    """All folders that a run writes checkpoints into."""
    folders = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    return {Path(folder) for folder in folders if folder}


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
    if _URL.match(str(path)):
        raise CheckpointError(f"ckpt_path: {path} is an address, not a file; download it first")
    place = Path(path)
    place = place.resolve() if place.is_symlink() else place  # as ModelCheckpoint(save_last="link") makes it
    if not generations(place):
        raise FileNotFoundError(f"ckpt_path: {path} does not exist")
    return place


def newest_readable(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, or with a warning the one before, and where it lies: for those who look before the Trainer does.

    Raises:
        CheckpointError: See :meth:`CrashSafeCheckpointIO.load_checkpoint`.
        FileNotFoundError: See there.
    """
    taken: list[Path] = []

    def note(checkpoint: Mapping[str, Any], where: Path) -> None:
        taken.append(where)

    checkpoint = CrashSafeCheckpointIO(note).load_checkpoint(path)
    return taken[0], checkpoint


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads one checkpoint, without looking for the one before.

    Args:
        path: A file; where ``<path>.sha256`` lies beside it, it must be in there.
        map_location: See :func:`torch.load`.

    Raises:
        CheckpointError: If it is damaged, holds anything but tensors and plain values, unpacks to more than it is, or
            asks for a function to be called.
    """
    try:
        known = _known(path)
        if known is not None and _digest(path) not in known:
            raise ValueError(f"it is not what was saved, by {_checksums_of(path).name}")
        _check_archive(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ValueError("it holds no state_dict")
        hyper_parameters = checkpoint.get("hyper_parameters", {})
        if not isinstance(hyper_parameters, Mapping) or hyper_parameters.get("_instantiator") not in _INSTANTIATORS:
            raise ValueError("its hyper-parameters name a function to be called")
    except MemoryError:
        raise
    except Exception as error:  # what torch raises over damaged bytes is of every kind
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"ckpt_path: {path} cannot be loaded: {reason}") from error
    return checkpoint


def _full_savers(trainer: Trainer) -> list[ModelCheckpoint]:
    savers = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return [callback for callback in savers if not callback.save_weights_only]


def _checksums_of(path: Path) -> Path:
    # Lightning takes whatever has hpc_ckpt_ in its name for the checkpoint of a SLURM job
    return path.with_name(f"{path.name.replace('hpc_ckpt_', 'hpc_')}.sha256")


def _known(path: Path) -> list[str] | None:
    """Checksums of a checkpoint and the one before; ``None`` if there are none to compare with."""
    stem = path.stem.removesuffix(".previous")
    for owner in (path, path.with_name(f"{stem}{path.suffix}")):
        try:
            with open_regular(_checksums_of(owner)) as file:
                content = json.loads(file.read(2**16))
            return [str(one) for one in content["sha256"]] if content["format_version"] == _FORMAT_VERSION else None
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None


def _digest(path: Path) -> str:
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


def _duplicate(path: Path, copy: Path) -> None:
    temporary = unfinished(copy)
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:  # not every file system has links
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(copy)
        flush_directory(copy.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _num_bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(_num_bytes, state.values()))
    return sum(map(_num_bytes, state)) if isinstance(state, list | tuple) else 0
