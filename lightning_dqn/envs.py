"""Environments as the collector sees them: vectorised, reset explicitly, every episode with a seed of its own.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

EnvSource = str | EnvSpec | Callable[..., Any]
"""A registered id (``"CartPole-v1"``, ``"module:MyEnv-v0"``), a dotted path (``"my_package.MyEnv"``), or a callable."""

Wrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]
Vectorization = Literal["sync", "async", "native"]

_FLATTENED_TO_BITS = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def resolve_env(env_id: EnvSource) -> EnvSpec | Callable[..., Any]:
    """Looks an environment up without making one.

    Args:
        env_id: See :data:`EnvSource`.

    Returns:
        Its registration, or the callable that makes it.

    Raises:
        ValueError: If nothing of that name is registered or can be imported; names the field.
    """
    if not isinstance(env_id, str):
        return env_id
    registering_module, _, registered_id = env_id.rpartition(":")
    try:
        if registering_module:
            import_module(registering_module)
        return gym.spec(registered_id)
    except (gym.error.Error, ImportError) as unregistered:
        module, _, name = env_id.rpartition(".")
        if not module or registering_module:
            raise ValueError(f"data.env_id: {unregistered}") from unregistered
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError) as missing:
            raise ValueError(f"data.env_id: {env_id!r} is neither registered nor importable: {missing}") from missing
    if not callable(factory):
        raise ValueError(f"data.env_id: {env_id!r} is a {type(factory).__name__}, not a class or function")
    return factory  # type: ignore[no-any-return]


def make_env(env_id: EnvSource, kwargs: Mapping[str, Any], wrappers: Sequence[Wrapper] = ()) -> gym.Env[Any, Any]:
    """Makes one environment whose observations are arrays and whose actions are discrete.

    Discrete observations become one-hot vectors, Dict and Tuple observations one flat vector
    (:class:`gymnasium.wrappers.FlattenObservation`); Box observations keep their shape and dtype.

    Args:
        env_id: See :data:`EnvSource`.
        kwargs: Arguments of the environment.
        wrappers: Put around it in order, the last outermost.

    Raises:
        ValueError: If its spaces are not such that a Q-function can act on them; names the field.
    """
    source = resolve_env(env_id)
    env = gym.make(source, **kwargs) if isinstance(source, EnvSpec) else source(**kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    check_spaces(env.observation_space, env.action_space)
    if not isinstance(env.observation_space, spaces.Box):
        to_bits = isinstance(env.observation_space, _FLATTENED_TO_BITS)
        env = gym.wrappers.FlattenObservation(env)
        if to_bits:
            env = gym.wrappers.DtypeObservation(env, np.int8)
    return env


def check_spaces(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Refuses spaces a Q-function cannot act on.

    Raises:
        ValueError: If actions are not Discrete or observations cannot be flattened to numbers; names the field.
    """
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(
            f"data.env_id: value-based learning needs a Discrete action space, this environment has {action_space}"
        )
    if not observation_space.is_np_flattenable:
        raise ValueError(f"data.env_id: observations in {observation_space} cannot be turned into one array")


def make_envs(
    env_id: EnvSource,
    num_envs: int,
    kwargs: Mapping[str, Any],
    wrappers: Sequence[Wrapper] = (),
    vectorization: Vectorization = "sync",
) -> VectorEnv[Any, Any, Any]:
    """Makes ``num_envs`` copies of an environment that are stepped together.

    Args:
        env_id: See :data:`EnvSource`.
        num_envs: Number of copies, ``N``.
        kwargs: Arguments of each.
        wrappers: Put around each; not possible with ``native``.
        vectorization: ``sync`` steps them one after the other, ``async`` each in a process of its own, ``native``
            takes the environment's own vector implementation.

    Raises:
        ValueError: If there is no native implementation, or it would have to be wrapped; names the field.
    """
    if vectorization == "native":
        return _make_native(env_id, num_envs, kwargs, wrappers)
    # the registration travels rather than the id: worker processes have not registered the user's environments
    make = partial(make_env, resolve_env(env_id), kwargs, wrappers)
    if vectorization == "sync":
        return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    # by now torch has threads, and a process forked from one with threads can hang
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    in_worker = partial(_make_in_worker, make, os.getpid())
    return AsyncVectorEnv([in_worker] * num_envs, context=method, autoreset_mode=AutoresetMode.DISABLED)


