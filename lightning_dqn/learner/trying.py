"""A torso is tried on made-up observations, before a head stands on it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn

_DTYPES = (torch.float32, torch.uint8, torch.int64)  # a torso may count on one: images, or indices


def check_torso(torso: nn.Module, observation_shape: Sequence[int]) -> None:
    """Refuses a torso that does not take such observations, or gives other features than it says.

    Args:
        torso: Maps ``[B, *observation_shape]`` to ``[B, num_features]``.
        observation_shape: Shape of one observation.

    Raises:
        ValueError: Naming the field.
    """
    who = f"model.torso: {type(torso).__name__}"
    if not hasattr(torso, "num_features"):
        raise ValueError(
            f"{who} does not say how many features it gives; set self.num_features in its __init__, to the size of "
            "what forward returns"
        )
    refused: list[Exception] = []
    for dtype in _DTYPES:
        try:
            features = _features(torso, observation_shape, dtype)
            break
        except Exception as error:  # whatever somebody's network raises
            refused.append(error)
    else:
        said = str(refused[0]).partition("\n")[0]
        raise ValueError(
            f"{who} cannot take observations of model.observation_shape = {tuple(observation_shape)}; its layers do "
            f"not fit them, or each other: {said}"
        ) from refused[0]
    shape = tuple(getattr(features, "shape", ()))
    if shape != (2, torso.num_features):
        raise ValueError(
            f"{who} says num_features = {torso.num_features}, but its forward gives {shape} for 2 observations; the "
            "two must agree: (2, num_features)"
        )


def check_dtype(torso: nn.Module, observation_shape: Sequence[int], dtype: DTypeLike) -> None:
    """Refuses a torso that says of itself that it does not take such numbers.

    Args:
        torso: Maps ``[B, *observation_shape]`` to ``[B, num_features]``.
        observation_shape: Shape of one observation.
        dtype: What one number of an observation is, as numpy calls it.

    Raises:
        ValueError: If it raises one; in its words, and naming the field.
    """
    try:
        _features(torso, observation_shape, torch.from_numpy(np.empty(0, dtype)).dtype)
    except ValueError as error:
        said = str(error).partition("\n")[0].removeprefix("model.torso: ")
        raise ValueError(
            f"model.torso: {said}; the observations of data.env_id are {np.dtype(dtype)}: choose another torso, or a "
            "wrapper in data.wrappers that makes them what it takes"
        ) from error
    except Exception:  # what its layers can do depends on the precision and the device of the run
        return


def _features(torso: nn.Module, observation_shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What a torso makes of two observations of zeros."""
    torso = copy.deepcopy(torso)  # layers such as batch norm remember what they have seen
    device = next((parameter.device for parameter in torso.parameters()), None)
    # the seed of a run decides its course, whatever was tried before
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        features: Tensor = torso(torch.zeros(2, *observation_shape, dtype=dtype, device=device))
    return features
