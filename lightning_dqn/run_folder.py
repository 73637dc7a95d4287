"""The folders of runs: a run claims its folder before it writes into it, and holds the folder until the run ends."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dqn.checkpoint_file import is_address
from lightning_dqn.ranks import end_other_ranks


class RunFolders(Callback):
    """A callback that claims the folders of a run's loggers, so that two runs never write into the same folder.

    A logger that numbers its folders gets the first number whose folder this run can create. A logger with a version of
    its own gets that folder, unless another process holds it. The lock is on the folder itself, so it leaves no file,
    and the operating system releases it however the process ends. On a file system without locks no folder is known to
    be in use; numbered folders belong to one run there too.
    """

    _locks: ClassVar[dict[Path, int]] = {}  # open descriptors of the folders that this process holds

    def __init__(self) -> None:
        self._claimed: list[Path] = []

    def claim(self, trainer: Trainer) -> None:
        """Claim the folders of all loggers that write to this machine; rank 0 does it for all ranks.

        Args:
            trainer: The Trainer, before anything asks its loggers for their folders.

        Raises:
            ValueError: If another run holds one of the folders; names the field.
        """
        if not trainer.is_global_zero:
            return
        try:
            for logger in sorted(trainer.loggers, key=_is_numbered):  # a refused run creates no numbered folder
                self._claim(logger)
        except ValueError:
            self._release()
            end_other_ranks(trainer)  # they would wait for this one
            raise

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the folders of a run that is over."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the folders of a run that failed."""
        self._release()

    def _claim(self, logger: Any) -> None:
        numbered = _is_numbered(logger)
        if logger.log_dir is None or is_address(logger.log_dir):
            return
        while not self._hold(Path(logger.log_dir).resolve(), numbered):
            if not numbered:
                raise ValueError(
                    f"trainer.logger: the folder is in use by another run (got {logger.log_dir}). Leave out the "
                    "logger's `version` to get a new folder, or wait for the end of that run."
                )
            logger._version += 1

    def _hold(self, folder: Path, is_new: bool) -> bool:
        """Create and lock a folder; return false where another run was first."""
        if folder in self._locks and not is_new:  # loggers of one process may share a folder
            return True
        try:
            folder.mkdir(parents=True, exist_ok=not is_new)
            descriptor = os.open(folder, os.O_RDONLY)
        except FileExistsError:
            return not is_new
        except OSError:  # the logger reports what cannot be written
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # no locks here
            os.close(descriptor)
            return True
        self._locks[folder] = descriptor
        self._claimed.append(folder)
        return True

    def _release(self) -> None:
        while self._claimed:
            descriptor = self._locks.pop(self._claimed.pop())
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for forked processes, which share the descriptor
            os.close(descriptor)


def _is_numbered(logger: Any) -> bool:
    """Return whether a logger is going to number its folder by itself, and has not done so yet."""
    return getattr(logger, "_version", "") is None
