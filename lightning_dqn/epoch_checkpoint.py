"""Checkpoints at the end of every epoch, with a validation or without one."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn.signals import is_interrupted


class EpochCheckpoint(ModelCheckpoint):
    """A ``ModelCheckpoint`` that saves after every validation and at the end of every epoch that has none.

    Lightning's own saves at one of the two moments: after validations alone, a run that is not validated leaves no
    checkpoint. ``every_n_epochs`` counts for both moments.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, unless the validation at its end or a signal has saved this very step."""
        if is_interrupted(trainer):  # what the signal saved is exact; Lightning takes this for the end of an epoch
            return
        super().on_train_epoch_end(trainer, pl_module)
        super().on_validation_end(trainer, pl_module)  # saves nothing twice after the same step
