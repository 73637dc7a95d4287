"""Which replay snapshots a run has on disk, and which of them its checkpoints still need."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_dqn.experience.checkpoint import (
    SnapshotError,
    is_snapshot_of,
    load_snapshot,
    read_manifest,
    save_snapshot,
)
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rows import Rows
from lightning_dqn.experience.write_behind import WriteBehind
from lightning_dqn.files import clean_leftovers, discard

_FOLDER = "replay"
_RUN_ID = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(rf"{_FOLDER}/(?:{_RUN_ID.pattern}-)?[0-9]{{1,19}}")  # before runs had ids: the steps alone
_SAID = ("name", "home", "sha256")
_KEPT = 2  # that of the last checkpoint, and that of the one before it

Snapshot = tuple[dict[str, Saved], dict[str, Any]]


class SnapshotKeeper:
    """A keeper that saves, loads and removes a run's snapshots: ``<home>/replay/<run id>-<env steps>/rank<rank>``.

    Those of the last two checkpoints that were written stay. A snapshot whose checkpoint was never written is removed
    before the next is begun. Nothing is removed or overwritten that does not carry the run's id in its name and in its
    manifest. Between :meth:`begin` and :meth:`close` segments of rings that are final are written while training goes
    on, and a snapshot takes those that have not changed from the one before the last, by hard links.

    Attributes:
        run_id: Id of the run, random; a run that resumes keeps it.
    """

    def __init__(self) -> None:
        self._behind: WriteBehind | None = None
        self.clear()

    def clear(self) -> None:
        """Begins anew, with a new run id: what is on disk is another run's."""
        self.resume_run(None)
        self._own: set[str] = set()
        self._needed: list[str] = []
        self._found: tuple[Path, Snapshot] | None = None
        self._last: tuple[int, tuple[int, ...] | None] | None = None  # name and moment of the one before
        self._unwritten: str | None = None  # the one from the present store whose checkpoint may still fail

    def resume_run(self, run_id: Any) -> None:
        """Take over the id of the run that is resumed.

        Args:
            run_id: As a checkpoint has it; anything else than an id makes a new one.
        """
        known = isinstance(run_id, str) and _RUN_ID.fullmatch(run_id)
        self.run_id: str = run_id if known else secrets.token_hex(4)

    def begin(self, home: Path, rank: int, rings: Mapping[str, Rows], held: Path | None) -> None:
        """From now on writes final segments while training goes on, where the disk has locks and hard links.

        Args:
            home: Where the checkpoints will be.
            rank: Of this process.
            rings: What will be saved.
            held: The snapshot that the rings have been restored from, or saved to; ``None``: neither. Its files are
                taken over, and of the one before it, for the next snapshot, those that are the same.
        """
        if self._behind is not None:
            return
        folder = home / _FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._behind = WriteBehind(folder / f"rank{rank}", rings)
        except OSError:
            return
        if held is not None:
            with contextlib.suppress(OSError, SnapshotError):  # on another disk, or gone: all is written anew
                _take_over(self._behind, held, rings)
        self._unwritten = None  # whatever was saved before shares no file with what follows
        self._behind.start()

    def close(self) -> None:
        """Leaves nothing on disk but snapshots."""
        if self._behind is not None:
            self._behind.close()
            self._behind = None

    def name(self, home: Path, env_steps: int, progress: tuple[int, ...] = ()) -> str:
        """Return the name of the snapshot of a moment, the same as before for the same moment.

        Args:
            home: Where the checkpoints are.
            env_steps: The number in the name. The number is higher where the last snapshot of this run or something
                that this run did not save has the name.
            progress: What else tells this moment of the run from others; iterations may pass without a step.
        """
        moment = env_steps, *progress
        if self._last is None or self._last[1] != moment:
            number = env_steps if self._last is None else max(env_steps, self._last[0] + 1)
            while not self._is_free(home / _FOLDER / f"{self.run_id}-{number}"):
                number += 1
            self._last = number, moment
        return f"{self.run_id}-{self._last[0]}"

    def save(
        self,
        home: Path,
        name: str,
        rank: int,
        arrays: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        rings: Mapping[str, Rows] | None = None,
        hurry: bool = False,
    ) -> dict[str, str]:
        """Writes a snapshot.

        Args:
            home: Where the checkpoints are.
            name: What :meth:`name` returned, on the first rank. If this was saved already, it is left as it is.
            rank: Of the process whose replay it is.
            arrays: See :func:`~lightning_dqn.experience.checkpoint.save_snapshot`.
            meta: See there.
            rings: See there.
            hurry: Whether to share files with the last snapshot rather than write what the next one lacks; for the
                last save of a run that has seconds left.

        Returns:
            What a checkpoint needs to find it again.

        Raises:
            OSError: If it does not fit on the disk or cannot be written; nothing is left of it then.
        """
        parent, run = home / _FOLDER / name, _run_of(name)
        directory, is_new = parent / f"rank{rank}", not parent.exists()
        if rank == 0:
            for other in self._own.difference(self._needed, [name]):
                _remove(home / _FOLDER / other, run)
            self._own.intersection_update([*self._needed, name])
        if name not in self._own:
            if is_snapshot_of(directory, run):  # the run was resumed from an earlier checkpoint
                discard(directory)
            if os.path.lexists(directory):
                raise FileExistsError(errno.EEXIST, "this run did not save what is there", str(directory))
        try:
            with self._paused() as behind:
                stores = () if behind is None else (behind.store, behind.other)[: 2 if hurry else 1]
                checksum = save_snapshot(directory, arrays, meta, rings, *stores, run=run)
        except BaseException:
            if is_new:
                with contextlib.suppress(OSError):
                    parent.rmdir()
            raise
        if name not in self._own:
            self._own.add(name)
            self._unwritten = name
            if rank != 0:  # it is not told whether the checkpoint could be written
                self._switch()
        found = {"name": f"{_FOLDER}/{name}", "home": str(home.absolute())}
        return found | ({"sha256": checksum} if rank == 0 else {})

    def written(self, replay: Mapping[str, str]) -> None:
        """Removes what no checkpoint of the run needs any more, now that one more has been written; on one rank of all.

        Args:
            replay: What :meth:`save` returned.
        """
        name, folder = Path(replay["name"]).name, Path(replay["home"]) / _FOLDER
        self._needed = [*(other for other in self._needed if other != name), name][-_KEPT:]
        for parent in folder.glob(f"{_run_of(name)}-*"):
            if parent.name not in self._needed:
                _remove(parent, _run_of(name))
        if name == self._unwritten:
            self._switch()

    def load(self, replay: Any, beside: Path, rank: int) -> Snapshot:
        """Finds the snapshot of a checkpoint, next to it or where it was written.

        Args:
            replay: What the checkpoint says of it.
            beside: The folder of the checkpoint.
            rank: Of this process.

        Returns:
            See :func:`~lightning_dqn.experience.checkpoint.load_snapshot`.

        Raises:
            SnapshotError: If it is not there, damaged, or the checkpoint does not name a snapshot.
        """
        name, home, checksum = (replay.get(key) if isinstance(replay, dict) else None for key in _SAID)
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not isinstance(home, str):
            raise SnapshotError(f"the checkpoint names {name!r}, which is no replay snapshot")
        folder = Path(name) / f"rank{rank}"
        directory = (beside if (beside / folder).is_dir() else Path(home)) / folder
        if self._found is None or self._found[0] != directory:
            self._found = directory, load_snapshot(directory, checksum if rank == 0 else None)
        step = Path(name).name
        self._needed, self._own, self._last = [step], {step}, (int(step.rpartition("-")[2]), None)
        return self._found[1]

    def release(self) -> Path | None:
        """Lets go of what was found, and says where it was; its files can then be removed."""
        found, self._found = self._found, None
        return None if found is None else found[0]

    @staticmethod
    def clean(home: Path) -> None:
        """Removes what saves that were killed have left, in the folder of checkpoints and in those of snapshots."""
        clean_leftovers(home)
        clean_leftovers(home / _FOLDER)
        for parent in (home / _FOLDER).glob("*/"):
            if not parent.is_symlink() and clean_leftovers(parent):
                with contextlib.suppress(OSError):
                    parent.rmdir()  # which only an empty one allows

    def _is_free(self, parent: Path) -> bool:
        """Return whether nothing is where a snapshot is to be saved, or only snapshots of this run."""
        with contextlib.suppress(OSError):  # the save will report what is wrong with the disk
            if parent.is_symlink() or not parent.is_dir():
                return not os.path.lexists(parent)
            found = [is_snapshot_of(path, self.run_id) for path in parent.glob("rank*")]
            return len(found) > 0 and all(found)
        return True

    @contextlib.contextmanager
    def _paused(self) -> Iterator[WriteBehind | None]:
        """Lends what is written behind, if anything is, while the thread is not at work."""
        if self._behind is None:
            yield None
            return
        self._behind.stop()
        try:
            yield self._behind
        finally:
            self._behind.start()

    def _switch(self) -> None:
        """Sees to it that the next snapshot shares no file with the last."""
        self._unwritten = None
        with self._paused() as behind:
            if behind is not None:
                behind.switch()


