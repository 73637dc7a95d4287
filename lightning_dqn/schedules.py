"""Numbers that change as training goes on, read off the clock of environment steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Range(NamedTuple):
    """What numbers may be.

    Attributes:
        holds: Whether a number is one of them.
        said: As the end of "it must be".
    """

    holds: Callable[[float], bool]
    said: str


FRACTION = Range(lambda value: 0 <= value <= 1, "in [0, 1]")
POSITIVE = Range(lambda value: 0 < value < math.inf, "above 0 and finite")


class Schedule(ABC):
    """A number that changes as training goes on."""

    @property
    def counts_episodes(self) -> bool:
        """Whether it changes over episodes: not for whoever knows of environment steps alone."""
        return False

    @abstractmethod
    def __call__(self, env_steps: int, episodes: int) -> float:
        """The value at a moment of training.

        Args:
            env_steps: Environment steps taken so far, summed over environments.
            episodes: Episodes finished so far, summed over environments.
        """

    def check(self, field: str) -> None:  # noqa: B027  # most have nothing to refuse
        """Refuses what makes no schedule; for whoever is given one, which alone knows what it is called there.

        Args:
            field: Its name in a configuration, ``collect.explorer.epsilon`` say.

        Raises:
            ValueError: Naming what is wrong, as a part of the field.
        """

    def check_range(self, field: str, allowed: Range) -> None:
        """Refuses numbers that whoever is given the schedule has no use for, where it starts and where it ends.

        Args:
            field: Its name in a configuration.
            allowed: What they may be.

        Raises:
            ValueError: Naming what is out of range, as a part of the field.
        """
        for name in ("start", "end"):
            if hasattr(self, name):
                _in_range(f"{field}.{name}", getattr(self, name), allowed)


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

    def check(self, field: str) -> None:
        """See :class:`Schedule`."""
        _at_least_one(f"{field}.decay_steps", self.decay_steps)

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

    def check(self, field: str) -> None:
        """See :class:`Schedule`."""
        _at_least_one(f"{field}.decay_steps", self.decay_steps)

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

    @property
    def counts_episodes(self) -> bool:
        """See :class:`Schedule`."""
        return True

    def check(self, field: str) -> None:
        """See :class:`Schedule`."""
        if not 0 < self.factor <= 1:
            raise ValueError(f"{field}.factor must be in (0, 1], got {self.factor}")

    def __call__(self, env_steps: int, episodes: int) -> float:
        """See :class:`Schedule`."""
        return max(self.end, self.start * self.factor**episodes)


@dataclass(frozen=True)
class Until(Schedule):
    """Another schedule for a while, then a constant.

    Attributes:
        schedule: What counts before ``steps``.
        steps: How long it counts, in environment steps.
        after: Value from then on.
    """

    schedule: Schedule
    steps: int
    after: float = 0.0

    @property
    def counts_episodes(self) -> bool:
        """See :class:`Schedule`."""
        return self.schedule.counts_episodes

    def check(self, field: str) -> None:
        """See :class:`Schedule`."""
        self.schedule.check(f"{field}.schedule")
        _at_least_one(f"{field}.steps", self.steps)

    def check_range(self, field: str, allowed: Range) -> None:
        """See :class:`Schedule`."""
        self.schedule.check_range(f"{field}.schedule", allowed)
        _in_range(f"{field}.after", self.after, allowed)

    def __call__(self, env_steps: int, episodes: int) -> float:
        """See :class:`Schedule`."""
        return self.schedule(env_steps, episodes) if env_steps < self.steps else self.after


def _in_range(name: str, value: float, allowed: Range) -> None:
    if not allowed.holds(value):
        raise ValueError(f"{name} must be {allowed.said}, got {value}")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1 environment step, got {value}")
