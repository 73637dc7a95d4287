"""Which actions are legal, wherever an environment says it: an observation key or ``info``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ActionMask(gym.Wrapper[Any, Any, Any, Any]):
    """Brings the mask of legal actions into ``info[key]`` as a bool array of one entry per action.

    If observations are a Dict with that key, the mask is taken out of them, so that the network sees the rest: one Dict
    with a key less, or, if a single other key remains, what that key holds.

    Args:
        env: The environment.
        key: Name of the observation key or of the entry of ``info``.

    Raises:
        ValueError: If the observation key does not hold one number per action; names the field.
    """

    def __init__(self, env: gym.Env[Any, Any], key: str) -> None:
        super().__init__(env)
        self.key = key
        space = env.observation_space
        self.observed = isinstance(space, spaces.Dict) and key in space.spaces
        if not self.observed:
            return
        assert isinstance(space, spaces.Dict)
        assert isinstance(env.action_space, spaces.Discrete)
        if space[key].shape != (env.action_space.n,):
            raise ValueError(
                f"data.action_mask: observation key {key!r} has shape {space[key].shape}, not one entry for each of "
                f"{env.action_space.n} actions"
            )
        rest = {name: part for name, part in space.spaces.items() if name != key}
        if not rest:
            raise ValueError(f"data.action_mask: without {key!r} the observations are empty")
        self.only = next(iter(rest)) if len(rest) == 1 else None
        self.observation_space = rest[self.only] if self.only else spaces.Dict(rest)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        return self._separate(*self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._separate(observation, info, terminated)
        return observation, reward, terminated, truncated, info

    def _separate(self, observation: Any, info: dict[str, Any], ended: bool = False) -> tuple[Any, dict[str, Any]]:
        if self.observed:
            mask = observation[self.key]
            rest = {name: part for name, part in observation.items() if name != self.key}
            observation = rest[self.only] if self.only else rest
        elif self.key in info:
            mask = info[self.key]
        elif ended:  # nothing is left to choose
            return observation, info
        else:
            raise ValueError(
                f"data.action_mask: {self.key!r} is neither an observation key nor in info, which has {sorted(info)}"
            )
        return observation, {**info, self.key: np.array(mask, np.bool_)}
