"""Which replay snapshots a run has on disk, and which of them its checkpoints still need."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_dqn.experience.checkpoint import (
    SnapshotError,
    load_snapshot,
    prune_snapshots,
    read_manifest,
    save_snapshot,
)
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rows import Rows
from lightning_dqn.experience.write_behind import WriteBehind
from lightning_dqn.files import clean_leftovers

_FOLDER = "replay"
_NAME = re.compile(rf"{_FOLDER}/\d+")
_SAID = ("name", "home", "sha256")
_KEPT = 2  # that of the last checkpoint, and that of the one before it

Snapshot = tuple[dict[str, Saved], dict[str, Any]]


class SnapshotKeeper:
    """Saves, finds and removes the snapshots of a run: ``<home>/replay/<environment steps>/rank<rank>``.

    Those of the last two checkpoints that were written stay. A snapshot whose checkpoint was never written is removed
    before the next is begun. Between :meth:`begin` and :meth:`close` segments of rings that are final are written while
    training goes on, and a snapshot takes those that have not changed from the one before the last, by hard links.
    """

    def __init__(self) -> None:
        self._behind: WriteBehind | None = None
        self.clear()

    def clear(self) -> None:
        """Begins anew: what is on disk is another run's."""
        self._own: set[str] = set()
        self._needed: list[str] = []
        self._found: tuple[Path, Snapshot] | None = None
        self._last: tuple[int, tuple[int, ...] | None] | None = None  # name and moment of the one before
        self._unwritten: str | None = None  # the one from the present store whose checkpoint may still fail

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

    def save(
        self,
        home: Path,
        env_steps: int,
        rank: int,
        arrays: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        rings: Mapping[str, Rows] | None = None,
        hurry: bool = False,
        progress: tuple[int, ...] = (),
    ) -> dict[str, str]:
        """Writes a snapshot.

        Args:
            home: Where the checkpoints are.
            env_steps: By which it is named, with a number that is a little higher where the one before has this name.
            rank: Of the process whose replay it is.
            arrays: See :func:`~lightning_dqn.experience.checkpoint.save_snapshot`.
            meta: See there.
            rings: See there.
            hurry: Whether to share files with the last snapshot rather than write what the next one lacks; for the
                last save of a run that has seconds left.
            progress: What else tells this moment of the run from others; iterations may pass without a step. If it is
                the moment of the one before, that is left as it is.

        Returns:
            What a checkpoint needs to find it again.

        Raises:
            OSError: If it does not fit on the disk or cannot be written; nothing is left of it then.
        """
        step = self._name(env_steps, (env_steps, *progress))
        parent = home / _FOLDER / step
        if rank == 0:
            for other in self._own.difference(self._needed, [step]):
                shutil.rmtree(home / _FOLDER / other, ignore_errors=True)
            self._own.intersection_update([*self._needed, step])
        if step not in self._own:
            shutil.rmtree(parent / f"rank{rank}", ignore_errors=True)
        try:
            with self._paused() as behind:
                stores = () if behind is None else (behind.store, behind.other)[: 2 if hurry else 1]
                checksum = save_snapshot(parent / f"rank{rank}", arrays, meta, rings, *stores)
        except OSError:
            with contextlib.suppress(OSError):
                parent.rmdir()
            raise
        if step not in self._own:
            self._own.add(step)
            self._unwritten = step
            if rank != 0:  # it is not told whether the checkpoint could be written
                self._switch()
        found = {"name": f"{_FOLDER}/{step}", "home": str(home.absolute())}
        return found | ({"sha256": checksum} if rank == 0 else {})

    def written(self, replay: Mapping[str, str]) -> None:
        """Removes what no checkpoint needs any more, now that one more has been written; for one process of all.

        Args:
            replay: What :meth:`save` returned.
        """
        step = Path(replay["name"]).name
        self._needed = [*(other for other in self._needed if other != step), step][-_KEPT:]
        prune_snapshots(Path(replay["home"]) / _FOLDER, keep=self._needed)
        if step == self._unwritten:
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
        self._needed, self._own, self._last = [step], {step}, (int(step), None)
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
            clean_leftovers(parent)
            with contextlib.suppress(OSError):
                parent.rmdir()  # which only an empty one allows

    def _name(self, env_steps: int, moment: tuple[int, ...]) -> str:
        if self._last is None:
            self._last = env_steps, moment
        elif self._last[1] != moment:
            self._last = max(env_steps, self._last[0] + 1), moment
        return str(self._last[0])

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
    """The same process's last snapshot before this one, which stands beside it."""
    home, step = directory.parent.parent, int(directory.parent.name)
    earlier = [int(path.parent.name) for path in home.glob(f"*/{directory.name}") if path.parent.name.isdecimal()]
    steps = [other for other in earlier if other < step]
    return home / str(max(steps)) / directory.name if steps else None


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
