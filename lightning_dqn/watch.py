"""What one watches: a progress bar, and a Weights & Biases run that never stops the training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import WandbLogger as _WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with return, epsilon and environment steps per second, redrawn every tenth iteration.

    Sixty drawings a second are more than anyone reads, and they take their time from the learning.

    Args:
        refresh_rate: Iterations between two drawings.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics by their short names, without the version number of the logger."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        short = {name: name.replace("collect/", "").replace("_per_second", "/s") for name in metrics}
        return {short[name]: value for name, value in metrics.items()}


class WandbLogger(_WandbLogger):
    """Lightning's W&B logger, which goes offline where it would otherwise ask for a login or fail.

    ``WANDB_MODE`` is obeyed if it is set. Otherwise a login found on this machine is used, and without one, or when the
    server cannot be reached, the run is kept on disk; :attr:`sync_command` uploads it later. The summary keeps the
    highest ``val/return`` beside the last.

    Args:
        project: Project of the run.
        name: Name of the run; W&B makes one up if not given.
        save_dir: Where the ``wandb`` folder is kept; made if missing.
        log_model: Whether the checkpoints of a fit become versions of the artifact ``model-<id of the run>`` when it
            ends, each under the name of its file, such as ``best``. The replay beside them stays where it is.
        **kwargs: See :class:`lightning.pytorch.loggers.WandbLogger`.
    """

    def __init__(
        self,
        project: str = "lightning-dqn",
        name: str | None = None,
        save_dir: str = "runs",
        log_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(project=project, name=name, save_dir=save_dir, **kwargs)
        self._log_model = (
            log_model  # Lightning refuses it where a run is offline, but `wandb sync` uploads artifacts too
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started when first asked for."""
        if self._experiment is None:
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
            if "WANDB_MODE" not in os.environ and not _logged_in():
                self._wandb_init["mode"] = "offline"
            try:
                run = super().experiment
            except wandb.Error as unreachable:
                rank_zero_warn(f"Weights & Biases is not reachable, logging offline: {unreachable}")
                self._wandb_init["mode"] = "offline"
                run = super().experiment
            run.define_metric("val/return", step_metric="env_steps", summary="max,last")
        return super().experiment

    def go_on_with(self, run_id: str) -> None:
        """Has this fit be a part of an earlier W&B run, unless it was given one itself or has begun.

        Args:
            run_id: W&B's name of that run.
        """
        if self._experiment is None and self._id is None:
            self._id = self._wandb_init["id"] = run_id

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Has the checkpoints become artifacts, after a fit that succeeded.

        Args:
            status: ``success``, or what became of the fit.
        """
        if status != "success" or self._experiment is None:
            return
        saved = {Path(callback.best_model_path) for callback in self._checkpoint_callbacks.values()}
        self._checkpoint_callbacks.clear()
        # the newest version is W&B's own "latest", so ours comes last
        for path in sorted((path for path in saved if path.is_file()), key=lambda path: (path.stem == "latest", path)):
            artifact = wandb.Artifact(f"model-{self._experiment.id}", "model", metadata={"file": path.name})
            artifact.add_file(str(path), name="model.ckpt")
            self._experiment.log_artifact(artifact, aliases=[path.stem])

    @property
    def sync_command(self) -> str | None:
        """The command that uploads an offline run; ``None`` if the run is live, disabled or not started."""
        run = self._experiment
        return f"wandb sync {run.settings.sync_dir}" if run is not None and getattr(run, "offline", False) else None

    def finish(self) -> None:
        """Ends the W&B run; the next one in this process is then a run of its own."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None


def _logged_in() -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except wandb.Error:
        return False
