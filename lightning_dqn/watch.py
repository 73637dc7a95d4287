"""Weights & Biases that never stops a run: live with a login, offline by itself without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger as _WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class WandbLogger(_WandbLogger):
    """Lightning's W&B logger, which goes offline where it would otherwise ask for a login or fail.

    ``WANDB_MODE`` is obeyed if it is set. Otherwise a login found on this machine is used, and without one, or when the
    server cannot be reached, the run is kept on disk; :attr:`sync_command` uploads it later.

    Args:
        project: Project of the run.
        name: Name of the run; W&B makes one up if not given.
        save_dir: Where the ``wandb`` folder is kept; made if missing.
        **kwargs: See :class:`lightning.pytorch.loggers.WandbLogger`.
    """

    def __init__(
        self, project: str = "lightning-dqn", name: str | None = None, save_dir: str = "runs", **kwargs: Any
    ) -> None:
        super().__init__(project=project, name=name, save_dir=save_dir, **kwargs)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started when first asked for."""
        if self._experiment is None:
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
            if "WANDB_MODE" not in os.environ and not _logged_in():
                self._wandb_init["mode"] = "offline"
            try:
                return super().experiment
            except wandb.Error as unreachable:
                rank_zero_warn(f"Weights & Biases is not reachable, logging offline: {unreachable}")
                self._wandb_init["mode"] = "offline"
        return super().experiment

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
