"""What processes that learn together, the ranks of a DDP run, tell each other; a run of one process tells nobody."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


def over_ranks(trainer: Trainer, values: Sequence[float], how: Literal["sum", "max"]) -> list[float]:
    """Sums or maxima over all ranks, in one message; every rank has to ask at the same moment.

    Args:
        trainer: Of this rank.
        values: Of this rank; as many on each.
        how: What is made of them.
    """
    if trainer.world_size == 1:
        return list(values)
    # float64 tells env steps apart up to 2^53
    own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    reduced: torch.Tensor = trainer.strategy.reduce(own, reduce_op=how)
    return list(reduced.tolist())


def of_all_ranks(trainer: Trainer, value: Any) -> list[Any]:
    """What each rank has, in their order; every rank has to ask at the same moment.

    Args:
        trainer: Of this rank.
        value: Plain values and tensors of this rank.
    """
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def of_first_rank(trainer: Trainer, value: Any) -> Any:
    """What rank 0 has; every rank has to ask at the same moment.

    Args:
        trainer: Of this rank.
        value: Of this rank.
    """
    return value if trainer.world_size == 1 else trainer.strategy.broadcast(value)


def end_other_ranks(trainer: Trainer) -> None:
    """End the ranks that Lightning's launcher has started, where nothing else tells them that rank 0 ends.

    Args:
        trainer: The Trainer of rank 0.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGTERM)


def exit_code(trainer: Trainer, code: int) -> int:
    """With which this process is to end after a signal.

    Lightning's own launcher kills all ranks at once when one that it started ends with anything but 0, wherever they
    are; the process that was started by the user has the code for all.

    Args:
        trainer: Of this rank.
        code: That of a run of one process.
    """
    started_by_lightning = isinstance(trainer._accelerator_connector.cluster_environment, LightningEnvironment)
    return 0 if started_by_lightning and trainer.local_rank > 0 else code
