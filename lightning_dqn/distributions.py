"""What a network says about a return: a small object that knows its means, its backup and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_dqn.functional import bellman_backup, squared_error, take_action

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps a prediction ``[B]`` and its target ``[B]`` to the error of each sample, ``[B]``."""


class ReturnDistribution(ABC):
    """The return of every action (``[B, A]``), or, after :meth:`at`, of one action each (``[B]``)."""

    @property
    @abstractmethod
    def q_values(self) -> Tensor:
        """The expected returns, ``[B, A]``, or ``[B]`` after :meth:`at`."""

    @abstractmethod
    def at(self, action: Tensor) -> ReturnDistribution:
        """The return of one action per row.

        Args:
            action: Action indices, ``[B]``, int64.
        """

    @abstractmethod
    def backup(self, reward: Tensor, discount: Tensor) -> ReturnDistribution:
        """The return one window earlier, ``reward + discount * return``.

        Args:
            reward: Reward of the window, ``[B]``.
            discount: ``gamma ** k``, 0 where the episode terminated, ``[B]``.
        """

    @abstractmethod
    def loss(self, target: ReturnDistribution) -> Tensor:
        """How far this prediction is from ``target``, per sample and unweighted, ``[B]``.

        Args:
            target: What it is regressed on, of the same kind, for one action per row.
        """

    @abstractmethod
    def td_error(self, target: ReturnDistribution) -> Tensor:
        """Size of the surprise, per sample and unweighted, ``[B]``, never negative: the priority of a transition.

        Args:
            target: What it is regressed on, of the same kind, for one action per row.
        """


@dataclass(frozen=True)
class ExpectedReturn(ReturnDistribution):
    """The mean of the return and nothing more.

    Attributes:
        values: Expected returns, ``[B, A]``, or ``[B]`` after :meth:`at`.
        error: The elementwise loss it is trained with.
    """

    values: Tensor
    error: ElementwiseLoss = squared_error

    @property
    def q_values(self) -> Tensor:
        """The values themselves."""
        return self.values

    def at(self, action: Tensor) -> ExpectedReturn:
        """Values of one action per row, ``[B]``."""
        return ExpectedReturn(take_action(self.values, action), self.error)

    def backup(self, reward: Tensor, discount: Tensor) -> ExpectedReturn:
        """``reward + discount * value``, ``[B]``."""
        return ExpectedReturn(bellman_backup(self.values, reward, discount), self.error)

    def loss(self, target: ReturnDistribution) -> Tensor:
        """The elementwise loss between the two means, ``[B]``."""
        return self.error(self.values, target.q_values)

    def td_error(self, target: ReturnDistribution) -> Tensor:
        """The absolute difference of the two means, ``[B]``."""
        return (target.q_values - self.values).abs()
