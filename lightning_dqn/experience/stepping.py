"""Stepping many environments at once: every episode is reset explicitly, with a seed of its own.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from lightning_dqn.experience.autoreset import ResetCheck
from lightning_dqn.experience.checked import check_batch, check_observations, is_finite
from lightning_dqn.experience.envs import close_envs
from lightning_dqn.experience.faults import EnvironmentFailure, naming_failures, reset_in_time, step_in_time
from lightning_dqn.experience.masks import as_mask
from lightning_dqn.experience.reset_probe import check_resets


def episode_seeds(rng: np.random.Generator) -> Iterator[int]:
    """Endless seeds, one for each episode to come."""
    while True:
        yield int(rng.integers(2**31))


class VectorStep(NamedTuple):
    """What one step of all environments brought.

    Attributes:
        next_observation: Where the action led, also where an episode ended there, ``[N, *O]``.
        reward: ``[N]``, float64.
        terminated: The episode reached a terminal state, ``[N]``, bool.
        truncated: The episode was cut off elsewhere, ``[N]``, bool; false where ``terminated``.
        observation: What to act on next: the first of a new episode where one ended, ``[N, *O]``.
        valid: False where the environment only reset itself and no step was taken, or where it waits for a reset,
            ``[N]``, bool.
        episode_return: Undiscounted return of the episode up to this step, ``[N]``, float64.
        episode_length: Steps of the episode up to this one, ``[N]``, int64.
        next_action_mask: Which actions are legal at ``next_observation``, ``[N, A]``, bool, all of them where
            ``terminated``; ``None`` if no mask is used.
        learned_reward: What is learned from instead of ``reward``: the same, or clipped, ``[N]``, float64.
        cut: Where learning looks no further ahead: ``terminated``, and a lost life if that is asked for, ``[N]``, bool.
        done: The episode ended here, one way or the other, ``[N]``, bool.
    """

    next_observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    observation: NDArray[Any]
    valid: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    next_action_mask: NDArray[np.bool_] | None
    learned_reward: NDArray[np.float64]
    cut: NDArray[np.bool_]
    done: NDArray[np.bool_]

    @property
    def outcome(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """What replay needs to know of the way here: reward, terminated, truncated, as learning is to see them."""
        return self.learned_reward, self.cut, self.truncated


class SeededEnvs:
    """Vector environments whose every episode starts by an explicit reset with a seed of its own.

    The reset comes right after the step that ended the episode and touches only the environments that ended, so there
    are no reset steps to drop and no ``final_obs`` to fetch, and an episode can be replayed from its seed and actions.
    A native vector environment that cannot reset some of its members alone is found out at set-up; it then resets them
    by itself on the step after the end, and these steps come back with ``valid`` false. A member whose episode is cut
    off there waits for its own end, or for a reset of all as soon as no episode is left; its steps until then are not
    ``valid`` either. A native environment that resets wrong is refused, at set-up or after its first ends.

    Args:
        envs: What to step.
        seeds: Where the seed of each new episode comes from.
        max_episode_steps: Cuts longer episodes off (a truncation); ``None`` leaves that to the environment.
        mask_key: Where in ``info`` the environments say which actions are legal; ``None``: all are, always.
        seed_every_episode: If false, only :meth:`reset` seeds, and later episodes go on in the environments' own random
            numbers: for environments that are slow to seed.
        reward_clip: Learning sees rewards clipped to ``[-reward_clip, reward_clip]``; returns do not change.
        life_loss: Learning sees a terminal state where ``info["lives"]`` gets less; the episode goes on.
        timeout: Seconds that environments in processes of their own have for an answer.

    Attributes:
        action_mask: Which actions are legal now, ``[N, A]``, bool; ``None`` if no mask is used.
        waiting: Which members wait for a reset since their episode was cut off, ``[N]``, bool; none where members can
            be reset alone.
    """

    action_mask: NDArray[np.bool_] | None

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        seeds: Iterator[int],
        max_episode_steps: int | None = None,
        mask_key: str | None = None,
        seed_every_episode: bool = True,
        reward_clip: float | None = None,
        life_loss: bool = False,
        timeout: float = 60.0,
    ) -> None:
        self.envs = envs
        self.num_envs = envs.num_envs
        self.seeds = seeds
        space = envs.single_action_space
        assert isinstance(space, spaces.Discrete)  # check_spaces has seen to it
        self.num_actions = int(space.n)
        self._first_action = int(space.start)
        self._may_be_infinite = np.issubdtype(envs.single_observation_space.dtype, np.floating)
        self._is_native = not isinstance(envs, SyncVectorEnv | AsyncVectorEnv)
        self._reset_check = check_resets(envs, mask_key) if self._is_native else None
        self.resets_alone = self._reset_check is None or self._reset_check.resets_alone
        self.max_episode_steps = max_episode_steps
        self.episode_seed = np.zeros(self.num_envs, np.int64)
        self.episode_return = np.zeros(self.num_envs)
        self.episode_length = np.zeros(self.num_envs, np.int64)
        self._resets_next = np.zeros(self.num_envs, np.bool_)
        self.waiting = np.zeros(self.num_envs, np.bool_)
        self._mask_key = mask_key
        self.action_mask = None
        self.seed_every_episode = seed_every_episode
        self.reward_clip = reward_clip
        self.life_loss = life_loss
        self.timeout = timeout
        self._lives: NDArray[Any] = np.zeros(self.num_envs, np.int64)

    def reset(self) -> NDArray[Any]:
        """Starts a new episode in every environment; returns the first observations, ``[N, *O]``."""
        seeds = [next(self.seeds) for _ in range(self.num_envs)]
        # an environment that cannot reset its members alone takes one seed for all of them
        takes_one = self._is_native and (self.num_envs == 1 or not self.resets_alone)
        observation, info = self._reset(seed=seeds[0] if takes_one else seeds)
        self.episode_seed[:] = seeds
        self._begin(np.ones(self.num_envs, np.bool_))
        self._resets_next, self.waiting = np.zeros((2, self.num_envs), np.bool_)
        if self._reset_check is not None:
            self._reset_check.restart()
        observation = self._own(observation)
        self._check_finite(observation, np.zeros(self.num_envs))
        self.action_mask = self._masks(info, np.zeros(self.num_envs, np.bool_))
        self._note_lives(info, np.ones(self.num_envs, np.bool_))
        return observation

    def step(self, action: NDArray[np.int64]) -> VectorStep:
        """Takes one step in every environment and starts a new episode where one ended.

        Args:
            action: Action indices in ``[0, num_actions)``, ``[N]``; the space's own ``start`` is added here.

        Raises:
            EnvironmentFailure: If an environment breaks down, dies, or does not answer in time. What there is to know
                of the episodes is then as it was before the step.
            ValueError: If an environment returns a reward or observation that is NaN or infinite, or a mask without a
                legal action; a native one also if they have not the shape or the kind of numbers they should have.
        """
        action = action + self._first_action if self._first_action else action
        take = partial(step_in_time, self.envs, action, self.timeout)
        following, reward, terminated, truncated, info = self._own_step(*self._ask(take))
        valid = ~(self._resets_next | self.waiting)
        before = self.episode_length, self.episode_return, self.action_mask, self._lives
        self.episode_length = length = self.episode_length + valid
        self.episode_return = total = self.episode_return + reward * valid
        self._check_finite(following, reward)
        next_mask = self.action_mask = self._masks(info, terminated)
        if not self.resets_alone:
            terminated, truncated = self._own_ends(terminated, truncated)
        if self.max_episode_steps is not None:
            truncated = truncated | (length >= self.max_episode_steps)
        # both flags at once mean a terminal state that was also the last allowed step: there is nothing to bootstrap
        truncated = truncated & ~terminated
        reward = np.asarray(reward, np.float64)
        learned = self._as_learned(reward, terminated, info)
        done = terminated | truncated
        observation = self._next_observation(done, following, before) if np.count_nonzero(done) else following
        return VectorStep(
            following, reward, terminated, truncated, observation, valid, total, length, next_mask, *learned, done
        )

    def _reset(self, **kwargs: Any) -> Any:
        return self._ask(partial(reset_in_time, self.envs, self.timeout, **kwargs))

    def _ask(self, what: Callable[[], Any]) -> Any:
        return naming_failures(self.envs, self.timeout, self._whereabouts, what)

    def close(self) -> None:
        """Closes the environments and ends their processes."""
        close_envs(self.envs)

    def start_episodes(self, done: NDArray[np.bool_], seeds_of_all: Iterator[int] | None = None) -> NDArray[Any]:
        """Starts new episodes in some environments, which must be such that their members can be reset alone.

        Args:
            done: In which, ``[N]``, at least one.
            seeds_of_all: A seed for each of them; if not given, as at the end of an episode.

        Returns:
            What all environments show now, ``[N, *O]``.
        """
        self._begin(done)
        seeds: list[int | None] = [None] * self.num_envs
        self.episode_seed[done] = -1
        for i in np.flatnonzero(done & (self.seed_every_episode or seeds_of_all is not None)):
            self.episode_seed[i] = seeds[i] = next(seeds_of_all or self.seeds)
        if self._is_native and self.num_envs == 1:
            observation, info = self._reset(seed=seeds[0])
        else:  # gymnasium pops the mask from the dictionary it is given, hence a new one every time
            observation, info = self._reset(seed=seeds, options={"reset_mask": done.copy()})
        observation = self._own(observation)
        self._check_finite(observation, np.zeros(self.num_envs))
        masks = self._masks(info, ~done)
        if masks is not None and self.action_mask is not None:  # a reset says nothing of those that go on
            self.action_mask = np.where(done[:, None], masks, self.action_mask)
        self._note_lives(info, done)
        return observation

    def _next_observation(
        self, done: NDArray[np.bool_], following: NDArray[Any], before: tuple[Any, ...]
    ) -> NDArray[Any]:
        if not self.resets_alone:
            self._begin(done)
            self.waiting = self.waiting | (done & ~self._resets_next)
            over = self.waiting | self._resets_next
            return self.reset() if self.waiting.any() and over.all() else following
        seed = self.episode_seed.copy()
        try:
            return self.start_episodes(done)
        except EnvironmentFailure:
            # nobody will see this step: whoever brings the others back has to know where they were before it
            self.episode_length, self.episode_return, self.action_mask, self._lives = before
            self.episode_seed = seed
            raise

    def _own_ends(
        self, terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the ends that count: those of members that waited for them end no episode."""
        waited = self.waiting
        self._resets_next = terminated | truncated
        self.waiting = waited & ~self._resets_next
        return terminated & ~waited, truncated & ~waited

    def _begin(self, done: NDArray[np.bool_]) -> None:
        # anew rather than in place: those of the step that led here have been handed out
        self.episode_return = np.where(done, 0.0, self.episode_return)
        self.episode_length = np.where(done, 0, self.episode_length)

    def _as_learned(
        self, reward: NDArray[np.float64], terminated: NDArray[np.bool_], info: dict[str, Any]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What learning sees of a step: the reward, and where it looks no further ahead."""
        if self.reward_clip is not None:
            reward = reward.clip(-self.reward_clip, self.reward_clip)
        if not self.life_loss:
            return reward, terminated
        before = self._lives
        self._note_lives(info, np.ones(self.num_envs, np.bool_))
        return reward, terminated | (self._lives < before)

    def _note_lives(self, info: dict[str, Any], of: NDArray[np.bool_]) -> None:
        if not self.life_loss:
            return
        if "lives" not in info:
            raise ValueError(f"data.life_loss: the environments' info has no 'lives', only {sorted(info)}")
        lives, told = np.asarray(info["lives"]), info.get("_lives", of)
        if lives.shape != of.shape or not all(map(is_finite, lives[of])) or not told[of].all():
            known = [i for i in np.flatnonzero(of) if lives.shape == of.shape and not (told[i] and is_finite(lives[i]))]
            who = f"environment {known[0]}" if known else "an environment"
            raise ValueError(f"data.life_loss: info['lives'] of {who} is not a number, but among {info['lives']!r}")
        self._lives = np.where(of, lives, self._lives)

    def _masks(self, info: dict[str, Any], unused: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """The legal actions in ``info``; all of them for environments in which none will be chosen."""
        if self._mask_key is None:
            return None
        if self._mask_key not in info:
            if unused.all():
                return np.ones((self.num_envs, self.num_actions), np.bool_)
            raise ValueError(f"data.action_mask: the environments' info has no {self._mask_key!r}, only {sorted(info)}")
        masks = as_mask(info[self._mask_key], self._mask_key)
        if masks.shape != (self.num_envs, self.num_actions):
            raise ValueError(
                f"data.action_mask: info[{self._mask_key!r}] is {masks.shape}, not (num_envs, num_actions) = "
                f"({self.num_envs}, {self.num_actions})"
            )
        masks[unused] = True
        if not masks.any(axis=1).all():
            i = int(np.flatnonzero(~masks.any(axis=1))[0])
            raise ValueError(f"data.action_mask: environment {i} has no legal action at {self._whereabouts(i)}")
        return masks

    def _own_step(
        self, following: NDArray[Any], reward: Any, terminated: Any, truncated: Any, info: dict[str, Any]
    ) -> Any:
        if self._is_native:
            check_batch(self.num_envs, reward, terminated, truncated)
        following = self._own(following)
        if self._reset_check is not None:
            self._watch(self._reset_check, following, terminated | truncated, info)
        return following, reward, terminated, truncated, info

    def _watch(
        self, check: ResetCheck, observation: NDArray[Any], done: NDArray[np.bool_], info: dict[str, Any]
    ) -> None:
        """Check the resets of a native environment until enough ends were seen."""
        check.observe(observation, done, info)
        check.refuse()
        if check.is_complete:
            self._reset_check = None

    def _own(self, observation: NDArray[Any]) -> NDArray[Any]:
        if not self._is_native:
            return observation
        check_observations(self.envs.single_observation_space, self.num_envs, observation)
        # it may hand out the array it works on, and write over it at the next step or reset
        return observation.copy()

    def _check_finite(self, observation: NDArray[Any], reward: NDArray[np.float64]) -> None:
        if _all_finite(reward) and not (self._may_be_infinite and not _all_finite(observation)):
            return
        finite = np.isfinite(reward) & np.isfinite(observation).reshape(self.num_envs, -1).all(axis=1)
        i = int(np.flatnonzero(~finite)[0])
        what = "an observation" if np.isfinite(reward[i]) else f"a reward of {reward[i]}"
        raise ValueError(f"environment {i} returned {what} that is not finite at {self._whereabouts(i)}")

    def _whereabouts(self, i: int) -> str:
        seed = self.episode_seed[i]
        which = f"episode seed {seed}" if seed >= 0 else "which has no seed of its own"
        return f"step {self.episode_length[i]} of its episode ({which})"


def _all_finite(numbers: NDArray[Any]) -> bool:
    # counting takes half the time of .all(), which goes through Python
    return bool(np.count_nonzero(np.isfinite(numbers)) == numbers.size)
