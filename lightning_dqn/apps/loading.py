"""The agent in a checkpoint, and the environments it was trained in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_dqn.apps.command import Refusal
from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.trust import errors_of_checkpoint


def load(
    checkpoint: Path, trust: Sequence[str] = (), **settings: Any
) -> tuple[ExperienceDataModule, DQNLightningModule]:
    """Return the data module that a checkpoint was trained with, and the network.

    Args:
        checkpoint: A file of this package.
        trust: Modules whose classes the checkpoint may name, beside those of this package, torch and gymnasium.
        **settings: Arguments of the data module that are to be others.

    Raises:
        Refusal: If it cannot be loaded.
    """
    try:
        with errors_of_checkpoint(checkpoint):
            module = DQNLightningModule.load_from_checkpoint(checkpoint, map_location="cpu", trust=trust)
            data = ExperienceDataModule.load_from_checkpoint(checkpoint, trust=trust, **settings)
    except CheckpointError as error:
        raise Refusal(str(error)) from error
    return data, module
