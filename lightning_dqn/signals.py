"""Ctrl-C ends a run at a step boundary, with everything saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class GracefulInterrupt(Callback):
    """Turns the first Ctrl-C into an ordinary end of training, and leaves the second one alone.

    The Trainer alone would raise in the middle of a step. With this, the iteration is finished, a last validation run,
    and the checkpoints of that moment written.

    Attributes:
        interrupted: Whether Ctrl-C ended the run.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts listening; only a main thread can."""
        self.interrupted = False
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(signum: int, frame: FrameType | None) -> None:
            self.interrupted = trainer.should_stop = True
            self._restore()
            rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

        self._previous = signal.signal(signal.SIGINT, stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops listening."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops listening."""
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
