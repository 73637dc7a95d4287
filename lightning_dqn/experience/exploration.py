"""Which action to take.

Shapes: ``N`` environments, ``A`` actions. An action that is not legal comes with a Q-value of minus infinity.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lightning_dqn.schedules import FRACTION, POSITIVE, LinearSchedule, Schedule


def uniform_actions(legal: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws an action for every environment, each legal one with the same probability.

    Args:
        legal: Which actions may be taken, ``[N, A]``, at least one in each row.
        rng: The only source of randomness.

    Returns:
        Action indices, ``[N]``.
    """
    if np.count_nonzero(legal) == legal.size:  # a third of the time of .all(), which goes through Python
        if len(legal) == 1:  # the same number without the way numpy takes for shapes, which is four times as long
            return np.array([rng.integers(legal.shape[1])])
        return rng.integers(legal.shape[1], size=len(legal))
    # the largest of as many independent numbers is each of them equally often
    return np.asarray(np.where(legal, rng.random(legal.shape), -1.0).argmax(axis=1), np.int64)


def epsilon_greedy_actions(
    q_values: NDArray[np.float32], epsilon: float | NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draws, for each environment by itself, a random legal action with probability epsilon, else takes the best.

    Args:
        q_values: ``[N, A]``; minus infinity where an action is not legal.
        epsilon: Of all environments, or of each, ``[N]``.
        rng: The only source of randomness.

    Returns:
        Action indices, ``[N]``.
    """
    explores = rng.random(len(q_values)) < epsilon
    return np.where(explores, uniform_actions(q_values != -np.inf, rng), q_values.argmax(axis=1))


class Explorer(ABC):
    """Chooses actions from Q-values."""

    @abstractmethod
    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The values its choice depends on at this moment, by the name they are logged under (``collect/<name>``)."""

    @abstractmethod
    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Chooses an action for every environment.

        Args:
            q_values: ``[N, A]``; minus infinity where an action is not legal.
            env_steps: Environment steps taken so far, summed over environments.
            episodes: Episodes finished so far, summed over environments.
            rng: The only source of randomness.

        Returns:
            Action indices, ``[N]``.
        """

    def share(self, index: int, count: int) -> Self:
        """That of one of several processes which act side by side, each for as many environments.

        Args:
            index: Which of them, from 0 on.
            count: How many there are.

        Returns:
            A copy; most explorers treat all environments alike.
        """
        return copy.deepcopy(self)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from one choice to the next, in plain values; most explorers nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: B027  # most have nothing to do
        """Takes over what :meth:`state_dict` gave; an empty one is a fresh start."""


@dataclass(frozen=True)
class EpsilonGreedy(Explorer):
    """A uniformly random legal action with probability epsilon, drawn *for each environment*, else the best one.

    Attributes:
        epsilon: Its schedule, within [0, 1].

    Raises:
        ValueError: If the schedule starts or ends outside [0, 1].
    """

    epsilon: Schedule = field(default_factory=LinearSchedule)

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The present epsilon."""
        return {"epsilon": self.epsilon(env_steps, episodes)}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        return epsilon_greedy_actions(q_values, self.epsilon(env_steps, episodes), rng)


class EZGreedy(Explorer):
    """Epsilon-greedy that sticks to its random action for a random time, so that it gets somewhere.

    Each environment, unless it is still sticking, draws with probability epsilon a random legal action and a duration
    ``n`` with ``P(n)`` proportional to ``n ** -exponent``; else it acts greedily. Most durations are 1, a few are long,
    where a walk of single random steps would rarely climb a hill. An action that becomes illegal is given up.

    "Temporally-Extended Epsilon-Greedy Exploration" (Dabney, Ostrovski and Barreto 2021), algorithm 1.

    Args:
        epsilon: Probability of beginning to explore; its schedule, within [0, 1].
        exponent: Of the durations, above 1; the paper has 2. The larger, the shorter.

    Raises:
        ValueError: If the schedule starts or ends outside [0, 1], or the exponent is not above 1.
    """

    def __init__(self, epsilon: Schedule = LinearSchedule(), exponent: float = 2.0) -> None:
        _check_epsilon(epsilon)
        if not exponent > 1:
            raise ValueError(f"collect.explorer.exponent must be above 1, got {exponent}")
        self.epsilon = epsilon
        self.exponent = exponent
        self._action = self._remaining = np.zeros(0, np.int64)

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The present epsilon."""
        return {"epsilon": self.epsilon(env_steps, episodes)}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        num_envs, legal = len(q_values), q_values != -np.inf
        if len(self._remaining) != num_envs:
            self._action, self._remaining = np.zeros((2, num_envs), np.int64)
        self._remaining[~legal[np.arange(num_envs), self._action]] = 0
        begins = (self._remaining == 0) & (rng.random(num_envs) < self.epsilon(env_steps, episodes))
        self._action = np.where(begins, uniform_actions(legal, rng), self._action)
        self._remaining = np.where(begins, rng.zipf(self.exponent, num_envs), self._remaining)
        explores = self._remaining > 0
        self._remaining = self._remaining - explores
        return np.where(explores, self._action, q_values.argmax(axis=1))

    def state_dict(self) -> dict[str, Any]:
        """The action of each environment, and for how long it sticks to it."""
        return {"action": self._action.tolist(), "remaining": self._remaining.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        self._action = np.array(state_dict.get("action", []), np.int64)
        self._remaining = np.array(state_dict.get("remaining", []), np.int64)


class EpsilonLadder(Explorer):
    """Epsilon-greedy with an epsilon of its own for each environment, which never changes.

    Environment ``i`` of ``N`` has ``epsilon ** (1 + alpha * i / (N - 1))``: the first explores most, the last hardly
    ever, and replay holds experience of all kinds at all times. Over several actors it is one ladder, of all their
    environments.

    "Distributed Prioritized Experience Replay" (Horgan et al. 2018), section 4.1, "Ape-X DQN".

    Args:
        epsilon: Of the first environment, in (0, 1).
        alpha: How steep the ladder is, at least 0; 0 gives the same epsilon to all.

    Raises:
        ValueError: If an argument is out of range; names the field.
    """

    def __init__(self, epsilon: float = 0.4, alpha: float = 7.0) -> None:
        if not 0 < epsilon < 1:
            raise ValueError(f"collect.explorer.epsilon must be in (0, 1), got {epsilon}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"collect.explorer.alpha must be at least 0 and finite, got {alpha}")
        self.epsilon = epsilon
        self.alpha = alpha
        self._index, self._count = 0, 1

    def share(self, index: int, count: int) -> Self:
        """A part of the ladder; see :meth:`Explorer.share`."""
        shared = super().share(index, count)
        shared._index, shared._count = index, count
        return shared

    def epsilons(self, num_envs: int) -> NDArray[np.float64]:
        """Those of the environments here, ``[N]``.

        Args:
            num_envs: ``N``, the same in every process that has a share.
        """
        rung = np.arange(num_envs) + self._index * num_envs
        return np.asarray(self.epsilon ** (1 + self.alpha * rung / max(1, self._count * num_envs - 1)))

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The largest epsilon."""
        return {"epsilon": self.epsilon}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        return epsilon_greedy_actions(q_values, self.epsilons(len(q_values)), rng)


@dataclass(frozen=True)
class Greedy(Explorer):
    """Always the best action; for networks that explore by themselves, such as noisy ones."""

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """An epsilon of 0."""
        return {"epsilon": 0.0}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        return np.asarray(q_values.argmax(axis=1), np.int64)


@dataclass(frozen=True)
class Boltzmann(Explorer):
    """Actions with probabilities ``softmax(q_values / temperature)`` (Sutton and Barto 2018, section 2.8).

    Attributes:
        temperature: Its schedule, above 0.

    Raises:
        ValueError: If the schedule starts or ends at or below 0.
    """

    temperature: Schedule = field(default_factory=lambda: LinearSchedule(1.0, 0.1))

    def __post_init__(self) -> None:
        self.temperature.check("collect.explorer.temperature")
        self.temperature.check_range("collect.explorer.temperature", POSITIVE)

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The present temperature."""
        return {"temperature": self.temperature(env_steps, episodes)}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        # the largest of values with Gumbel noise is a draw from their softmax, without computing probabilities
        noise = rng.gumbel(size=q_values.shape)
        return np.asarray((q_values / self.temperature(env_steps, episodes) + noise).argmax(axis=1), np.int64)


def _check_epsilon(epsilon: Schedule) -> None:
    epsilon.check("collect.explorer.epsilon")
    epsilon.check_range("collect.explorer.epsilon", FRACTION)
