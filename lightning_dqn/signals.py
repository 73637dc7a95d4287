"""However a run ends, it ends at a step boundary and is saved: by its budget, by Ctrl-C, by a scheduler's signal."""

from __future__ import annotations

import signal
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_dqn.checkpoint_io import full_checkpoint
from lightning_dqn.ranks import end_other_ranks, exit_code, over_ranks

_LOOK_EVERY = 0.5  # seconds between two moments at which ranks agree whether to stop


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

    Under several ranks it does not matter which of them hears of it: about twice a second they agree whether one has,
    and all save and end after the same iteration.

    Attributes:
        interrupted: Whether a signal ended the run.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._due: signal.Signals | None = None
        self._log_every = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._requeue: signal.Signals | None = None
        self._ends_process = False
        self._changed: list[tuple[Any, str, Any]] = []  # settings of the Trainer, and what they were
        self._agreement = _Agreement()

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
        self._agreement = _Agreement()
        leave = partial(_leave, trainer)
        if trainer.received_sigterm:  # while everything was set up
            leave(signal.SIGTERM, None)
        if threading.current_thread() is not threading.main_thread():
            return
        self._requeue = _requeue_signal(trainer)
        listened = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} | ({self._requeue} if self._requeue else set())
        self._previous = {number: signal.getsignal(number) for number in listened}
        for number in listened:
            signal.signal(number, leave if number in (signal.SIGINT, signal.SIGTERM) else self._note)

    def hear(self, number: signal.Signals) -> None:
        """Takes notice of a signal that somebody else received, such as the process that started this one.

        Args:
            number: Acted upon at the end of the iteration that is under way.
        """
        self._due = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a signal that ends the run is worth an iteration's wait."""
        self._log_every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._change(trainer, "log_every_n_steps", self._log_every)
        for number in self._previous:
            signal.signal(number, self._note)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sees to it that the last epoch is validated."""
        if trainer.current_epoch + 1 == trainer.max_epochs and trainer.check_val_every_n_epoch not in (None, 1):
            self._change(trainer, "check_val_every_n_epoch", 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does what a signal asked for, at the one moment of an iteration from which a run can go on exactly."""
        self._act(trainer)
        self.keep_rows_on_schedule(trainer)

    def keep_rows_on_schedule(self, trainer: Trainer) -> None:
        """Have rows written at multiples of ``log_every_n_steps`` only, also while the Trainer is about to stop.

        Once ``should_stop`` is set, the Trainer writes a row at every iteration. The run that resumes would keep it.

        Args:
            trainer: Its ``log_every_n_steps`` is 0, which is never, for an iteration without a row.
        """
        if trainer.should_stop and self._log_every:
            steps = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
            trainer.log_every_n_steps = 0 if steps % self._log_every else self._log_every  # type: ignore[attr-defined]

    def _act(self, trainer: Trainer) -> None:
        # the last batch of an epoch is no such moment: it is after the validation, or else the next iteration
        if trainer.is_last_batch or not self._agreement.is_due(trainer):
            return
        number = self._ask(trainer)
        if number is None:
            return
        loop = trainer.fit_loop
        if loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._due = number  # a validation within an epoch is finished first
            return
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
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        number = self._ask(trainer)
        if number in (signal.SIGINT, signal.SIGTERM):
            self._stop(trainer, number)
        elif number is not None:
            self._due = number

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops listening."""
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops listening."""
        self._put_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the process if that is what was asked for; everything else has been closed by then."""
        if self._ends_process:
            self._ends_process = False
            sys.exit(exit_code(trainer, 128 + signal.SIGTERM))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._due = signal.Signals(signum)
        if signum == signal.SIGINT:
            # not the handler there was before: a process started in the background has one that ignores Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rank_zero_info("\nStopping after this step; press Ctrl-C again to stop at once.")

    def _ask(self, trainer: Trainer) -> signal.Signals | None:
        heard = self._due
        number = self._agreement.on(trainer, heard)
        if self._due is heard:  # else one more came while the others answered
            self._due = None
        return number

    def _stop(self, trainer: Trainer, number: signal.Signals) -> None:
        self.interrupted = trainer.should_stop = True
        self._ends_process = number == signal.SIGTERM
        self._change(trainer, "limit_val_batches", 0)  # a stop would validate
        self._change(trainer.fit_loop, "min_epochs", None)  # with a least length the Trainer would go on
        self._change(trainer.fit_loop.epoch_loop, "min_steps", None)

    def _change(self, owner: Any, name: str, value: Any) -> None:
        self._changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def _put_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        while self._changed:  # the last first: one that was changed twice gets what it had at first
            owner, name, value = self._changed.pop()
            setattr(owner, name, value)


class _Agreement:
    """On which signal all ranks act after this iteration; a run of one process asks nobody."""

    def __init__(self) -> None:
        self._wait = 0  # iterations until the next time
        self._every = 1
        self._asked = time.monotonic()

    def is_due(self, trainer: Trainer) -> bool:
        """Whether the ranks ask each other after this iteration; the answer is the same on all."""
        self._wait -= 1
        return trainer.world_size == 1 or self._wait <= 0

    def on(self, trainer: Trainer, heard: signal.Signals | None) -> signal.Signals | None:
        """The gravest signal that any rank has heard, ``None`` for none.

        The message also says how long iterations take: the slowest rank decides how many there are until the next one.

        Args:
            trainer: Of this rank.
            heard: By this rank.
        """
        if trainer.world_size == 1:
            return heard
        now = time.monotonic()
        seconds = (now - self._asked) / self._every
        gravity = 0 if heard is None else 1 + _by_gravity(trainer).index(heard)
        gravest, slowest = over_ranks(trainer, [gravity, seconds], "max")
        # no more than twice as many: the first iterations of a run say little
        self._every = self._wait = max(1, min(2 * self._every, int(_LOOK_EVERY / max(slowest, 1e-6))))
        self._asked = time.monotonic()
        return _by_gravity(trainer)[int(gravest) - 1] if gravest else None


def _by_gravity(trainer: Trainer) -> list[signal.Signals]:
    requeue = _requeue_signal(trainer)
    others = [requeue] if requeue not in (None, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM) else []
    return [signal.SIGUSR1, *others, signal.SIGINT, signal.SIGTERM]


def _requeue_signal(trainer: Trainer) -> signal.Signals | None:
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def _leave(trainer: Trainer, signum: int, frame: FrameType | None) -> None:
    rank_zero_info(f"\nStopped by {signal.Signals(signum).name} before the first update: nothing was saved.")
    end_other_ranks(trainer)
    sys.exit(exit_code(trainer, 128 + signum))


def is_interrupted(trainer: Trainer) -> bool:
    """Whether a signal ends the run, which may have few seconds left.

    Args:
        trainer: Whose callbacks are asked.
    """
    return any(getattr(callback, "interrupted", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


class _Before(Callback):
    """Has signals heard before anybody else begins; whoever acts on them comes last."""

    def __init__(self, listener: GracefulInterrupt) -> None:
        self.listener = listener

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to listen."""
        self.listener.listen(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the rows on schedule where training goes on after a stop, as with ``min_epochs``."""
        self.listener.keep_rows_on_schedule(trainer)
