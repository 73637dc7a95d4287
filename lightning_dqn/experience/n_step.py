"""Single steps in, n-step transitions out.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_dqn.transition import Transition


class NStepAccumulator:
    """Turns single steps of ``N`` environments into n-step transitions, each as soon as its window is closed.

    Here, and only here, gamma, n and termination meet. Every step starts exactly one window. A window closes after
    ``n_step`` steps or where its episode ends, whichever comes first, and never reaches into the next episode.

    "Learning to predict by the methods of temporal differences" (Sutton 1988); as used in "Rainbow: Combining
    Improvements in Deep Reinforcement Learning" (Hessel et al. 2018), "Multi-step learning".

    Args:
        num_envs: ``N``.
        n_step: Longest window, at least 1.
        gamma: Discount of one step.
    """

    def __init__(self, num_envs: int, n_step: int, gamma: float) -> None:
        self.n_step = n_step
        self._powers = gamma ** np.arange(n_step + 1)
        self._env = np.arange(num_envs)
        self._slot = np.zeros(num_envs, np.int64)  # where the next window of each environment goes
        self._age = np.zeros((n_step, num_envs), np.int64)  # rewards in each window; 0: the slot is free
        self._reward = np.zeros((n_step, num_envs))
        self._action = np.zeros((n_step, num_envs), np.int64)
        self._observation: NDArray[Any] | None = None
        self._mask: NDArray[np.bool_] | None = None

    def add(
        self,
        observation: NDArray[Any],
        action: NDArray[np.int64],
        reward: NDArray[np.float64],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        next_observation: NDArray[Any],
        valid: NDArray[np.bool_],
        action_mask: NDArray[np.bool_] | None = None,
        next_action_mask: NDArray[np.bool_] | None = None,
    ) -> Transition[NDArray[Any]]:
        """Takes one step of every environment and hands out the transitions it completes.

        Args:
            observation: What was acted on, ``[N, *O]``.
            action: ``[N]``.
            reward: ``[N]``.
            terminated: ``[N]``; the window's discount becomes 0.
            truncated: ``[N]``; the window ends but keeps its discount.
            next_observation: Where the step led, ``[N, *O]``.
            valid: False where no step was taken, ``[N]``; such a column changes nothing.
            action_mask: Which actions were legal at ``observation``, ``[N, A]``; ``None`` if all always are.
            next_action_mask: The same at ``next_observation``.

        Returns:
            Any number of transitions, ``[M, ...]``, older starts first.
        """
        if self.n_step == 1:
            discount = np.where(terminated, 0.0, self._powers[1])
            fields = observation, action, reward, discount, next_observation, action_mask, next_action_mask
            step: Transition[NDArray[Any]] = Transition(*fields)
            return step if valid.all() else step.map(lambda field: field[valid])
        if self._observation is None:
            self._observation = np.empty((self.n_step, *observation.shape), observation.dtype)
        env, slot = self._env[valid], self._slot[valid]
        self._observation[slot, env] = observation[valid]
        if action_mask is not None:
            if self._mask is None:
                self._mask = np.empty((self.n_step, *action_mask.shape), np.bool_)
            self._mask[slot, env] = action_mask[valid]
        self._action[slot, env] = action[valid]
        self._reward[slot, env] = 0.0
        opened = self._age > 0
        opened[slot, env] = True
        opened &= valid
        self._reward += np.where(opened, self._powers[self._age] * reward, 0.0)
        self._age += opened
        closes = opened & ((self._age == self.n_step) | terminated | truncated)
        self._slot[env] = (slot + 1) % self.n_step
        # in the order in which the windows started: the slot to be overwritten next holds the oldest
        order = (self._slot + np.arange(self.n_step)[:, None]) % self.n_step
        row, env = np.nonzero(closes[order, self._env])
        slot = order[row, env]
        discount = np.where(terminated[env], 0.0, self._powers[self._age[slot, env]])
        self._age[slot, env] = 0
        started = self._observation[slot, env], self._action[slot, env]
        closed = Transition(*started, self._reward[slot, env], discount, next_observation[env])
        if self._mask is None or next_action_mask is None:
            return closed
        return closed._replace(action_mask=self._mask[slot, env], next_action_mask=next_action_mask[env])

    def clear(self) -> None:
        """Forgets the open windows, as when an episode is abandoned."""
        self._age[:] = 0

    def forget(self, where: NDArray[np.bool_]) -> None:
        """Forgets the open windows of some environments, whose episodes are abandoned.

        Args:
            where: Of which, ``[N]``.
        """
        self._age[:, where] = 0

    def state_arrays(self) -> dict[str, NDArray[Any]]:
        """The open windows, by name; views, not copies."""
        return {name: array for name, array in self._windows().items() if array is not None}

    def load_state_arrays(self, arrays: dict[str, NDArray[Any]], where: NDArray[np.bool_]) -> None:
        """Takes over what :meth:`state_arrays` gave, or nothing if it was of other windows or another ``N``.

        Args:
            arrays: By name.
            where: Environments whose windows are still open, ``[N]``; those of the others are forgotten.
        """
        self.clear()
        if arrays["age"].shape != self._age.shape:
            return
        for name in self._windows():
            setattr(self, f"_{name}", arrays[name].copy() if name in arrays else None)
        self.forget(~where)

    def _windows(self) -> dict[str, NDArray[Any] | None]:
        return {name: getattr(self, f"_{name}") for name in ("slot", "age", "reward", "action", "observation", "mask")}
