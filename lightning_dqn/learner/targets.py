"""What the online network is regressed on: the rules that bootstrap from the next state."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_dqn.functional import legal_values, soft_policy, take_action
from lightning_dqn.learner.distributions import ReturnDistribution
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
        greedy = legal_values(following.q_values, transition.next_action_mask).argmax(dim=1)
        return following.at(greedy).backup(transition.reward, transition.discount)


class DoubleQLearning(TargetRule):
    """The online network chooses the next action, the target network values it, which curbs over-estimation.

    "Deep Reinforcement Learning with Double Q-learning" (van Hasselt, Guez and Silver 2016), equation 4.
    """

    def __call__(self, transition: Transition[Tensor], online: QFunction, target: QFunction) -> ReturnDistribution:
        """See :class:`TargetRule`."""
        choices = online(transition.next_observation).q_values
        greedy = legal_values(choices, transition.next_action_mask).argmax(dim=1)
        return target(transition.next_observation).at(greedy).backup(transition.reward, transition.discount)


@dataclass(frozen=True)
class MunchausenQLearning(TargetRule):
    """Soft Q-learning with the agent's own log-policy added to the reward.

    The target is ``r + alpha * [tau log pi(a|s)]_l0^0 + discount * sum_a' pi(a'|s') (q(s', a') - tau log pi(a'|s'))``,
    with ``pi`` the softmax of the *target* network's values over ``tau``. With an
    :class:`~lightning_dqn.learner.quantile.ImplicitQuantileHead` this is M-IQN.

    "Munchausen Reinforcement Learning" (Vieillard, Pietquin and Geist 2020), equation 2 and appendix B.1. The paper's
    returns are of one step; with n-step returns the log-policy is that of the first action alone.

    Attributes:
        temperature: ``tau`` of the softmax, in units of return, above 0.
        alpha: Share of the log-policy that is added to the reward, in [0, 1]; 0 is soft Q-learning.
        log_policy_min: ``l0``, the least scaled log-policy that is added, at most 0.

    Raises:
        ValueError: If one of them is out of range; names the field.
    """

    temperature: float = 0.03
    alpha: float = 0.9
    log_policy_min: float = -1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < torch.inf:
            raise ValueError(f"model.target_rule.temperature must be above 0 and finite, got {self.temperature}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"model.target_rule.alpha must be in [0, 1], got {self.alpha}")
        if not self.log_policy_min <= 0:
            raise ValueError(f"model.target_rule.log_policy_min must be at most 0, got {self.log_policy_min}")

    def __call__(self, transition: Transition[Tensor], online: QFunction, target: QFunction) -> ReturnDistribution:
        """See :class:`TargetRule`."""
        present = legal_values(target(transition.observation).q_values, transition.action_mask)
        _, log_policy = soft_policy(present, self.temperature)
        chosen = take_action(log_policy, transition.action).clamp(self.log_policy_min, 0.0)

        following = target(transition.next_observation)
        legal = legal_values(following.q_values, transition.next_action_mask)
        policy, log_policy = soft_policy(legal, self.temperature)
        # where the policy is 0 its logarithm may be minus infinity, and adds nothing
        entropy_bonus = (-log_policy).masked_fill(policy == 0, 0.0)
        value = following.mixture(policy, entropy_bonus)
        return value.backup(transition.reward + self.alpha * chosen, transition.discount)


def check_that_they_fit(head: nn.Module, num_features: int, num_actions: int, rule: TargetRule) -> None:
    """Tries a head and a target rule on two made-up transitions, before anything is trained.

    Args:
        head: Maps features to the returns of all actions.
        num_features: Size of the features.
        num_actions: Number of actions.
        rule: What the head is to be regressed on.

    Raises:
        ValueError: If the rule asks of the returns what they cannot do, a method of the returns loses their class, or
            the loss is not one number per transition.
    """
    head = copy.deepcopy(head)  # layers such as batch norm remember what they have seen
    features, ones = torch.zeros(2, num_features), torch.ones(2)
    transition = Transition(features, torch.zeros(2, dtype=torch.int64), ones, ones, features)
    who = f"model.head ({type(head).__name__}) and model.target_rule ({type(rule).__name__}) cannot go together"
    # the seed of a run decides its course, whatever was tried before
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        returns: ReturnDistribution = head(features)
        if not hasattr(returns, "q_values"):
            raise ValueError(
                f"model.head: {type(head).__name__}.forward gives a {type(returns).__name__}, not a ReturnDistribution"
                "; of means [B, A] it is ExpectedReturn(means)"
            )
        if returns.q_values.shape != (2, num_actions):
            raise ValueError(
                f"model.head: q_values are {tuple(returns.q_values.shape)} for 2 states, {num_actions} actions"
            )
        with _as_one_line(who):
            results = _results(returns, transition)
        for method, result in results.items():
            _check_kind(returns, method, result)
        with _as_one_line(who):
            loss = results["at"].loss(rule(transition, head, head))
    if loss.shape != (2,):
        raise ValueError(f"{who}: the loss of 2 transitions has shape {tuple(loss.shape)}, not (2,)")


_MISFITS = AttributeError, IndexError, RuntimeError, TypeError, ValueError


@contextmanager
def _as_one_line(who: str) -> Iterator[None]:
    try:
        yield
    except _MISFITS as error:
        raise ValueError(f"{who}: {error}") from error


def _results(returns: ReturnDistribution, transition: Transition[Tensor]) -> dict[str, ReturnDistribution]:
    """Return the result of every method that builds a return, by the name of the method."""
    chosen = returns.at(transition.action)
    results = {"at": chosen, "backup": chosen.backup(transition.reward, transition.discount)}
    # not every return has a mixture, and a rule that needs one reports what is wrong with it
    with suppress(*_MISFITS):
        policy = torch.softmax(returns.q_values, dim=1)
        results["mixture"] = returns.mixture(policy, torch.zeros_like(policy))
    return results


def _check_kind(returns: ReturnDistribution, method: str, result: ReturnDistribution) -> None:
    """Refuse a result of a parent class, because the loss of the parent would be trained without a word."""
    own, got = type(returns), type(result)
    if got is not own and issubclass(own, got):
        raise ValueError(
            f"model.head: {own.__name__}.{method} must return its own type (got its parent {got.__name__}, whose "
            "methods would replace its own). Build the result with dataclasses.replace(self, ...)."
        )
