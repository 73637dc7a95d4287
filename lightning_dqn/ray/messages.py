"""What an actor sends to the learner, and how both ends keep account of observations.

Every observation travels once, in the message of the step that showed it. Transitions name observations by numbers, in
the order in which the actor has seen them, so one may name what an earlier message brought.

Shapes: ``N`` environments of an actor, ``O`` the observation shape, ``T`` observations and ``M`` transitions of a
message.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.experience.replay import ReplayBuffer
from lightning_dqn.transition import Transition


class Message(NamedTuple):
    """What some steps of an actor brought.

    Attributes:
        observation: What was seen, in the order of time, and of environments where that is the same, ``[T, *O]``.
        env: Of which environment each is, ``[T]``.
        first: The number of the first of them.
        oldest: The smallest number that later messages will name.
        transition: Fields ``[M, ...]``, with numbers in place of observations; ``None`` if no window was closed.
        td_error: How surprising each transition is to the network that acted, ``[M]``; ``None`` if nobody asks.
        episodes: Undiscounted return and length of every episode that ended.
        env_steps: Environment steps taken.
        version: Of the weights it was made with: the learner's iteration at which they were sent out.
        warnings: What the user should be told.
    """

    observation: NDArray[Any]
    env: NDArray[np.int64]
    first: int
    oldest: int
    transition: Transition[NDArray[Any]] | None
    td_error: Tensor | None
    episodes: list[tuple[float, int]]
    env_steps: int
    version: int
    warnings: list[str]


class Outbox(ReplayBuffer):
    """The actor's end: stands where a collector expects a buffer, and keeps things until they are sent.

    Args:
        num_envs: ``N``.
    """

    def __init__(self, num_envs: int) -> None:
        super().__init__(1)
        self._envs = np.arange(num_envs)
        self._numbers = np.zeros(num_envs, np.int64)  # of what each environment shows now
        self._next = 0
        self._seen: list[NDArray[Any]] = []  # since the last message
        self._seen_in: list[NDArray[np.int64]] = []
        self._added: list[Transition[NDArray[Any]]] = []
        self._kept: NDArray[Any] | None = None  # what was sent and may yet be named
        self._kept_first = 0

    def remember(self, observation: NDArray[Any], where: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Numbers what is seen; see :meth:`ReplayBuffer.remember`.

        Returns:
            The number of each observation, ``[N]``, int64.
        """
        envs = self._envs if where is None else np.flatnonzero(where)
        self._seen.append(observation[envs])
        self._seen_in.append(envs)
        self._numbers = self._numbers.copy()  # those of before have been handed out
        self._numbers[envs] = np.arange(self._next, self._next + len(envs))
        self._next += len(envs)
        return self._numbers

    def add(self, transition: Transition[NDArray[Any]]) -> None:
        """Keeps transitions for the next message."""
        if len(transition.action):
            self._added.append(transition)

    def take(self) -> tuple[NDArray[Any], NDArray[np.int64], int, Transition[NDArray[Any]] | None]:
        """What is to be sent: observations, environments, the first number, transitions; see :class:`Message`."""
        seen, seen_in = np.concatenate(self._seen), np.concatenate(self._seen_in)
        fields = zip(*self._added, strict=True)
        joined: list[Any] = [None if field[0] is None else np.concatenate(field) for field in fields]
        self._seen, self._seen_in, self._added = [], [], []
        self._kept = seen if self._kept is None else np.concatenate((self._kept, seen))
        return seen, seen_in, self._next - len(seen), Transition(*joined) if joined else None

    def observations_of(self, transition: Transition[NDArray[Any]]) -> Transition[Tensor]:
        """Transitions that were taken, as a network wants them: observations for their numbers.

        Args:
            transition: Fields ``[M, ...]``.
        """
        assert self._kept is not None, "nothing was taken"
        before, after = (self._kept[numbers - self._kept_first] for numbers in (transition[0], transition[4]))
        whole = transition._replace(
            observation=before,
            reward=transition.reward.astype(np.float32),
            discount=transition.discount.astype(np.float32),
            next_observation=after,
        )
        return whole.map(torch.from_numpy)

    def forget(self, oldest: int) -> None:
        """Lets go of observations that nobody will name again.

        Args:
            oldest: The smallest number that somebody will.
        """
        assert self._kept is not None, "nothing was taken"
        self._kept = self._kept[oldest - self._kept_first :].copy()
        self._kept_first = oldest


class Inbox:
    """The learner's end, for one actor: knows under which reference the buffer keeps each of its observations.

    Args:
        first_env: The actor's first environment among those of all actors.
        num_envs: Those of all actors.
    """

    def __init__(self, first_env: int, num_envs: int) -> None:
        self._first_env = first_env
        self._num_envs = num_envs
        self._references: NDArray[Any] | None = None

    def store(self, message: Message, buffer: ReplayBuffer) -> None:
        """Puts the transitions into the buffer, with their first priorities where these are finite.

        Args:
            message: The next one of this actor.
            buffer: Where to.
        """
        transition = self.read(message, buffer)
        if transition is None:
            return
        first = buffer.count
        buffer.add(transition)
        if message.td_error is not None and (finite := message.td_error.isfinite()).any():
            buffer.update_priorities(torch.arange(first, buffer.count)[finite], message.td_error[finite])

    def read(self, message: Message, buffer: ReplayBuffer) -> Transition[NDArray[Any]] | None:
        """Shows the buffer what was observed.

        Args:
            message: The next one of this actor.
            buffer: What transitions will be added to.

        Returns:
            The transitions, with the buffer's references; ``None`` if there are none.
        """
        envs = message.env + self._first_env
        references = buffer.remember_history(message.observation, envs, self._num_envs)
        if self._references is not None:
            references = np.concatenate((self._references, references))
        first = message.first + len(message.observation) - len(references)
        self._references = references[message.oldest - first :].copy()  # no view: it would keep the message
        if message.transition is None:
            return None
        before, after = (references[numbers - first] for numbers in (message.transition[0], message.transition[4]))
        return message.transition._replace(observation=before, next_observation=after)