def _run_of(name: str) -> str:
    return name.rpartition("-")[0]


def _remove(parent: Path, run: str) -> None:
    """Remove the snapshots that a run saved in a folder, and the folder unless something else is in there."""
    if not re.fullmatch(f"{run}-[0-9]+", parent.name) or parent.is_symlink():
        return
    own = {path for path in parent.glob("rank*") if is_snapshot_of(path, run)}
    for path in [parent] if own and own == set(parent.iterdir()) else own:
        discard(path)


def _take_over(behind: WriteBehind, held: Path, rings: Mapping[str, Rows]) -> None:
    """Fills both stores from a snapshot and the one before it; the next save takes its files from the latter."""
    try:
        manifest = read_manifest(held)
        behind.store.adopt(held, manifest.files, manifest.rings, rings)
    finally:
        behind.switch()
    before = _one_before(held)
    if before is not None:
        behind.store.adopt(before, _same(before, held, manifest.files), manifest.rings, rings)


def _one_before(directory: Path) -> Path | None:
    """The same process's last snapshot before this one, of the same run, which stands beside it."""
    folder, (run, dash, step) = directory.parent.parent, directory.parent.name.rpartition("-")
    numbers = (path.parent.name.removeprefix(run + dash) for path in folder.glob(f"{run}{dash}*/{directory.name}"))
    steps = [int(number) for number in numbers if number.isdecimal() and int(number) < int(step)]
    return folder / f"{run}{dash}{max(steps)}" / directory.name if steps else None


def _same(before: Path, held: Path, files: Mapping[str, str]) -> dict[str, str]:
    """The files of equal content that two snapshots have, by checksum: the one before may be another run's."""
    said, found = read_manifest(before).files, {}
    for file, checksum in files.items():
        if said.get(file) == checksum:
            one, other = (before / file).stat(), (held / file).stat()
            # what is cut short need not spread, and one that was saved in a hurry is no second copy
            if one.st_size == other.st_size and one.st_ino != other.st_ino:
                found[file] = checksum
    return found
