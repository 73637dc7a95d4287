"""Finding and making environments: one, or many that are stepped together."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from lightning_dqn.experience.atari import atari_spec
from lightning_dqn.experience.checked import CheckedEnv
from lightning_dqn.experience.masks import ActionMask
from lightning_dqn.experience.minatar import minatar_spec
from lightning_dqn.experience.serial import SerialEnvs

EnvSource = str | EnvSpec | Callable[..., Any]
"""A registered id (``"CartPole-v1"``, ``"module:MyEnv-v0"``), a dotted path (``"my_package.MyEnv"``), or a callable.

``ALE/...`` and ``MinAtar/...`` are made as :mod:`~lightning_dqn.experience.atari` and
:mod:`~lightning_dqn.experience.minatar` say; ``ale_py:ALE/Pong-v5`` is ALE's own, without preprocessing.
"""

Wrapper = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]
Vectorization = Literal["sync", "async", "native"]

_SUITES = {"ALE": atari_spec, "MinAtar": minatar_spec}
_MAKE_OTHERS = ("GymV21Environment", "GymV26Environment")  # their arguments name a module to import
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
    suite = _SUITES.get(env_id.partition("/")[0])
    try:
        if registering_module:
            import_module(registering_module)
        return suite(env_id) if suite is not None else gym.spec(registered_id)
    except (gym.error.Error, ImportError) as unregistered:
        module, _, name = env_id.rpartition(".")
        if not module or registering_module or suite is not None:
            raise ValueError(f"data.env_id: {unregistered}") from unregistered
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError) as missing:
            raise ValueError(f"data.env_id: {env_id!r} is neither registered nor importable: {missing}") from missing
    if not callable(factory):
        raise ValueError(f"data.env_id: {env_id!r} is a {type(factory).__name__}, not a class or function")
    return factory  # type: ignore[no-any-return]


def is_found_without_import(env_id: str, is_trusted: Callable[[str], bool]) -> bool:
    """Return True if looking an environment up imports no module but those that the user trusts.

    Args:
        env_id: A registered id, or a dotted path.
        is_trusted: Returns True for a module that the user trusts.
    """
    if env_id.startswith(_MAKE_OTHERS):
        return False
    module, _, registered_id = env_id.rpartition(":")
    is_an_id = not module and ("." not in registered_id or registered_id in gym.registry)
    return is_an_id or is_trusted(module or env_id)


def env_name(env_id: EnvSource) -> str:
    """What an environment is called in checkpoints and messages: its id, or the name of its class or function.

    Args:
        env_id: See :data:`EnvSource`.
    """
    if isinstance(env_id, str | EnvSpec):
        return env_id if isinstance(env_id, str) else env_id.id
    return getattr(env_id, "__qualname__", type(env_id).__qualname__)


def make_env(
    env_id: EnvSource, kwargs: Mapping[str, Any], wrappers: Sequence[Wrapper] = (), mask_key: str | None = None
) -> gym.Env[Any, Any]:
    """Makes one environment whose observations are arrays and whose actions are discrete.

    Discrete observations become one-hot vectors, Dict and Tuple observations one flat vector
    (:class:`gymnasium.wrappers.FlattenObservation`); Box observations keep their shape and dtype.

    Args:
        env_id: See :data:`EnvSource`.
        kwargs: Arguments of the environment.
        wrappers: Put around it in order, the last outermost.
        mask_key: Where it says which actions are legal: see :class:`~lightning_dqn.experience.masks.ActionMask`.

    Raises:
        ValueError: If its spaces are not such that a Q-function can act on them, or a wrapper keeps running
            statistics; names the field.
    """
    source = resolve_env(env_id)
    with _naming_fields():
        env = gym.make(source, **kwargs) if isinstance(source, EnvSpec) else source(**kwargs)
    for wrapper in wrappers:
        env = wrapper(env)
    try:
        check_wrappers(env)
        check_spaces(env.observation_space, env.action_space)
        env = CheckedEnv(env)
        if mask_key is not None:
            env = ActionMask(env, mask_key)
    except ValueError:
        env.close()
        raise
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


def check_wrappers(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> None:
    """Refuse wrappers that keep running statistics, wherever they were added.

    Each environment would have statistics of its own, a checkpoint would not contain them, and evaluation would start
    with none.

    Args:
        env: An environment, or several that are stepped together in this process, with all wrappers.

    Raises:
        ValueError: If an attribute of a wrapper is a ``RunningMeanStd``, of Gymnasium or any other class of that name;
            names the wrapper.
    """
    for layer in _layers(env):
        kinds = {kind.__name__ for value in vars(layer).values() for kind in type(value).__mro__}
        if "RunningMeanStd" in kinds:
            raise ValueError(
                f"data.wrappers: {type(layer).__name__} keeps running statistics of its own in every environment, "
                "which are neither saved nor used in evaluation. Use model.torso: lightning_dqn.NormalizedTorso for "
                "observations, data.reward_clip for rewards."
            )


def _layers(env: Any) -> Iterator[Any]:
    yield env
    members = env.envs if isinstance(env, SyncVectorEnv) else ()
    for inner in (getattr(env, "env", None), *members):
        if isinstance(inner, gym.Env | VectorEnv):
            yield from _layers(inner)


def make_envs(
    env_id: EnvSource,
    num_envs: int,
    kwargs: Mapping[str, Any],
    wrappers: Sequence[Wrapper] = (),
    vectorization: Vectorization = "sync",
    mask_key: str | None = None,
) -> VectorEnv[Any, Any, Any]:
    """Makes ``num_envs`` copies of an environment that are stepped together.

    Args:
        env_id: See :data:`EnvSource`.
        num_envs: Number of copies, ``N``.
        kwargs: Arguments of each.
        wrappers: Put around each; not possible with ``native``.
        vectorization: ``sync`` steps them one after the other, ``async`` each in a process of its own, ``native``
            takes the environment's own vector implementation.
        mask_key: Where each says which actions are legal; a native implementation says it in its ``info``.

    Raises:
        ValueError: If there is no native implementation, or it would have to be wrapped, or a wrapper keeps running
            statistics; names the field.
    """
    if vectorization == "native":
        return _make_native(env_id, num_envs, kwargs, wrappers)
    # the registration travels rather than the id: worker processes have not registered the user's environments
    make = partial(make_env, resolve_env(env_id), kwargs, wrappers, mask_key)
    if vectorization == "sync":
        return SerialEnvs([make] * num_envs)
    # by now torch has threads, and a process forked from one with threads can hang
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if method == "forkserver":  # imported once there rather than once in every worker
        multiprocessing.get_context(method).set_forkserver_preload([__name__])
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
        make = partial(gym.make_vec, source, vectorization_mode="vector_entry_point")
    else:
        make = source  # type: ignore[assignment]
    with _naming_fields():
        envs = make(num_envs=num_envs, **kwargs)
    try:
        check_wrappers(envs)
        check_spaces(envs.single_observation_space, envs.single_action_space)
    except ValueError:
        envs.close()
        raise
    if not isinstance(envs.single_observation_space, spaces.Box):
        to_bits = isinstance(envs.single_observation_space, _FLATTENED_TO_BITS)
        envs = gym.wrappers.vector.FlattenObservation(envs)
        if to_bits:
            envs = gym.wrappers.vector.DtypeObservation(envs, np.int8)
    return envs


@contextmanager
def _naming_fields() -> Iterator[None]:
    try:
        yield
    except gym.error.DependencyNotInstalled as missing:
        raise ValueError(f"data.env_id: {missing}") from missing
    except TypeError as mistaken:
        if "unexpected keyword argument" not in str(mistaken):
            raise
        raise ValueError(f"data.env_kwargs: {mistaken}") from mistaken


def close_envs(envs: VectorEnv[Any, Any, Any]) -> None:
    """Closes vector environments, also those of which a process has died or does not answer."""
    if not isinstance(envs, AsyncVectorEnv):
        return envs.close()
    with suppress(OSError, EOFError):
        if envs._state == AsyncState.DEFAULT:
            return envs.close()
    # a step was cut short: gymnasium would wait for ever for answers that never come
    for process in envs.processes:
        process.kill()
        process.join()
    envs.closed = True
    return None
