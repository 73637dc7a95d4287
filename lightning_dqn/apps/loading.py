"""The agent in a checkpoint, and the environments it was trained in."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_dqn.apps.command import Refusal
from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.complaints import in_one_line
from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.learner.module import DQNLightningModule


def load(checkpoint: Path, **settings: Any) -> tuple[ExperienceDataModule, DQNLightningModule]:
    """What a checkpoint was trained with, made again, and the network.

    Args:
        checkpoint: A file of this package.
        **settings: Arguments of the data module that are to be others.

    Raises:
        Refusal: If it cannot be loaded.
    """
    with _refused(checkpoint, "model"):
        module = DQNLightningModule.load_from_checkpoint(checkpoint, map_location="cpu")
    with _refused(checkpoint, "data"):
        data = ExperienceDataModule.load_from_checkpoint(checkpoint, weights_only=True, **settings)
    return data, module


@contextlib.contextmanager
def _refused(checkpoint: Path, section: str) -> Iterator[None]:
    try:
        yield
    except argparse.ArgumentError as error:  # of the parser that makes the classes a checkpoint names
        why = re.sub(r"^module(?=[.:])", section, in_one_line(str(error)))
        cure = "start in the folder where the file of that class is, as it was then, or put it on PYTHONPATH"
        raise Refusal(f"ckpt_path: {checkpoint} cannot be loaded: {why}; {cure}") from error
    except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(f"ckpt_path: {checkpoint} cannot be loaded: {why}") from error