def _make_in_worker(make: Callable[[], gym.Env[Any, Any]], trainer_pid: int) -> gym.Env[Any, Any]:
    # Ctrl-C in a terminal goes to every process; when to stop is for the one that trains to decide
    if os.getpid() != trainer_pid:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make()


def _make_native(
    env_id: EnvSource, num_envs: int, kwargs: Mapping[str, Any], wrappers: Sequence[Wrapper]
) -> VectorEnv[Any, Any, Any]:
    if wrappers:
        raise ValueError("data.wrappers: a native vector environment cannot be wrapped; use vectorization: sync")
    source = resolve_env(env_id)
    if isinstance(source, EnvSpec):
        if source.vector_entry_point is None:
            raise ValueError(f"data.vectorization: {source.id} has no native vector environment; use sync or async")
        envs = gym.make_vec(source, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    else:
        envs = source(num_envs=num_envs, **kwargs)
    check_spaces(envs.single_observation_space, envs.single_action_space)
    if not isinstance(envs.single_observation_space, spaces.Box):
        to_bits = isinstance(envs.single_observation_space, _FLATTENED_TO_BITS)
        envs = gym.wrappers.vector.FlattenObservation(envs)
        if to_bits:
            envs = gym.wrappers.vector.DtypeObservation(envs, np.int8)
    return envs


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
        valid: False where the environment only reset itself and no step was taken, ``[N]``, bool.
        episode_return: Undiscounted return of the episode up to this step, ``[N]``, float64.
        episode_length: Steps of the episode up to this one, ``[N]``, int64.
    """

    next_observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    observation: NDArray[Any]
    valid: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]

    @property
    def outcome(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """What replay needs to know: reward, terminated, truncated, next observation, valid."""
        return self.reward, self.terminated, self.truncated, self.next_observation, self.valid

    @property
    def done(self) -> NDArray[np.bool_]:
        """The episode ended here, one way or the other, ``[N]``."""
        return self.terminated | self.truncated


class SeededEnvs:
    """Vector environments whose every episode starts by an explicit reset with a seed of its own.

    The reset comes right after the step that ended the episode and touches only the environments that ended, so there
    are no reset steps to drop and no ``final_obs`` to fetch, and an episode can be replayed from its seed and actions.
    A native vector environment that cannot reset some of its members alone is found out at set-up; it then resets them
    by itself on the step after the end, and these steps come back with ``valid`` false.

    Args:
        envs: What to step.
        seeds: Where the seed of each new episode comes from.
        max_episode_steps: Cuts longer episodes off (a truncation); ``None`` leaves that to the environment, as does an
            environment that cannot be reset alone.
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], seeds: Iterator[int], max_episode_steps: int | None = None
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
        if self._is_native:
            _refuse_same_step(envs)
        self.resets_alone = not self._is_native or _resets_alone(envs)
        # an episode can only be cut off by those who can then start the next one
        self.max_episode_steps = max_episode_steps if max_episode_steps and self.resets_alone else np.inf
        self.episode_seed = np.zeros(self.num_envs, np.int64)
        self.episode_return = np.zeros(self.num_envs)
        self.episode_length = np.zeros(self.num_envs, np.int64)
        self._resets_next = np.zeros(self.num_envs, np.bool_)

    def reset(self) -> NDArray[Any]:
        """Starts a new episode in every environment; returns the first observations, ``[N, *O]``."""
        seeds = [next(self.seeds) for _ in range(self.num_envs)]
        # an environment that cannot reset its members alone takes one seed for all of them
        observation, _ = self.envs.reset(seed=seeds if self.resets_alone else seeds[0])  # type: ignore[arg-type]
        self.episode_seed[:] = seeds
        self.episode_return[:] = 0
        self.episode_length[:] = 0
        self._resets_next[:] = False
        return self._own(observation)

    def step(self, action: NDArray[np.int64]) -> VectorStep:
        """Takes one step in every environment and starts a new episode where one ended.

        Args:
            action: Action indices in ``[0, num_actions)``, ``[N]``; the space's own ``start`` is added here.

        Raises:
            ValueError: If an environment returns a reward or observation that is NaN or infinite.
        """
        following, reward, terminated, truncated, _ = self.envs.step(action + self._first_action)
        following = self._own(following)
        valid = ~self._resets_next
        self.episode_return += reward * valid
        self.episode_length += valid
        self._check_finite(following, reward)
        # both flags at once mean a terminal state that was also the last allowed step: there is nothing to bootstrap
        truncated = (truncated | (self.episode_length >= self.max_episode_steps)) & ~terminated
        totals = self.episode_return.copy(), self.episode_length.copy()
        done = terminated | truncated
        observation = self._start_episodes(done, following) if done.any() else following
        self._resets_next = done & (not self.resets_alone)
        return VectorStep(following, np.asarray(reward, np.float64), terminated, truncated, observation, valid, *totals)

    def close(self) -> None:
        """Closes the environments and ends their processes."""
        self.envs.close()

    def _start_episodes(self, done: NDArray[np.bool_], following: NDArray[Any]) -> NDArray[Any]:
        self.episode_return[done] = 0
        self.episode_length[done] = 0
        if not self.resets_alone:
            return following
        seeds: list[int | None] = [None] * self.num_envs
        for i in np.flatnonzero(done):
            self.episode_seed[i] = seeds[i] = next(self.seeds)
        # gymnasium pops the mask from the dictionary it is given, hence a new one every time
        observation, _ = self.envs.reset(seed=seeds, options={"reset_mask": done.copy()})  # type: ignore[arg-type]
        return self._own(observation)

    def _own(self, observation: NDArray[Any]) -> NDArray[Any]:
        # a native environment may hand out the array it works on, and write over it at the next step or reset
        return observation.copy() if self._is_native else observation

    def _check_finite(self, observation: NDArray[Any], reward: NDArray[np.float64]) -> None:
        if np.isfinite(reward).all() and not (self._may_be_infinite and not np.isfinite(observation).all()):
            return
        finite = np.isfinite(reward) & np.isfinite(observation).reshape(self.num_envs, -1).all(axis=1)
        i = int(np.flatnonzero(~finite)[0])
        what = "an observation" if np.isfinite(reward[i]) else f"a reward of {reward[i]}"
        raise ValueError(
            f"environment {i} returned {what} that is not finite at step {self.episode_length[i]} of its episode "
            f"(episode seed {self.episode_seed[i]})"
        )


