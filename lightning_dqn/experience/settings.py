"""Settings of the data side are checked before anything is made of them."""

from __future__ import annotations

import os

import numpy as np
import torch


def check_range(least: int, most: float, **arguments: int) -> None:
    """Refuses numbers out of range.

    Args:
        least: The smallest allowed.
        most: The largest allowed.
        **arguments: Fields of the data module, by name.

    Raises:
        ValueError: Naming the field.
    """
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"data.{name} must be at least {least}, got {value}")
        if value > most:
            raise ValueError(f"data.{name} must be at most {most:,}, got {value}")


def check_device(name: str) -> torch.device:
    """The device that observations are kept on.

    Args:
        name: As torch calls it.

    Raises:
        ValueError: If there is none of that name, or it is not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"data.storage_device: {name!r} is no device: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("data.storage_device: there is no CUDA device here")
    return device


def check_capacity(capacity: int, batch_size: int, at_once: int) -> None:
    """Refuses a replay buffer that a minibatch, or what can arrive in one step, would not fit in.

    Args:
        capacity: Of the buffer, in transitions.
        batch_size: Transitions of a gradient step.
        at_once: Transitions that one step of all environments can complete.

    Raises:
        ValueError: Naming the field.
    """
    if batch_size > capacity:
        raise ValueError(
            f"data.batch_size ({batch_size}) is larger than the replay buffer (data.buffer.capacity: {capacity})"
        )
    if at_once > capacity:
        raise ValueError(
            f"data.buffer.capacity ({capacity}) must hold n_step * num_envs = {at_once} transitions, which can arrive "
            "at once"
        )


def choose_seed(seed: int | None) -> int:
    """A seed for environments, exploration and replay.

    Args:
        seed: The one that was asked for; if none, that of ``seed_everything``, else a random one.
    """
    if seed is not None:
        return seed
    everywhere = os.environ.get("PL_GLOBAL_SEED")
    if everywhere is not None:
        return int(everywhere)
    return int(np.random.SeedSequence().generate_state(1)[0])
