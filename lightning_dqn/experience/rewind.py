"""Bringing environments back to where they were: their episodes are played again, from their seeds and actions.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

import hashlib
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_dqn.experience.stepping import SeededEnvs


class EpisodeRecord:
    """What it takes to play the present episode of each environment again.

    Args:
        num_envs: ``N``.
        num_actions: Actions there are; they are kept in the smallest type that holds them.
    """

    def __init__(self, num_envs: int, num_actions: int) -> None:
        self._env = np.arange(num_envs)
        self._action = np.zeros((num_envs, 64), np.min_scalar_type(num_actions - 1))

    def note(self, episode_length: NDArray[np.int64], action: NDArray[np.int64]) -> None:
        """Notes the actions that are taken next.

        Args:
            episode_length: Steps of each episode so far, ``[N]``.
            action: Action indices, ``[N]``.
        """
        try:
            self._action[self._env, episode_length] = action
        except IndexError:  # an episode that is longer than all before
            self._action = np.concatenate([self._action, np.zeros_like(self._action)], axis=1)
            self.note(episode_length, action)

    def state_arrays(self, envs: SeededEnvs, observation: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Seeds, lengths and actions of the present episodes, and what is seen now, hashed.

        Args:
            envs: The environments.
            observation: What they show now, ``[N, *O]``.
        """
        taken = [self._action[i, :length] for i, length in enumerate(envs.episode_length)]
        return {
            "episode_seed": envs.episode_seed.copy(),
            "episode_length": envs.episode_length.copy(),
            "episode_action": np.concatenate(taken),
            "observation_hash": _hashes(observation),
        }

    def play_again(self, envs: SeededEnvs, arrays: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Plays the episodes again that :meth:`state_arrays` described.

        All begin so that they arrive together: an environment whose episode is shorter plays something else before.
        Where an episode does not lead to what was seen, or has no seed of its own, a new one is started.

        Args:
            envs: The environments, of the same kind and number.
            arrays: What :meth:`state_arrays` gave.

        Returns:
            What the environments show now, ``[N, *O]``, and which of them are where they were, ``[N]``.
        """
        seed, length = arrays["episode_seed"], arrays["episode_length"]
        known = (seed >= 0) & envs.resets_alone
        if len(seed) != envs.num_envs or not known.any():
            return envs.reset(), np.zeros(envs.num_envs, np.bool_)
        starts = length.cumsum() - length
        longest = int(length[known].max())
        real_seeds, envs.seeds = envs.seeds, repeat(0)
        observation = envs.reset()
        for t in range(longest + 1):
            beginning = known & (longest - length == t)
            if beginning.any():
                observation = envs.start_episodes(beginning, iter(seed[beginning].tolist()))
            if t == longest:
                break
            action = _any_legal(envs)
            playing = known & (longest - length <= t)
            action[playing] = arrays["episode_action"][(starts + t - (longest - length))[playing]]
            self.note(np.where(playing, envs.episode_length, 0), action)
            observation = envs.step(action).observation
        envs.seeds = real_seeds
        there = known & (envs.episode_length == length) & (envs.episode_seed == seed)
        there &= (_hashes(observation) == arrays["observation_hash"]).all(axis=1)
        if not there.all():
            observation = envs.start_episodes(~there, real_seeds)
        return observation, there


def no_episodes(num_envs: int) -> dict[str, NDArray[Any]]:
    """What :meth:`EpisodeRecord.state_arrays` gives where no episode can be played again.

    Args:
        num_envs: ``N``.
    """
    return {
        "episode_seed": np.full(num_envs, -1, np.int64),
        "episode_length": np.zeros(num_envs, np.int64),
        "episode_action": np.zeros(0, np.uint8),
        "observation_hash": np.zeros((num_envs, 32), np.uint8),
    }


def _any_legal(envs: SeededEnvs) -> NDArray[np.int64]:
    if envs.action_mask is None:
        return np.zeros(envs.num_envs, np.int64)
    return np.asarray(envs.action_mask.argmax(axis=1), np.int64)


def _hashes(observation: NDArray[Any]) -> NDArray[np.uint8]:
    """SHA-256 of each observation, ``[N, 32]``."""
    hashes = [hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest() for row in observation]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), 32).copy()