def _refuse_same_step(envs: VectorEnv[Any, Any, Any]) -> None:
    # the environment's own attribute first: the metadata dictionary can be shared between classes and be stale
    mode = getattr(envs.unwrapped, "autoreset_mode", envs.metadata.get("autoreset_mode"))
    if mode == AutoresetMode.SAME_STEP:
        raise ValueError(
            "data.vectorization: this native vector environment resets within the step that ends an episode, which "
            "hides the last observation; make it with next-step autoreset"
        )


def _resets_alone(envs: VectorEnv[Any, Any, Any]) -> bool:
    """Whether a masked reset of the first environment leaves the others as they are, found out by trying."""
    mask = np.zeros(envs.num_envs, np.bool_)
    mask[0] = True
    seeds: list[int | None] = [1] + [None] * (envs.num_envs - 1)
    rng = np.random.default_rng(0)
    space = envs.single_action_space
    assert isinstance(space, spaces.Discrete)
    try:
        first = envs.reset(seed=0)[0].copy()
        for _ in range(100):
            before = envs.step(space.start + rng.integers(space.n, size=envs.num_envs))[0].copy()
            if (before[1:] != first[1:]).any():  # only one that has left its start shows whether it was sent back
                after, _ = envs.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]
                return bool((before[1:] == after[1:]).all())
    except Exception:
        return False
    return False


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
        max_episode_steps: Longest an episode may get; ``None``: as long as the environment lets it.
    """

    def __init__(
        self, envs: Callable[[], VectorEnv[Any, Any, Any]], seeds: Sequence[int], max_episode_steps: int | None = None
    ) -> None:
        self.envs = envs
        self.seeds = list(seeds)
        self.max_episode_steps = max_episode_steps

    def __len__(self) -> int:
        return len(self.seeds)

    def play(self, policy: Callable[[NDArray[Any]], NDArray[np.int64]]) -> PlayedEpisodes:
        """Plays every episode to its end.

        Args:
            policy: Maps observations ``[N, *O]`` to action indices ``[N]``.
        """
        returns = np.zeros(len(self))
        lengths = np.zeros(len(self), np.int64)
        envs = SeededEnvs(self.envs(), self._seeds(), self.max_episode_steps)
        # environments beyond the last episode play on unwatched, so that every forward has one shape
        playing = np.arange(envs.num_envs)
        upcoming = envs.num_envs
        observation = envs.reset()
        while (playing < len(self)).any():
            step = envs.step(policy(observation))
            observation = step.observation
            for i in np.flatnonzero(step.done):
                if playing[i] < len(self):
                    returns[playing[i]], lengths[playing[i]] = step.episode_return[i], step.episode_length[i]
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
