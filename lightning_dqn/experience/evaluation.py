"""Evaluation: episodes with fixed seeds, played greedily in environments of their own.

Shapes: ``E`` episodes, ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from lightning_dqn.experience.stepping import SeededEnvs

Policy = Callable[[NDArray[Any], NDArray[np.bool_] | None], NDArray[np.int64]]
"""Maps observations and the mask of legal actions to actions."""


class PlayedEpisodes(NamedTuple):
    """Finished episodes, in the order of their seeds.

    Attributes:
        seeds: ``[E]``, int64.
        returns: Undiscounted, ``[E]``, float64.
        lengths: In environment steps, ``[E]``, int64.
    """

    seeds: NDArray[np.int64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]


class EvaluationEpisodes:
    """Episodes with fixed seeds, played when asked, in environments that training never touches.

    Args:
        envs: Returns the vector environment to play in; called at every :meth:`play`, so it may keep one.
        seeds: Seed of each episode.
        max_episode_steps: Longest an episode may get, also where the environment's members cannot be reset alone;
            ``None``: as long as the environment lets it.
        mask_key: Where in ``info`` the environments say which actions are legal; ``None``: all are, always.
    """

    def __init__(
        self,
        envs: Callable[[], VectorEnv[Any, Any, Any]],
        seeds: Sequence[int],
        max_episode_steps: int | None = None,
        mask_key: str | None = None,
    ) -> None:
        self.envs = envs
        self.mask_key = mask_key
        self.seeds = list(seeds)
        self.max_episode_steps = max_episode_steps

    def __len__(self) -> int:
        return len(self.seeds)

    def play(self, policy: Policy) -> PlayedEpisodes:
        """Plays every episode to its end.

        Args:
            policy: Maps observations ``[N, *O]`` and the mask of legal actions ``[N, A]`` (``None`` if all are) to
                action indices ``[N]``.
        """
        returns = np.zeros(len(self))
        lengths = np.zeros(len(self), np.int64)
        envs = SeededEnvs(self.envs(), self._seeds(), self.max_episode_steps, self.mask_key)
        # environments beyond the last episode play on unwatched, so that every forward has one shape
        playing = np.arange(envs.num_envs)
        upcoming = envs.num_envs
        missing = len(self)
        observation = envs.reset()
        while missing:
            step = envs.step(policy(observation, envs.action_mask))
            observation = step.observation
            for i in np.flatnonzero(step.done & (playing < len(self))):
                returns[playing[i]], lengths[playing[i]] = step.episode_return[i], step.episode_length[i]
                missing -= 1
            playing[step.done] = -1
            # an environment that waits for a reset may wait for ever, while others play what is left
            for i in np.flatnonzero((playing < 0) & ~envs.waiting):
                playing[i] = upcoming
                upcoming += 1
        return PlayedEpisodes(np.array(self.seeds, np.int64), returns, lengths)

    def _seeds(self) -> Iterator[int]:
        yield from self.seeds
        while True:
            yield self.seeds[-1]


class EvaluationSchedule:
    """Evaluation episodes in batches, as a dataloader: an iterable with a length.

    Args:
        batches: What it yields.
    """

    def __init__(self, batches: Sequence[EvaluationEpisodes]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[EvaluationEpisodes]:
        return iter(self.batches)
