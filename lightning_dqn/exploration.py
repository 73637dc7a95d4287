"""Which action to take: explorers, and the schedules of their randomness.

Shapes: ``N`` environments, ``A`` actions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class Schedule(ABC):
    """A number that changes as training goes on."""

    @abstractmethod
    def __call__(self, env_steps: int, episodes: int) -> float:
        """The value at a moment of training.

        Args:
            env_steps: Environment steps taken so far, summed over environments.
            episodes: Episodes finished so far, summed over environments.
        """


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Goes from ``start`` to ``end`` in a straight line and stays there.

    Attributes:
        start: Value at the first step.
        end: Value from ``decay_steps`` on.
        decay_steps: Length of the way, in environment steps.
    """

    start: float = 1.0
    end: float = 0.05
    decay_steps: int = 10_000

    def __post_init__(self) -> None:
        _at_least_one("decay_steps", self.decay_steps)

    def __call__(self, env_steps: int, episodes: int) -> float:
        """See :class:`Schedule`."""
        return self.start + (self.end - self.start) * min(env_steps / self.decay_steps, 1.0)


@dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """Comes closer to ``end`` by one factor a step: ``end + (start - end) * exp(-env_steps / decay_steps)``.

    Attributes:
        start: Value at the first step.
        end: Value it tends to.
        decay_steps: Environment steps in which the distance to ``end`` shrinks by a factor of ``e``.
    """

    start: float = 1.0
    end: float = 0.05
    decay_steps: int = 5_000

    def __post_init__(self) -> None:
        _at_least_one("decay_steps", self.decay_steps)

    def __call__(self, env_steps: int, episodes: int) -> float:
        """See :class:`Schedule`."""
        return self.end + (self.start - self.end) * math.exp(-env_steps / self.decay_steps)


@dataclass(frozen=True)
class EpisodeDecay(Schedule):
    """Multiplied by ``factor`` after every episode, down to ``end``: the schedule of many textbooks.

    Attributes:
        start: Value in the first episode.
        end: Least value.
        factor: In (0, 1].
    """

    start: float = 1.0
    end: float = 0.01
    factor: float = 0.995

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"collect.explorer: factor must be in (0, 1], got {self.factor}")

    def __call__(self, env_steps: int, episodes: int) -> float:
        """See :class:`Schedule`."""
        return max(self.end, self.start * self.factor**episodes)


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
            q_values: ``[N, A]``.
            env_steps: Environment steps taken so far, summed over environments.
            episodes: Episodes finished so far, summed over environments.
            rng: The only source of randomness.

        Returns:
            Action indices, ``[N]``.
        """


@dataclass(frozen=True)
class EpsilonGreedy(Explorer):
    """A uniformly random action with probability epsilon, drawn *for each environment*, else the best one.

    Attributes:
        epsilon: Its schedule, within [0, 1].

    Raises:
        ValueError: If the schedule starts or ends outside [0, 1].
    """

    epsilon: Schedule = field(default_factory=LinearSchedule)

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self.epsilon, name, 0.0)
            if not 0 <= value <= 1:
                raise ValueError(f"collect.explorer.epsilon.{name} must be in [0, 1], got {value}")

    def schedules(self, env_steps: int, episodes: int) -> dict[str, float]:
        """The present epsilon."""
        return {"epsilon": self.epsilon(env_steps, episodes)}

    def __call__(
        self, q_values: NDArray[np.float32], env_steps: int, episodes: int, rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """See :class:`Explorer`."""
        num_envs, num_actions = q_values.shape
        explores = rng.random(num_envs) < self.epsilon(env_steps, episodes)
        return np.where(explores, rng.integers(num_actions, size=num_envs), q_values.argmax(axis=1))


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
        for name in ("start", "end"):
            value = getattr(self.temperature, name, 1.0)
            if value <= 0:
                raise ValueError(f"collect.explorer.temperature.{name} must be above 0, got {value}")

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


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"collect.explorer: {name} must be at least 1 environment step, got {value}")
