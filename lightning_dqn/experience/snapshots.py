"""Which replay snapshots a run has on disk, and which of them its checkpoints still need."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_dqn.experience.checkpoint import SnapshotError, load_snapshot, prune_snapshots, save_snapshot
from lightning_dqn.files import clean_leftovers

_FOLDER = "replay"
_NAME = re.compile(rf"{_FOLDER}/\d+")
_SAID = ("name", "home", "sha256")
_KEPT = 2  # that of the last checkpoint, and that of the one before it

Snapshot = tuple[dict[str, NDArray[Any]], dict[str, Any]]


class SnapshotKeeper:
    """Saves, finds and removes the snapshots of a run: ``<home>/replay/<environment steps>/rank<rank>``.

    Those of the last two checkpoints that were written stay. A snapshot whose checkpoint was never written is removed
    before the next is begun.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begins anew: what is on disk is another run's."""
        self._own: set[str] = set()
        self._needed: list[str] = []
        self._found: tuple[Path, Snapshot] | None = None

    def save(
        self, home: Path, env_steps: int, rank: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
    ) -> dict[str, str]:
        """Writes a snapshot.

        Args:
            home: Where the checkpoints are.
            env_steps: By which it is named; one of this run that has the name already is left as it is.
            rank: Of the process whose replay it is.
            arrays: See :func:`~lightning_dqn.experience.checkpoint.save_snapshot`.
            meta: See there.

        Returns:
            What a checkpoint needs to find it again.

        Raises:
            OSError: If it does not fit on the disk or cannot be written; nothing is left of it then.
        """
        step = str(env_steps)
        parent = home / _FOLDER / step
        if rank == 0:
            for other in self._own.difference(self._needed, [step]):
                shutil.rmtree(home / _FOLDER / other, ignore_errors=True)
            self._own.intersection_update([*self._needed, step])
        if step not in self._own:
            shutil.rmtree(parent / f"rank{rank}", ignore_errors=True)
        try:
            checksum = save_snapshot(parent / f"rank{rank}", arrays, meta)
        except OSError:
            with contextlib.suppress(OSError):
                parent.rmdir()
            raise
        self._own.add(step)
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
        self._needed = [Path(name).name]
        self._own = set(self._needed)
        return self._found[1]

    def release(self) -> None:
        """Lets go of what was found; its files can then be removed."""
        self._found = None

    @staticmethod
    def clean(home: Path) -> None:
        """Removes what saves that were killed have left, in the folder of checkpoints and in those of snapshots."""
        clean_leftovers(home)
        for parent in (home / _FOLDER).glob("*/"):
            clean_leftovers(parent)
            with contextlib.suppress(OSError):
                parent.rmdir()  # which only an empty one allows
