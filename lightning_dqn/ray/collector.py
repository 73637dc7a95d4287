"""The collector whose environments are stepped by actors of a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ray
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.experience.datamodule import ExperienceDataModule, data_of
from lightning_dqn.experience.exploration import EpsilonGreedy, Explorer
from lightning_dqn.experience.rewind import no_episodes
from lightning_dqn.ranks import over_ranks
from lightning_dqn.ray.actor import Actor, Blueprint, acting_copy
from lightning_dqn.ray.cluster import connect
from lightning_dqn.ray.messages import Inbox, Message
from lightning_dqn.ray.pool import ActorPool, Seat


class RayCollector(ExperienceCollector):
    """Has actors on a Ray cluster step the environments while the learner learns.

    Takes the place of the :class:`~lightning_dqn.collector.ExperienceCollector`. Each of ``num_actors`` processes steps
    ``data.num_envs`` environments by a copy of the network, makes n-step transitions of the steps and, for prioritised
    replay, computes their first priorities; what it has then comes to the learner in messages. An iteration learns from
    a batch, then receives until ``data.train_frequency`` more environment steps have come in, so the replay ratio is
    that of the configuration; actors step on meanwhile. Only what was received counts as ``env_steps``. Under several
    ranks each has actors of its own.

    An actor has at most ``in_flight`` requests, and waits when all are answered: so it is never far ahead of a learner
    that lags. The weights that a message was made with are, when it comes in, at most ``broadcast_every + (2 *
    num_actors * in_flight + 1) * steps_per_message * data.num_envs / data.train_frequency + 1`` iterations old;
    ``collect/weight_lag`` says how old they were, on average since the row before.

    An actor that dies is replaced, and what it had sent is kept. Collection is not reproducible: which message comes
    first is for the machines to decide. A resumed run goes on with its networks, optimizer, counters and replay; its
    episodes begin anew.

    Ray is used as it is found: connected already, at ``RAY_ADDRESS``, or else started on this machine for this fit.

    "Distributed Prioritized Experience Replay" (Horgan et al. 2018), algorithms 1 and 2.

    Args:
        explorer: Chooses the actions. Every actor has a copy, or its part of an
            :class:`~lightning_dqn.experience.exploration.EpsilonLadder`.
        save_replay: Whether full checkpoints are accompanied by the replay.
        num_actors: Processes that step environments, ``data.num_envs`` each, of each rank.
        steps_per_message: Steps of all environments of an actor that it takes before it sends what it has.
        broadcast_every: Learner iterations after which actors get new weights.
        in_flight: Requests that an actor may have whose answers were not received yet.
        cpus_per_actor: What Ray reserves for an actor; 0: it starts whatever else runs.

    Raises:
        ValueError: If an argument is out of range, two collectors would step the environments, or a message could bring
            more transitions than the buffer holds; names the field.
    """

    def __init__(
        self,
        explorer: Explorer = EpsilonGreedy(),
        save_replay: bool = True,
        num_actors: int = 2,
        steps_per_message: int = 8,
        broadcast_every: int = 8,
        in_flight: int = 2,
        cpus_per_actor: float = 0.0,
    ) -> None:
        super().__init__(explorer, save_replay)
        counts = {
            "num_actors": num_actors,
            "steps_per_message": steps_per_message,
            "broadcast_every": broadcast_every,
            "in_flight": in_flight,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"collect.{name} must be at least 1, got {count}")
        if not 0 <= cpus_per_actor < math.inf:
            raise ValueError(f"collect.cpus_per_actor must be at least 0 and finite, got {cpus_per_actor}")
        self.num_actors = num_actors
        self.steps_per_message = steps_per_message
        self.broadcast_every = broadcast_every
        self.in_flight = in_flight
        self.cpus_per_actor = cpus_per_actor
        self._pool: ActorPool | None = None
        self._disconnect: Callable[[], None] | None = None

    @property
    def state_key(self) -> str:
        """That of the collector whose place it takes: either goes on where the other has stopped."""
        return ExperienceCollector.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Also refuses messages that the buffer has no room for; see :meth:`ExperienceCollector.setup`."""
        super().setup(trainer, pl_module, stage)
        data = data_of(trainer)
        if data is None:
            return
        most = (self.steps_per_message + data.n_step) * data.num_envs
        if most > data.buffer.capacity:
            raise ValueError(
                f"collect.steps_per_message: a message may bring {most} transitions at once, (steps_per_message + "
                f"data.n_step) * data.num_envs, more than data.buffer.capacity ({data.buffer.capacity})"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the actors and fills the buffer with random experience, as far as it is not there already."""
        super().on_train_start(trainer, pl_module)
        data = data_of(trainer)
        if data is not None:
            self._ask(data, pl_module)

    def _open(self, data: ExperienceDataModule, keep_buffer: bool) -> None:
        if not keep_buffer:
            data.open_buffer()
        self._disconnect = connect()

    def _begin(self, trainer: Trainer, pl_module: LightningModule, data: ExperienceDataModule) -> None:
        if self._state.is_loaded:
            counters = self._state.put_back_replay(data, self.rng)
            if counters:
                self.load_state_dict(counters)
        self._pause = None
        first = trainer.global_rank * self.num_actors
        blueprint = Blueprint(
            data.without_experience(),
            acting_copy(pl_module),
            self.explorer,
            self.num_actors * data.world_size,
            (data.seed, data.env_steps),
            data.buffer.has_priorities,
        )
        plan = ray.put(blueprint)
        kind = ray.remote(Actor).options(num_cpus=self.cpus_per_actor, scheduling_strategy="SPREAD")
        self._inboxes = [self._make_inbox(data, index) for index in range(self.num_actors)]
        self._pool = ActorPool(
            lambda index, incarnation: kind.remote(plan, first + index, incarnation), self.num_actors, self.in_flight
        )
        self._weights: tuple[int, Any] | None = None
        self._lag, self._messages = 0, 0

    def _make_inbox(self, data: ExperienceDataModule, index: int) -> Inbox:
        return Inbox(index * data.num_envs, self.num_actors * data.num_envs)

    def _episodes(self, data: ExperienceDataModule) -> dict[str, NDArray[Any]]:
        return no_episodes(data.num_envs)

    def _warm_up(self, data: ExperienceDataModule, until: int) -> None:
        assert self._pool is not None
        each = data.num_envs * data.world_size
        while data.env_steps < until:
            missing = math.ceil((until - data.env_steps) / each) - self._pool.steps_asked
            while missing > 0 and (seat := self._pool.free_seat()) is not None:
                num_steps = min(missing, self.steps_per_message)
                self._pool.note(seat, seat.actor.act_at_random.remote(num_steps), num_steps)
                missing -= num_steps
            self._receive(data)

    def _act(self, trainer: Trainer, pl_module: LightningModule, data: ExperienceDataModule) -> None:
        while data.env_steps < self._due:
            self._ask(data, pl_module)
            self._receive(data)
        self._ask(data, pl_module)

    def _ask(self, data: ExperienceDataModule, pl_module: LightningModule) -> None:
        """Gives actors to do what they may have to do."""
        assert self._pool is not None
        while (seat := self._pool.free_seat()) is not None:
            self._send_weights(seat, pl_module)
            answer = seat.actor.explore.remote(self.steps_per_message, data.env_steps, self.episodes)
            self._pool.note(seat, answer, self.steps_per_message)

    def _send_weights(self, seat: Seat, pl_module: LightningModule) -> None:
        if self._weights is None or self.iterations - self._weights[0] >= self.broadcast_every:
            state = {name: tensor.cpu() for name, tensor in pl_module.state_dict().items()}
            self._weights = self.iterations, ray.put(state)
        version, weights = self._weights
        if seat.version != version:
            seat.actor.load.remote(version, weights)
            seat.version = version

    def _receive(self, data: ExperienceDataModule) -> None:
        assert self._pool is not None
        seat, message = self._pool.receive()
        if message is None:  # whoever is there now counts observations from 0 again
            self._inboxes[seat.index] = self._make_inbox(data, seat.index)
        else:
            self._keep(data, self._inboxes[seat.index], message)

    def _keep(self, data: ExperienceDataModule, inbox: Inbox, message: Message) -> None:
        inbox.store(message, data.buffer)
        data.env_steps += message.env_steps * data.world_size
        self.episodes += len(message.episodes)
        self._recent.extend(message.episodes)
        self._lag += self.iterations - message.version
        self._messages += 1
        for warning in message.warnings:
            rank_zero_warn(warning)

    def _stop(self) -> None:
        super()._stop()
        if self._pool is not None:
            self._pool.close()
        if self._disconnect is not None:
            self._disconnect()
        self._pool = self._disconnect = None

    def _log(
        self, data: ExperienceDataModule, pl_module: LightningModule, now: float, logger: bool | None = None
    ) -> None:
        super()._log(data, pl_module, now, logger)
        lag, messages = over_ranks(pl_module.trainer, [self._lag, self._messages], "sum")
        if messages:
            pl_module.log("collect/weight_lag", torch.tensor(lag / messages, dtype=torch.float64), logger=logger)
        if logger is None:
            self._lag = self._messages = 0
