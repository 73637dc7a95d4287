"""What the online network is regressed on: the rules that bootstrap from the next state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from lightning_dqn.distributions import ReturnDistribution
from lightning_dqn.transition import Transition

QFunction = Callable[[Tensor], ReturnDistribution]
"""Maps observations ``[B, *observation_shape]`` to the returns of all actions."""


class TargetRule(ABC):
    """Computes the target returns of a minibatch; called without gradients."""

    @abstractmethod
    def __call__(self, transition: Transition[Tensor], online: QFunction, target: QFunction) -> ReturnDistribution:
        """The target of each transition's action.

        Args:
            transition: Fields ``[B, ...]``.
            online: The network being trained.
            target: Its slowly moving copy.

        Returns:
            One return per row, ``[B]``.
        """


class QLearning(TargetRule):
    """The target network both chooses and values the next action: ``max_a Q_target(s', a)``.

    "Human-level control through deep reinforcement learning" (Mnih et al. 2015), algorithm 1.
    """

    def __call__(self, transition: Transition[Tensor], online: QFunction, target: QFunction) -> ReturnDistribution:
        """See :class:`TargetRule`."""
        following = target(transition.next_observation)
        greedy = following.q_values.argmax(dim=1)
        return following.at(greedy).backup(transition.reward, transition.discount)


class DoubleQLearning(TargetRule):
    """The online network chooses the next action, the target network values it, which curbs over-estimation.

    "Deep Reinforcement Learning with Double Q-learning" (van Hasselt, Guez and Silver 2016), equation 4.
    """

    def __call__(self, transition: Transition[Tensor], online: QFunction, target: QFunction) -> ReturnDistribution:
        """See :class:`TargetRule`."""
        greedy = online(transition.next_observation).q_values.argmax(dim=1)
        return target(transition.next_observation).at(greedy).backup(transition.reward, transition.discount)
