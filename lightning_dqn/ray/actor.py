"""What acts in environments of its own and sends what happens: a collector without a learner beside it."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.experience.datamodule import ExperienceDataModule, RandomStream
from lightning_dqn.experience.exploration import Explorer
from lightning_dqn.experience.rewind import EpisodeRecord
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.ray.messages import Message, Outbox
from lightning_dqn.transition import Transition


class Blueprint(NamedTuple):
    """What all actors of a run are made from.

    Attributes:
        data: How environments are made; without experience.
        module: The networks, on the CPU.
        explorer: That of the whole run, of which each actor has a share.
        num_actors: Actors of all ranks.
        entropy: What distinguishes the random numbers of this run, and of this stretch of it.
        has_priorities: Whether anybody asks how surprising transitions are.
    """

    data: ExperienceDataModule
    module: LightningModule
    explorer: Explorer
    num_actors: int
    entropy: tuple[int, ...]
    has_priorities: bool


def acting_copy(module: LightningModule) -> LightningModule:
    """The networks of a module, on the CPU.

    How they are optimised stays with the learner: of a module that the command line made, it cannot be copied.

    Args:
        module: The learner's.
    """
    twin = copy.copy(module)
    twin.__dict__.update(dict.fromkeys({"optimizer_factory", "lr_scheduler_factory"} & twin.__dict__.keys()))
    return copy.deepcopy(twin).cpu()


class Actor(ExperienceCollector):
    """Steps vector environments when it is asked to, and answers with what they brought.

    It is the in-process collector, with its n-step windows, masks and failures of environments, over a buffer that
    keeps things only until they are sent. Its random numbers are its own: seeded by the run's, its index and its
    incarnation.

    Args:
        blueprint: What it is made from.
        index: Which actor of all ranks it is.
        incarnation: How many have died in its place.
    """

    def __init__(self, blueprint: Blueprint, index: int, incarnation: int) -> None:
        blueprint = copy.deepcopy(blueprint)  # arrays in Ray's store cannot be written to
        super().__init__(blueprint.explorer.share(index, blueprint.num_actors))
        torch.set_num_threads(1)  # the processor is shared by all actors and the learner
        self._data, self._module = blueprint.data, blueprint.module.train()
        self._has_priorities = blueprint.has_priorities
        self._recent = deque()
        self._warnings: list[str] = []
        self._version = 0
        entropy = [*blueprint.entropy, index, incarnation]
        self._data.episode_rng, self.rng = (
            np.random.default_rng(np.random.SeedSequence([*entropy, stream]))
            for stream in (RandomStream.ENVIRONMENTS, RandomStream.EXPLORATION)
        )
        _seed_everybody(entropy)
        self._outbox = self._data.buffer = Outbox(self._data.num_envs)
        self._envs = self._data.open_envs()
        self._record = EpisodeRecord(self._data.num_envs, self._data.num_actions)
        self._observation = self._envs.reset()
        self._reference = self._outbox.remember(self._observation)

    def load(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Acts by other weights from now on.

        Args:
            version: The learner's iteration that they are of.
            weights: Entries of the module's state; what is not among them stays.
        """
        self._module.load_state_dict(weights, strict=False)
        self._version = version

    def explore(self, num_steps: int, env_steps: int, episodes: int) -> Message:
        """Acts as the explorer says.

        Args:
            num_steps: Steps of all environments.
            env_steps: The run's clock, which the explorer reads; the actor's own steps are added to it.
            episodes: The run's, likewise.
        """
        self.episodes = episodes
        return self._answer(num_steps, env_steps, self._best)

    def act_at_random(self, num_steps: int) -> Message:
        """Takes any of the legal actions.

        Args:
            num_steps: Steps of all environments.
        """
        return self._answer(num_steps, 0, self._random)

    def _best(self, observation: NDArray[Any]) -> NDArray[np.int64]:
        with torch.no_grad():
            q_values: Tensor = self._module(torch.from_numpy(observation))
        return self._choose(q_values.numpy(), self._data)

    def _answer(self, num_steps: int, env_steps: int, policy: Any) -> Message:
        self._data.env_steps = env_steps
        self._collect(self._data, env_steps + num_steps * self._data.num_envs, policy)
        observation, env, first, transition = self._outbox.take()
        td_error = self._td_error(transition) if self._has_priorities and transition is not None else None
        oldest = self._oldest()
        self._outbox.forget(oldest)
        episodes, warnings = list(self._recent), self._warnings
        self._recent.clear()
        self._warnings = []
        taken = self._data.env_steps - env_steps
        return Message(observation, env, first, oldest, transition, td_error, episodes, taken, self._version, warnings)

    def _td_error(self, transition: Transition[NDArray[Any]]) -> Tensor:
        assert isinstance(self._module, DQNLightningModule), "priorities are the TD errors of a DQNLightningModule"
        with torch.no_grad(), self._module.acting_mode():
            whole = self._outbox.observations_of(transition)
            return self._module.losses(whole, torch.ones(len(transition.action))).td_error

    def _oldest(self) -> int:
        """The smallest number of an observation in a window that is open, or that is acted on next."""
        windows = self._data.accumulator.state_arrays()
        named = windows["observation"][windows["age"] > 0] if "observation" in windows else self._reference
        return int(min(self._reference.min(), named.min(initial=self._reference.min())))

    def _tell(self, what: str) -> None:
        self._warnings.append(what)


def _seed_everybody(entropy: list[int]) -> None:
    """Seeds the random numbers that a process shares: noisy networks draw from them."""
    draw = partial(np.random.SeedSequence([*entropy, len(RandomStream)]).generate_state, dtype=np.uint32)
    torch_seed, numpy_seed, python_seed = draw(3).tolist()
    torch.manual_seed(torch_seed)
    np.random.seed(numpy_seed)  # noqa: NPY002
    random.seed(python_seed)
