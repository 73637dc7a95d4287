"""Checkpoint files that survive crashes, full disks and damage: whole, checked, the one before kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_dqn.checkpoint_file import (
    FORMAT_VERSION,
    CheckpointError,
    checksums_of,
    digest,
    find_checkpoint,
    generations,
    is_address,
    known_checksums,
    previous_of,
    read_checkpoint,
    read_content,
)
from lightning_dqn.files import NewFile, check_space, clean_leftovers, flush_directory, unfinished

_Accept = Callable[[Mapping[str, Any], Path], str | None]


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
        self._addresses: set[str] = set()  # that this run has saved to
        self._folders: set[Path] = set()
        self._in_place_of: dict[Path, list[Path]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, or warns if that cannot be done; the last one is then still there.

        Args:
            checkpoint: What the Trainer collected.
            path: Where to; an address elsewhere than on this machine is left to Lightning.
            storage_options: Not used.
        """
        if storage_options is not None or is_address(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            self._addresses.add(str(path))
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
                self._rejected.add(digest(candidate))
        if second_best is None:
            raise CheckpointError("; ".join(problems))
        return self._instead(place, *second_best, problems)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and what its saves left beside it, unless its successor could not be saved.

        The callback that asks takes the path from the checkpoint that the run resumed. So only a checkpoint that the
        package saved, in a folder that this run saves into, is ever removed.
        """
        if is_address(path):
            if str(path) in self._addresses:
                super().remove_checkpoint(path)
            return
        place = Path(path)
        if place.is_symlink() or place.resolve().parent not in self._folders:
            return
        if self._failed is not None:
            self._in_place_of.setdefault(self._failed, []).append(place)
            return
        for file in _files_of(place):
            if not file.is_dir():  # a folder is no checkpoint of ours
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
        self._folders.add(place.parent.resolve())
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
            with NewFile(checksums_of(place)) as names:
                names.write(json.dumps({"format_version": FORMAT_VERSION, "sha256": known}).encode())

    def _keep(self, place: Path) -> list[str]:
        """Makes the last checkpoint the one before, if it is good; returns the checksum of the one before, if any."""
        known = known_checksums(place)
        for candidate in (place, previous_of(place)):
            with contextlib.suppress(OSError):
                found = digest(candidate)
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
    """The folder of a run's full checkpoints, beside which its replay is kept, and a name for one more of them.

    It is the name that the run's own have, unless theirs change as it goes on (``{epoch}``): then it is ``latest``.
    """
    callback = _full_saver(trainer)
    if callback is None:
        return Path(trainer.default_root_dir), "latest"
    name = "latest" if _varies(callback) else str(callback.filename)
    return Path(callback.dirpath or trainer.default_root_dir), name


def written_checkpoint(trainer: Trainer) -> Path:
    """Where a run's last full checkpoint is, or will be if there is none yet."""
    callback = _full_saver(trainer)
    if callback is not None and _varies(callback) and callback.best_model_path:
        return Path(callback.best_model_path)
    folder, name = full_checkpoint(trainer)
    return folder / f"{name}.ckpt"


def checkpoint_folders(trainer: Trainer) -> set[Path]:
    """All folders that a run writes checkpoints into."""
    folders = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
    return {Path(folder) for folder in folders if folder}


def newest_readable(path: str | Path, map_location: Any = "cpu") -> tuple[Path, dict[str, Any]]:
    """Return the path and the content of a checkpoint, or with a warning those of the one before.

    Args:
        path: A file on this machine.
        map_location: See :func:`torch.load`.

    Raises:
        CheckpointError: See :meth:`CrashSafeCheckpointIO.load_checkpoint`.
        FileNotFoundError: See there.
    """
    taken: list[Path] = []

    def note(checkpoint: Mapping[str, Any], where: Path) -> None:
        taken.append(where)

    checkpoint = CrashSafeCheckpointIO(note).load_checkpoint(path, map_location)
    return taken[0], checkpoint


def open_checkpoint(source: str | Path | IO[bytes], map_location: Any = None) -> tuple[str, dict[str, Any]]:
    """Return the name and the content of a checkpoint, of which nothing was executed.

    Args:
        source: A file on this machine, or an open file. A damaged file is replaced by the checkpoint before, with a
            warning; an open file has no checksum.
        map_location: See :func:`torch.load`. If not given, tensors return to the device that they were saved from, or
            to the CPU where that device is missing.

    Raises:
        CheckpointError: See :meth:`CrashSafeCheckpointIO.load_checkpoint`.
        FileNotFoundError: See there.
    """
    map_location = _saved_device if map_location is None else map_location
    if isinstance(source, str | Path):
        taken, checkpoint = newest_readable(source, map_location)
        return str(taken), checkpoint
    name = str(getattr(source, "name", "the open file"))
    return name, read_content(source, name, map_location)


def _saved_device(storage: Any, location: str) -> Any:
    device = getattr(torch, torch.device(location).type, None)
    return None if device is not None and device.is_available() else storage


def _full_saver(trainer: Trainer) -> ModelCheckpoint | None:
    return min(_full_savers(trainer), key=lambda callback: callback.monitor is not None, default=None)


def _varies(callback: ModelCheckpoint) -> bool:
    return callback.filename is None or "{" in callback.filename


def _full_savers(trainer: Trainer) -> list[ModelCheckpoint]:
    savers = (callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint))
    return [callback for callback in savers if not callback.save_weights_only]


def _files_of(place: Path) -> list[Path]:
    """Return a checkpoint and what its saves left beside it: a file that the checksums do not know is not included."""
    known, previous = known_checksums(place), previous_of(place)
    try:
        if known is None or digest(place) not in known:
            return []
    except OSError:
        return []
    with contextlib.suppress(OSError):
        if digest(previous) in known:
            return [place, previous, checksums_of(place)]
    return [place, checksums_of(place)]


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
