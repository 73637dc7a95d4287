"""The collector whose environments are stepped by actors of a Ray cluster."""

from __future__ import annotations

from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.experience.exploration import EpsilonGreedy, Explorer


class RayCollector(ExperienceCollector):
    """Lets actors on a Ray cluster act and store, while the learner learns.

    Args:
        explorer: Chooses the actions; every actor has a copy, or its share.
        save_replay: Whether full checkpoints are accompanied by the replay.
        num_actors: Processes that step environments, ``data.num_envs`` each, of each rank.
        steps_per_message: Steps of all environments of an actor that it takes before it sends what it has.
        broadcast_every: Learner iterations after which actors get new weights, at the earliest.
        in_flight: Requests that an actor may have that were not taken from it yet.
        cpus_per_actor: What Ray reserves for an actor; 0: an actor starts whatever else runs.

    Raises:
        ValueError: If an argument is out of range; names the field.
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
        self.num_actors = num_actors
        self.steps_per_message = steps_per_message
        self.broadcast_every = broadcast_every
        self.in_flight = in_flight
        self.cpus_per_actor = cpus_per_actor
