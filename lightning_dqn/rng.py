"""The random numbers that everybody shares: torch's, numpy's and Python's own, as plain values and tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def shared_random_state() -> dict[str, Any]:
    """The state of every generator that a process shares: of noisy networks, and of environments without their own.

    Returns:
        Tensors and plain values, as a checkpoint may hold them.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": random.getstate(),
    }


def separate_shared_random_state(rank: int) -> None:
    """Gives every rank draws of its own: Lightning leaves all of them with the same.

    Args:
        rank: Of this process; rank 0 keeps the draws that a run of one process has.
    """
    if rank > 0:
        torch_seed, numpy_seed, python_seed = np.random.SeedSequence([torch.initial_seed(), rank]).generate_state(3)
        torch.manual_seed(int(torch_seed))
        np.random.seed(int(numpy_seed))  # noqa: NPY002
        random.seed(int(python_seed))


def restore_shared_random_state(state: dict[str, Any]) -> None:
    """Puts back what :func:`shared_random_state` gave; of accelerators, those that are there.

    Args:
        state: Its return value.
    """
    torch.set_rng_state(state["torch"])
    for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(device_state, device)
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
