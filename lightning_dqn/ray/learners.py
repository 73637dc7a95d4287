"""What runs in the workers of Ray Train: ``fit``, as a rank of a run of several."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
from lightning.pytorch import Callback, LightningModule, Trainer
from ray.exceptions import RayError
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

from lightning_dqn.checkpoint_io import written_checkpoint
from lightning_dqn.cli import DQNCLI, finish_loggers
from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.complaints import what_is_wrong
from lightning_dqn.ray.head import is_alive
from lightning_dqn.ray.line import speaking
from lightning_dqn.ray.worker import FieldError, begin_in
from lightning_dqn.signals import GracefulInterrupt, is_interrupted

_POINTER = "latest.txt"
_LOOK_EVERY = 0.5  # seconds between two looks at what may end the run


class Orders(NamedTuple):
    """What every worker is told.

    Attributes:
        args: Of ``fit``.
        folder: Working directory.
        collector: What the section ``collect`` configures.
        line: Handle of a :class:`~lightning_dqn.ray.line.Line`.
    """

    args: list[str]
    folder: str
    collector: type[ExperienceCollector]
    line: Any


def learn(orders: dict[str, Any]) -> dict[str, Any]:
    """Runs ``fit`` in this worker; after a restart, from the last checkpoint of the same run.

    Args:
        orders: Fields of :class:`Orders`, the same for all workers.

    Returns:
        Fields of :class:`~lightning_dqn.ray.training.Fitted`.

    Raises:
        FieldError: If something about the configuration cannot work.
    """
    args, folder, collector, line = Orders(**orders)
    begin_in(folder)
    logging.getLogger("ray").setLevel(logging.WARNING)
    companion = Companion(line)
    first = ray.train.get_context().get_world_rank() == 0
    code = 0
    try:
        with speaking(line) if first else contextlib.nullcontext():
            finish_loggers(_Fit(["fit", *args, *_go_on()], collector, companion).trainer)
    except (ValueError, MemoryError) as error:
        reason = what_is_wrong(error)
        if reason is None:
            raise
        raise FieldError(reason) from error
    except SystemExit as ended:  # after a signal; for Ray it would be a failure
        if ended.code == 2:
            raise FieldError("config: the command line does not take these settings") from ended
        code = ended.code if isinstance(ended.code, int) else 1
    if not is_alive(companion.head):
        os._exit(code)  # Ray would end this process a minute later
    return companion.result | {"code": code}


class Companion(Callback):
    """Tells Ray how far a run is and where its checkpoint lies, and the run which signals the command has had.

    Args:
        line: Handle of a :class:`~lightning_dqn.ray.line.Line`.

    Attributes:
        head: Address of the cluster's head.
        result: Folder, checkpoint and metrics of the run that is over.
    """

    def __init__(self, line: Any) -> None:
        self.result: dict[str, Any] = {"folder": None, "checkpoint": None, "metrics": {}}
        self.head = ray.get_runtime_context().gcs_address
        self._line = line
        self._saved = False
        self._over = threading.Event()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to listen; ranks tell each other what one has heard."""
        if trainer.is_global_zero:
            threading.Thread(target=self._listen, args=[trainer], daemon=True).start()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes that there is one of this run, not only of one before it."""
        self._saved = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports, after validation and checkpoint of the epoch."""
        if is_interrupted(trainer):  # perhaps since Ray is gone; the result says all
            return
        latest, metrics = _latest(trainer), _metrics(trainer)
        if trainer.is_global_zero and "val/return" in metrics:
            steps = f"{metrics['env_steps']:,.0f} env steps"
            print(f"epoch {trainer.current_epoch}: val/return {metrics['val/return']:.1f} after {steps}")
        if not (self._saved and trainer.is_global_zero and latest.exists()):
            ray.train.report(metrics)
            return
        # the checkpoint itself is where all machines see it; Ray keeps its name
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _POINTER).write_text(str(latest))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps what there is to say of the run."""
        self._over.set()
        folder, latest = trainer.log_dir, _latest(trainer)  # all ranks have to ask for the folder
        self.result = {
            "folder": folder and str(Path(folder).absolute()),
            "checkpoint": str(latest) if self._saved and latest.exists() else None,
            "metrics": _metrics(trainer),
        }

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listens no more."""
        self._over.set()

    def _listen(self, trainer: Trainer) -> None:
        number = self._next_signal()
        # the run takes no notice before its first iteration
        while not (self._over.wait(_LOOK_EVERY) or is_interrupted(trainer)):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GracefulInterrupt):
                    callback.hear(signal.Signals(number))

    def _next_signal(self) -> int:
        rung = self._line.wait.remote()
        while is_alive(self.head):
            if ray.wait([rung], timeout=_LOOK_EVERY)[0]:
                try:
                    return int(ray.get(rung))
                except RayError:
                    break
        return signal.SIGTERM  # nobody is there any more who wants the result, but the run can go on one day


class _Fit(DQNCLI):
    def __init__(self, args: Sequence[str], collector: type[ExperienceCollector], companion: Companion) -> None:
        self.collector = collector
        self._companion = companion
        super().__init__(list(args))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config.get("strategy") not in (None, "auto", "ddp"):
            raise ValueError("trainer.strategy: Ray Train starts ranks of ddp, and no others; leave it out")
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        of_ray = {
            "strategy": RayDDPStrategy(),  # type: ignore[no-untyped-call]
            "plugins": [*plugins, RayLightningEnvironment()],  # type: ignore[no-untyped-call]
            "devices": "auto",  # what Ray gives to this worker
            "num_nodes": 1,
            "enable_progress_bar": False,  # what workers say comes in lines
        }
        trainer = super()._instantiate_trainer(config | of_ray, [*callbacks, self._companion])
        prepared: Trainer = prepare_trainer(trainer)
        return prepared


def _go_on() -> list[str]:
    """Arguments that have a run begin where Ray says that it was."""
    known = ray.train.get_checkpoint()
    if known is None:
        return []
    with known.as_directory() as folder:
        return [f"--ckpt_path={(Path(folder) / _POINTER).read_text()}"]


def _latest(trainer: Trainer) -> Path:
    return written_checkpoint(trainer).absolute()


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()} | {"epoch": trainer.current_epoch}
