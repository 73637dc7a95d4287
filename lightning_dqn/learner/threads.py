"""How many CPU threads a network is worth."""

from __future__ import annotations

import os

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

_SMALL = 1_000_000


def limit_threads(network: nn.Module) -> int | None:
    """Gives a small network on a CPU one thread, and says so.

    Its matrix products are over before a second thread has woken up, and threads that wait for each other cost most
    where other processes want the cores as well. Convolutions keep them all. ``OMP_NUM_THREADS`` overrules.

    Args:
        network: On its device already.

    Returns:
        The number of threads there was before, to put back; ``None`` if nothing was changed.
    """
    parameters = list(network.parameters())
    before = torch.get_num_threads()
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    small = sum(parameter.numel() for parameter in parameters) < _SMALL
    convolves = any(parameter.dim() > 2 for parameter in parameters)
    if "OMP_NUM_THREADS" in os.environ or before == 1 or not on_cpu or not small or convolves:
        return None
    torch.set_num_threads(1)
    rank_zero_info("One CPU thread for a network this small; set OMP_NUM_THREADS to choose another number.")
    return before


def restore_threads(before: int | None) -> None:
    """Puts back what :func:`limit_threads` returned."""
    if before is not None:
        torch.set_num_threads(before)
