"""Environment wrappers that a configuration file can name without arguments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleObservation


class UnitObservation(RescaleObservation[Any, Any, Any]):
    """Scales bounded observations to [-1, 1], so that a network sees small numbers as well as large ones.

    MountainCar's velocity, for example, is never above 0.07 where its position spans 1.8.

    Args:
        env: The environment, with Box observations of known bounds.

    Raises:
        ValueError: If the observations have no bounds; names the field.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        space = env.observation_space
        if not (isinstance(space, spaces.Box) and space.is_bounded()):
            raise ValueError(f"data.wrappers: UnitObservation needs Box observations with bounds, got {space}")
        super().__init__(env, np.float32(-1), np.float32(1))
