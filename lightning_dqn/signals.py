"""However a run ends, it ends at a step boundary and is saved: by its budget, by Ctrl-C, by a scheduler's signal."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_dqn.checkpoint_io import full_checkpoint


class GracefulInterrupt(Callback):
    """Turns signals into checkpoints at the end of the iteration that is under way.

    The Trainer alone would stop in the middle of a step, or not at all. With this,

    - SIGTERM, as from a scheduler that wants the machine back, saves and ends the process with exit code 143;
    - the first Ctrl-C saves and ends training; the second ends it at once;
    - SIGUSR1 saves, and the run goes on; under SLURM with automatic requeueing the signal for that is Lightning's,
      which saves and asks for the job to be put back into the queue, at a step boundary as well.

    What is saved goes where the full checkpoints of the run go (``latest.ckpt``), and a run that goes on from there is
    the run that was not interrupted. No validation is run for it; one that is due after the very iteration is finished
    first. At the end of the budget a last validation comes even where ``check_val_every_n_epoch`` would leave it out,
    and with it the weights of the last epochs.

    Attributes:
        interrupted: Whether a signal ended the run.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._due: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._requeue: signal.Signals | None = None
        self._ends_process = False
        self._period: int | None = None
        self._limit: int | float | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes its place behind everybody who takes part in an iteration, and before those who save."""
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        savers = [callback for callback in others if isinstance(callback, Checkpoint)]
        others = [callback for callback in others if callback not in savers]
        others = [callback for callback in others if not isinstance(callback, _Before)]
        trainer.callbacks = [_Before(self), *others, self, *savers]  # type: ignore[attr-defined]

    def listen(self, trainer: Trainer) -> None:
        """Starts listening; only a main thread can. Before the first iteration there is nothing to save.

        Args:
            trainer: Has put its own handlers in place already.
        """
        self.interrupted, self._due, self._requeue = False, None, None
        if trainer.received_sigterm:  # while everything was set up
            self._leave(signal.SIGTERM, None)
        if threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = environment.requeue_signal
        listened = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} | ({self._requeue} if self._requeue else set())
        self._previous = {number: signal.getsignal(number) for number in listened}
        for number in listened:
            signal.signal(number, self._leave if number in (signal.SIGINT, signal.SIGTERM) else self._note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal that ends the run is worth an iteration's wait."""
        for number in self._previous:
            signal.signal(number, self._note)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees to it that the last epoch is validated."""
        if trainer.current_epoch + 1 == trainer.max_epochs and trainer.check_val_every_n_epoch not in (None, 1):
            self._period = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does what a signal asked for, at the one moment of an iteration from which a run can go on exactly."""
        # the last batch of an epoch is no such moment: it is after the validation, or else the next iteration
        if self._due is None or trainer.is_last_batch:
            return
        number, self._due = self._due, None
        requeue = self._previous.get(number)
        if number == self._requeue and callable(requeue):  # Lightning leaves a signal alone that is ignored
            requeue(number, None)
            return
        folder, name = full_checkpoint(trainer)
        path = folder / f"{name}.ckpt"
        if number != signal.SIGUSR1:
            self._stop(trainer, number)  # first: the save is quicker where it knows that it is the last
        trainer.save_checkpoint(path)
        if number == signal.SIGUSR1:
            rank_zero_info(f"\nSaved {path} after {number.name}.")
            return
        rank_zero_info(f"\nStopped after {number.name}; go on with --ckpt_path {path}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run whose signal came just before; the checkpoint of a validation is written next."""
        if self._due in (signal.SIGINT, signal.SIGTERM) and not trainer.sanity_checking:
            number, self._due = self._due, None
            self._stop(trainer, number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops listening."""
        self._put_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops listening."""
        self._put_back(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the process if that is what was asked for; everything else has been closed by then."""
        if self._ends_process:
            self._ends_process = False
            sys.exit(128 + signal.SIGTERM)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._due = signal.Signals(signum)
        if signum == signal.SIGINT:
            # not the handler there was before: a process started in the background has one that ignores Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

    @staticmethod
    def _leave(signum: int, frame: FrameType | None) -> None:
        rank_zero_info(f"\nStopped by {signal.Signals(signum).name} before the first update: nothing was saved.")
        sys.exit(128 + signum)

    def _stop(self, trainer: Trainer, number: signal.Signals) -> None:
        self.interrupted = trainer.should_stop = True
        self._ends_process = number == signal.SIGTERM
        self._limit, trainer.limit_val_batches = trainer.limit_val_batches, 0  # a stop would validate

    def _put_back(self, trainer: Trainer) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._period is not None:
            trainer.check_val_every_n_epoch, self._period = self._period, None
        if self._limit is not None:
            trainer.limit_val_batches, self._limit = self._limit, None


class _Before(Callback):
    """Has signals heard before anybody else begins; whoever acts on them comes last."""

    def __init__(self, listener: GracefulInterrupt) -> None:
        self.listener = listener

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to listen."""
        self.listener.listen(trainer)
