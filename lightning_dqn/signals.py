"""However a run ends, by its budget or by Ctrl-C, it ends at a step boundary, validated and saved."""

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
    and the checkpoints of that moment written. The last validation comes at the end of the budget too, where
    ``check_val_every_n_epoch`` would leave it out and with it the weights of the last epochs.

    Attributes:
        interrupted: Whether Ctrl-C ended the run.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None
        self._period: int | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees to it that the last epoch is validated."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._validate_next(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts listening; only a main thread can."""
        self.interrupted = False
        if threading.current_thread() is not threading.main_thread():
            return

        def stop(signum: int, frame: FrameType | None) -> None:
            self.interrupted = trainer.should_stop = True
            self._validate_next(trainer)
            # not the handler there was before: a process started in the background has one that ignores Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

        self._previous = signal.signal(signal.SIGINT, stop)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops listening."""
        self._restore()
        self._put_period_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops listening."""
        self._restore()
        self._put_period_back(trainer)

    def _validate_next(self, trainer: Trainer) -> None:
        if trainer.check_val_every_n_epoch not in (None, 1):
            self._period = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

    def _put_period_back(self, trainer: Trainer) -> None:
        if self._period is not None:
            trainer.check_val_every_n_epoch, self._period = self._period, None

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
