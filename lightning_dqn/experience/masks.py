"""Which actions are legal, wherever an environment says it: an observation key or ``info``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


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
        assert isinstance(env.action_space, spaces.Discrete)
        self.num_actions = int(env.action_space.n)
        space = env.observation_space
        self.observed = isinstance(space, spaces.Dict) and key in space.spaces
        if not self.observed:
            return
        assert isinstance(space, spaces.Dict)
        if space[key].shape != (self.num_actions,):
            raise ValueError(
                f"data.action_mask: observation key {key!r} has shape {space[key].shape}, not one entry for each of "
                f"{self.num_actions} actions"
            )
        rest = {name: part for name, part in space.spaces.items() if name != key}
        if not rest:
            raise ValueError(f"data.action_mask: without {key!r} the observations are empty")
        self.only = next(iter(rest)) if len(rest) == 1 else None
        self.observation_space = rest[self.only] if self.only is not None else spaces.Dict(rest)

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
            observation = rest[self.only] if self.only is not None else rest
        elif ended:  # nothing is left to choose, whatever it says
            return observation, {name: value for name, value in info.items() if name != self.key}
        elif self.key in info:
            mask = info[self.key]
        else:
            raise ValueError(
                f"data.action_mask: {self.key!r} is neither an observation key nor in info, which has {sorted(info)}"
            )
        mask = as_mask(mask, self.key)
        if mask.shape != (self.num_actions,):
            raise ValueError(
                f"data.action_mask: {self.key!r} is {mask.shape}, not one entry for each of {self.num_actions} actions"
            )
        return observation, {**info, self.key: mask}


def as_mask(mask: Any, key: str) -> NDArray[np.bool_]:
    """A mask as bools of its own; a number other than 0 says that an action is legal.

    Args:
        mask: What the environment says.
        key: Where it says it.

    Raises:
        ValueError: If it holds anything but numbers; names the field.
    """
    try:
        array = np.asarray(mask)
    except ValueError:  # rows of different lengths
        array = np.array(mask, object)
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"data.action_mask: {key!r} is {mask!r}, which is not true or false for each action")
    return array.astype(np.bool_)
