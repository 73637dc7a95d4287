"""What a network says about a return: a small object that knows its means, its backup and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, TypeVar

from torch import Tensor

from lightning_dqn.functional import bellman_backup, squared_error, take_action

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps a prediction ``[B]`` and its target ``[B]`` to the error of each sample, ``[B]``."""


class ReturnDistribution(ABC):
    """The return of every action (``[B, A]``), or, after :meth:`at`, of one action each (``[B]``).

    The returns of this package are frozen dataclasses, and their methods build results with
    :func:`dataclasses.replace`. A subclass of one of them keeps its type, its own loss and its own fields; its fields
    are declared under ``@dataclass(frozen=True)``. A return of another form builds results of its own type itself.
    """

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

    def mixture(self, policy: Tensor, bonus: Tensor) -> ReturnDistribution:
        """The return of an action drawn from a policy, ``sum_a policy_a * (return_a + bonus_a)``.

        Args:
            policy: Probability of each action, ``[B, A]``.
            bonus: What each action adds to its return, finite, ``[B, A]``.

        Returns:
            One return per row.

        Raises:
            NotImplementedError: If this kind of return has no mixture; only some target rules ask for one.
        """
        raise NotImplementedError(f"{type(self).__name__} has no mixture over actions")

    @abstractmethod
    def loss(self, target: ReturnDistribution) -> Tensor:
        """How far this prediction is from ``target``, per sample and unweighted, ``[B]``.

        Args:
            target: What it is regressed on, of the same kind, for one action per row.
        """

    def td_error(self, target: ReturnDistribution, loss: Tensor) -> Tensor:
        """Size of the surprise, per sample and unweighted, ``[B]``, never negative: the priority of a transition.

        For a distribution it is the loss itself ("Rainbow", Hessel et al. 2018, "The Integrated Agent").

        Args:
            target: What it is regressed on, of the same kind, for one action per row.
            loss: What :meth:`loss` gave for this target, ``[B]``.
        """
        return loss.detach()


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

    def at(self, action: Tensor) -> Self:
        """Values of one action per row, ``[B]``."""
        return replace(self, values=take_action(self.values, action))

    def backup(self, reward: Tensor, discount: Tensor) -> Self:
        """``reward + discount * value``, ``[B]``."""
        return replace(self, values=bellman_backup(self.values, reward, discount))

    def mixture(self, policy: Tensor, bonus: Tensor) -> Self:
        """The policy's mean of the values, ``[B]``."""
        return replace(self, values=(policy * (self.values + bonus)).sum(dim=1))

    def loss(self, target: ReturnDistribution) -> Tensor:
        """The elementwise loss between the two means, ``[B]``."""
        return self.error(self.values, target.q_values)

    def td_error(self, target: ReturnDistribution, loss: Tensor) -> Tensor:
        """The absolute difference of the two means, ``[B]``."""
        return (target.q_values - self.values).detach().abs()


Return = TypeVar("Return", bound=ReturnDistribution)


def same_kind(prediction: Return, target: ReturnDistribution) -> Return:
    """The target, once it is known to be a return of the same kind.

    Raises:
        TypeError: If it is of another.
    """
    if not isinstance(target, type(prediction)):
        raise TypeError(f"{type(prediction).__name__} cannot be regressed on {type(target).__name__}")
    return target
