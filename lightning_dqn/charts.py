"""What Weights & Biases shows beside numbers: histograms, the episodes of a validation, films."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from lightning_dqn.experience.datamodule import data_of
from lightning_dqn.experience.evaluation import EvaluationSchedule
from lightning_dqn.forgiving import Forgiving
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.video import EpisodeVideo

_BINS = 64


class WandbCharts(Callback):
    """Sends histograms, tables and films to every W&B logger, and has a checkpoint know the W&B run it is from.

    Over ``env_steps``: ``train/q_values`` and ``train/td_errors``, histograms of the updates of one iteration, from the
    rows that loggers write; ``val/episodes``, a table with seed, return and length of every episode of a validation
    (of this process); ``val/episode``, the film of an :class:`~lightning_dqn.video.EpisodeVideo` that comes before
    this callback. What goes wrong is one warning.

    Args:
        seconds_between_histograms: A long run writes many rows, more than anyone needs histograms.
    """

    def __init__(self, seconds_between_histograms: float = 10.0) -> None:
        self.seconds_between_histograms = seconds_between_histograms
        self._next_histogram = 0.0
        self._films = 0
        self._run_id: str | None = None
        self._forgiving = Forgiving("Weights & Biases gets no more charts", "Figures are logged as before.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the run, for checkpoints."""
        with self._forgiving:
            self._run_id = next((logger.experiment.id for logger in _wandb_loggers(trainer) if _is_kept(logger)), None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sends histograms, if a row is written now and the last ones are some time ago."""
        if not isinstance(pl_module, DQNLightningModule) or not trainer._logger_connector.should_update_logs:
            return
        if time.monotonic() < self._next_histogram:
            return
        self._next_histogram = time.monotonic() + self.seconds_between_histograms
        with self._forgiving:
            values = {"train/td_errors": outputs["td_error"], "train/q_values": pl_module._iteration.q_values}
            self._send(trainer, {name: histogram(torch.stack(list(each))) for name, each in values.items()})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends the table of the episodes just played."""
        schedule, metrics = trainer.val_dataloaders, getattr(pl_module, "validation_metrics", None)
        if trainer.sanity_checking or metrics is None or not isinstance(schedule, EvaluationSchedule):
            return
        with self._forgiving:
            seeds = [seed for batch in schedule.batches for seed in batch.seeds]
            scores = (torch.cat(list(each)).tolist() for each in (metrics.returns, metrics.lengths))
            rows = [[seed, score, int(length)] for seed, score, length in zip(seeds, *scores, strict=False)]
            self._send(trainer, {"val/episodes": wandb.Table(["seed", "return", "length"], rows)})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends a film, if there is a new one."""
        self._send_films(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends a film, if there is a new one."""
        self._send_films(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The W&B run; ``{}`` if there is none."""
        return {} if self._run_id is None else {"run_id": self._run_id}

    def _send_films(self, trainer: Trainer) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for video in callbacks:
            if isinstance(video, EpisodeVideo) and video.path is not None and video.made > self._films:
                self._films = video.made
                with self._forgiving:
                    film = wandb.Video(str(video.path), caption=video.caption, format="gif")
                    self._send(trainer, {"val/episode": film})

    def _send(self, trainer: Trainer, charts: dict[str, Any]) -> None:
        data = data_of(trainer)
        if data is not None and trainer.is_global_zero:
            for logger in _wandb_loggers(trainer):
                logger.log_metrics(charts | {"env_steps": float(data.env_steps)}, trainer.global_step)


def histogram(values: Tensor) -> wandb.Histogram:
    """A histogram of the finite ones among some numbers.

    Args:
        values: Of any shape.
    """
    finite = values.detach().float().flatten().cpu()
    return wandb.Histogram(np_histogram=np.histogram(finite[finite.isfinite()].numpy(), bins=_BINS))


def run_id_of(checkpoint: dict[str, Any]) -> str | None:
    """The W&B run that a checkpoint is from; ``None`` if it knows of none.

    Args:
        checkpoint: As it was read.
    """
    state: dict[str, Any] = checkpoint.get("callbacks", {}).get(WandbCharts.__qualname__, {})
    return state.get("run_id")


def _wandb_loggers(trainer: Trainer) -> Iterator[WandbLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, WandbLogger))


def _is_kept(logger: WandbLogger) -> bool:
    return not getattr(logger.experiment, "disabled", True)
