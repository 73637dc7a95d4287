"""Actors and what was asked of them: who is waited for, who is replaced, and how far anybody may fall behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from lightning_dqn.complaints import last_line
from lightning_dqn.ray.messages import Message

_DEATHS = 3  # how often in a row an actor is replaced that has sent nothing
_PATIENCE = 60.0  # seconds without any message after which the user is told
_LOST = (RayActorError, ObjectLostError, WorkerCrashedError)


class Request(NamedTuple):
    """Something that an actor was asked for.

    Attributes:
        answer: Where Ray will put it.
        num_steps: Steps of all its environments.
        received: How many messages had been received when it was asked.
    """

    answer: Any
    num_steps: int
    received: int


@dataclass
class Seat:
    """An actor's place, which the next takes when it dies.

    Attributes:
        index: Which of them.
        actor: Ray's handle of it.
        incarnation: How many have died here.
        deaths: How many of these since the last message.
        version: Of the weights it was given last; ``None``: those it was made with.
        requests: What it was asked for and has not been taken yet, in the order of asking.
    """

    index: int
    actor: Any
    incarnation: int = 0
    deaths: int = 0
    version: int | None = None
    requests: deque[Request] = field(default_factory=deque)


class ActorPool:
    """Asks actors for messages and takes these one at a time, those of an actor in the order of asking.

    An actor is never asked for more than ``in_flight`` messages that were not taken; who is ahead of the learner waits.
    Messages are taken as they come, but one that ``2 * num_actors * in_flight`` others have overtaken is waited for, so
    it is known how old a message may be.

    Args:
        start: Starts an actor, given its index and how many have died in its place.
        num_actors: How many.
        in_flight: Requests that an actor may have at once.
    """

    def __init__(self, start: Callable[[int, int], Any], num_actors: int, in_flight: int) -> None:
        self._start = start
        self._in_flight = in_flight
        self._most_overtaken = 2 * num_actors * in_flight
        self._received = 0
        self.seats = [Seat(index, start(index, 0)) for index in range(num_actors)]

    @property
    def steps_asked(self) -> int:
        """Steps of all environments of an actor that are still to come."""
        return sum(request.num_steps for seat in self.seats for request in seat.requests)

    def free_seat(self) -> Seat | None:
        """Who has least to do and may be asked for more; ``None`` if nobody may."""
        seat = min(self.seats, key=lambda seat: len(seat.requests))
        return seat if len(seat.requests) < self._in_flight else None

    def note(self, seat: Seat, answer: Any, num_steps: int) -> None:
        """Notes what an actor was asked for.

        Args:
            seat: Whom.
            answer: Where Ray will put it.
            num_steps: Steps of all its environments.
        """
        seat.requests.append(Request(answer, num_steps, self._received))

    def receive(self) -> tuple[Seat, Message | None]:
        """Waits for a message.

        Returns:
            Whose it is, and the message; ``None`` if its actor has died. Another is in its place then, which has not
            been asked for anything.

        Raises:
            RuntimeError: If actors die one after the other without ever sending anything.
            Exception: What an actor raised.
        """
        seat = self._wait()
        try:
            message: Message = ray.get(seat.requests[0].answer)
        except RayTaskError as error:
            raise error.cause from error
        except _LOST as loss:
            self._replace(seat, loss)
            return seat, None
        seat.requests.popleft()
        seat.deaths = 0
        self._received += 1
        return seat, message

    def close(self) -> None:
        """Ends all actors, whatever they are doing."""
        for seat in self.seats:
            ray.kill(seat.actor)
        self.seats = []

    def _wait(self) -> Seat:
        asked = sorted((seat for seat in self.seats if seat.requests), key=lambda seat: seat.requests[0].received)
        if self._received - asked[0].requests[0].received >= self._most_overtaken:
            asked = asked[:1]
        seats = {seat.requests[0].answer: seat for seat in asked}
        while True:
            ready, _ = ray.wait(list(seats), num_returns=1, timeout=_PATIENCE)
            if ready:
                return seats[ready[0]]
            rank_zero_warn(
                f"No actor has answered for {_PATIENCE:.0f} seconds. Do environments hang, or has the cluster no room "
                "for the actors (collect.num_actors, collect.cpus_per_actor)?"
            )

    def _replace(self, seat: Seat, loss: Exception) -> None:
        seat.incarnation += 1
        seat.deaths += 1
        reason = f"{type(loss).__name__}: {last_line(loss)}"
        if seat.deaths > _DEATHS:
            raise RuntimeError(
                f"collect: actor {seat.index} died {seat.deaths} times in a row without sending anything: {reason}"
            ) from loss
        rank_zero_warn(f"Actor {seat.index} died and was replaced; what it had sent is kept: {reason}")
        ray.kill(seat.actor)  # it may only be out of reach
        seat.requests.clear()
        seat.version = None
        seat.actor = self._start(seat.index, seat.incarnation)
