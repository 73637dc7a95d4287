"""Averaged weights of a callback in checkpoints that hold weights alone."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


def keep_averages(trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Puts the averages in the place of the weights, as Lightning does in whole checkpoints only.

    They are what validations are played with, so they are what a checkpoint chosen by its score has to hold.

    Args:
        trainer: Saving.
        module: Whose weights are averaged by a :class:`lightning.pytorch.callbacks.WeightAveraging` callback, if any.
        checkpoint: About to be written.
    """
    is_whole = "optimizer_states" in checkpoint
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and not is_whole:
            averaged = dict(checkpoint)
            callback.on_save_checkpoint(trainer, module, averaged)
            checkpoint["state_dict"] = averaged["state_dict"]
