"""What an environment returns is what its spaces say: else it is said what is not, before anyone learns from it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

_NUMBERS = frozenset((float, int, np.float64, np.float32))
_FLAGS = frozenset((bool, np.bool_))


class CheckedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses observations, rewards and flags that are not what they should be.

    Shapes and kinds of numbers are looked at, and integers outside those of the space, which would become others when
    they are stored. Floats outside a Box's bounds are let pass: bounds are often rough, and nothing here relies on
    them. That floats are finite is for :class:`~lightning_dqn.experience.stepping.SeededEnvs` to see, of all
    environments at once.

    Args:
        env: The environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        self._array = (space.dtype, space.shape) if isinstance(space, spaces.Box) else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Raises:
            TypeError: If what comes back is not what a reset returns; says what.
            ValueError: If the observation is not in the space; says how.
        """
        returned = self.env.reset(seed=seed, options=options)
        _check_tuple(returned, "reset", 2)
        observation, info = returned
        self._check(observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step.

        Raises:
            TypeError: If what comes back is not what a step returns; says what.
            ValueError: If the observation is not in the space; says how.
        """
        returned = self.env.step(action)
        if type(returned) is tuple and len(returned) == 5:
            observation, reward, terminated, truncated, info = returned
            if (  # the usual, at once: this is asked at every step of every environment
                type(observation) is np.ndarray
                and (observation.dtype, observation.shape) == self._array
                and type(reward) in _NUMBERS
                and type(terminated) in _FLAGS
                and type(truncated) in _FLAGS
                and type(info) is dict
            ):
                return returned
        _check_tuple(returned, "step", 5)
        observation, reward, terminated, truncated, info = returned
        self._check(observation, info)
        if type(reward) not in _NUMBERS and not _is_number(reward, "biuf"):
            raise TypeError(f"its reward is not one number but {_short(reward)}")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if type(flag) not in _FLAGS and not (_is_number(flag, "biu") and flag in (0, 1)):
                raise TypeError(f"its {name} is not true or false but {_short(flag)}")
        return returned

    def _check(self, observation: Any, info: Any) -> None:
        if not isinstance(info, dict):
            raise TypeError(f"its info is not a dict but {_short(info)}")
        problem = _problem(self.env.observation_space, observation)
        if problem is None and self._array is not None:
            dtype, needed = np.asarray(observation).dtype, self._array[0]
            if not np.can_cast(dtype, needed, "same_kind"):
                problem = f"is of {dtype}, which does not become {needed} by itself"
        if problem:
            raise ValueError(f"its observation {problem}")


def check_batch(num_envs: int, reward: Any, terminated: Any, truncated: Any) -> None:
    """Refuses rewards and flags of a native vector environment that are not one for each of its members.

    Args:
        num_envs: How many members.
        reward: To be ``[N]``.
        terminated: To be ``[N]``, bool.
        truncated: To be ``[N]``, bool.

    Raises:
        ValueError: If they are not; names which.
    """
    for name, value in (("reward", reward), ("terminated", terminated), ("truncated", truncated)):
        what, kinds = ("numbers", "biuf") if name == "reward" else ("bools", "b")
        if not (isinstance(value, np.ndarray) and value.shape == (num_envs,) and value.dtype.kind in kinds):
            raise ValueError(f"the environments' {name} is {_short(value)}, not an array of {num_envs} {what}")


def check_observations(space: gym.Space[Any], num_envs: int, observation: Any) -> None:
    """Refuses observations of a native vector environment that are not what its space says.

    Args:
        space: Of one observation, a Box.
        num_envs: How many members.
        observation: To be ``[N, *O]``.

    Raises:
        ValueError: If it is not; says how.
    """
    assert space.shape is not None
    shape = (num_envs, *space.shape)
    if isinstance(observation, np.ndarray) and (observation.dtype, observation.shape) == (space.dtype, shape):
        return
    problem = _array_problem(np.dtype(space.dtype), shape, observation)
    if problem or not isinstance(observation, np.ndarray):
        raise ValueError(f"the environments' observation {problem or 'is no array'}")


def _check_tuple(returned: Any, name: str, length: int) -> None:
    if not (isinstance(returned, tuple) and len(returned) == length):
        raise TypeError(f"its {name} returned {_short(returned)}, not a tuple of {length}")


def _problem(space: gym.Space[Any], value: Any) -> str | None:
    """How a value is not in a space; ``None`` if it can be taken for one that is."""
    if isinstance(space, spaces.Box):
        return _array_problem(np.dtype(space.dtype), space.shape, value)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        kind = dict if isinstance(space, spaces.Dict) else tuple
        if not isinstance(value, kind) or len(value) != len(space.spaces):
            return f"is {_short(value)}, not in {space}"
        parts: dict[Any, gym.Space[Any]] = dict(
            space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        )
        for key, part in parts.items():
            problem = _problem(part, value[key]) if kind is tuple or key in value else "is missing"
            if problem:
                return f"{problem}, in {key!r}"
        return None
    return None if space.contains(value) else f"is {_short(value)}, not in {space}"


def _array_problem(dtype: np.dtype[Any], shape: tuple[int, ...], value: Any) -> str | None:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return f"is {_short(value)}, not an array"
    if array.dtype.kind not in "biuf":
        return f"is {_short(value)}, not numbers"
    if array.shape != shape:
        return f"has shape {array.shape}, not {shape}"
    if dtype.kind in "biu" and array.dtype != dtype:
        with np.errstate(invalid="ignore"):
            same = array == array.astype(dtype)
        if not same.all():
            return f"holds {array[~same].flat[0]}, which is no {dtype}"
    return None


def is_finite(value: Any) -> bool:
    """Whether a value is one number, and neither NaN nor infinite.

    Args:
        value: Anything.
    """
    return _is_number(value, "biuf") and bool(np.isfinite(value))


def _is_number(value: Any, kinds: str) -> bool:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return False
    return array.dtype.kind in kinds and array.shape == ()


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
