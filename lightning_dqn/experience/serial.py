"""Environments of this process, stepped one after the other.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray


class SerialEnvs(SyncVectorEnv):
    """Gymnasium's ``SyncVectorEnv`` for arrays and explicit resets only, with a step that costs less than half as much.

    That one asks after the kind of autoreset, the space of observations and the space of actions for every member of
    every step, and copies what it has just put together; for small environments this takes longer than stepping them.

    Args:
        env_fns: Each makes a member; all have the same Box of observations and Discrete actions.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        super().__init__(env_fns, autoreset_mode=AutoresetMode.DISABLED)
        space = self.single_observation_space
        assert space.shape is not None
        self._shape, self._dtype = (self.num_envs, *space.shape), space.dtype

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one step in every environment; those whose episode ended must have been reset before.

        Args:
            actions: As the members take them, ``[N]``.

        Returns:
            Observations ``[N, *O]``, rewards ``[N]`` (float64), terminated and truncated ``[N]`` (bool), all of them
            arrays that nobody else holds, and the members' info as Gymnasium puts it together.
        """
        observation = np.empty(self._shape, self._dtype)
        reward = np.empty(self.num_envs)
        terminated, truncated = np.empty(self.num_envs, np.bool_), np.empty(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for i, env in enumerate(self.envs):  # faults.py looks for `i` should a member raise
            seen, reward[i], terminated[i], truncated[i], info = env.step(actions[i])
            self._env_obs[i] = observation[i] = seen
            if info:
                infos = self._add_info(infos, info, i)
        return observation, reward, terminated, truncated, infos
