"""How a native vector environment starts episodes: whether its members reset one by one, and whether it does so right.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

ENOUGH = 6
"""Comparisons before a conclusion: with 16 other observations, chance deceives one time in 70,000."""

_WITHIN_THE_STEP = (
    "data.vectorization: this native vector environment resets within the step that ends an episode, which "
    "hides the last observation; make it with next-step autoreset"
)
_TWICE = (
    "data.vectorization: this native vector environment is reset after the end of an episode and resets itself once "
    "more on the next step, which loses that step; drop its own reset when it is reset, or use sync or async"
)
_NOT_AT_ALL = (
    "data.vectorization: this native vector environment does not reset itself on the step after the end of an episode, "
    "and its members do not reset alone; make it with next-step autoreset, or use sync or async"
)
_OTHERS_TOO = (
    "data.vectorization: this native vector environment says that it resets_alone, but a reset of one member starts "
    "the others again; make it honour reset_mask, or use sync or async"
)


def members_reset_alone(envs: VectorEnv[Any, Any, Any], mask_key: str | None = None) -> bool:
    """Whether a native environment's members can be reset one by one: as it says itself, or found out by trying.

    Args:
        envs: The environment; it says so by an attribute ``resets_alone``.
        mask_key: Where in ``info`` it says which actions are legal; ``None``: all are, always.

    Raises:
        ValueError: If they cannot and do not reset themselves on the step after the end either.
    """
    declared: bool | None = getattr(envs, "resets_alone", None)
    if declared is not None:
        return declared
    # the environment's own attribute first: the metadata dictionary can be shared between classes and be stale
    mode = getattr(envs.unwrapped, "autoreset_mode", envs.metadata.get("autoreset_mode"))
    if mode == AutoresetMode.SAME_STEP:
        raise ValueError(_WITHIN_THE_STEP)
    alone = envs.num_envs == 1 or _leaves_others_alone(envs, mask_key)
    if not alone and mode == AutoresetMode.DISABLED:
        raise ValueError(
            "data.vectorization: this native vector environment neither resets by itself nor some of its members "
            "alone; use sync or async"
        )
    return alone


class FirstObservations:
    """A sample of first observations that tells which other observations are like them.

    An observation is like them if as many of its numbers lie in the range of the sample's first half as of the least
    usual one in the second half, so nothing is assumed of how they are distributed.

    Args:
        sample: ``[n, *O]``.
    """

    def __init__(self, sample: NDArray[Any]) -> None:
        early, late = np.array_split(sample.reshape(len(sample), -1), 2)
        low, high = early.min(axis=0).astype(np.float64), early.max(axis=0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            margin = (high - low) / 2
        self._low, self._high = low - margin, high + margin
        self._least = self._numbers_in_range(late).min()

    def are_like(self, observation: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which observations are like the sample.

        Args:
            observation: ``[n, *O]``.
        """
        return np.asarray(self._numbers_in_range(observation) >= self._least)

    def _numbers_in_range(self, observation: NDArray[Any]) -> NDArray[np.int64]:
        numbers = observation.reshape(len(observation), -1)
        return np.asarray(((numbers >= self._low) & (numbers <= self._high)).sum(axis=1))


class ResetCheck:
    """A check that tells from the first ends of episodes whether a native environment resets as a run relies on.

    Whatever the environment declares, under next-step autoreset the observation after an end is a first one. After an
    explicit reset the observation of the first step is no more like a first one than after any other reset. An
    observation at an end that is a first one comes from a reset within the step.

    Args:
        num_envs: Members of the environment, ``N``.
        resets_alone: Whether its members are reset explicitly; if not, it resets itself on the step after the end.

    Attributes:
        first: The sample of first observations; ``None`` where the environment gave none.
        was_stepped_past_ends: Whether the probe at set-up saw an end and stepped on.
        at_end: For each end, whether the observation is like a first one.
        after_end: The same for each step after an end without an explicit reset.
        after_reset: The same for each first step after the explicit reset that followed an end.
        first_steps: The same for each first step after another reset.
        others: The same for members that were elsewhere before another member was reset.
        depends: For steps within episodes (``within``), at their ends (``last``) and after these (``after``), whether
            the observation depends on the action.
        repeats: For each first step after an explicit reset that followed an end, whether it is as after the same reset
            elsewhere.
    """

    def __init__(self, num_envs: int, resets_alone: bool) -> None:
        self.resets_alone = resets_alone
        self.first: FirstObservations | None = None
        self.was_stepped_past_ends = False
        self.at_end: list[bool] = []
        self.after_end: list[bool] = []
        self.after_reset: list[bool] = []
        self.first_steps: list[bool] = []
        self.others: list[bool] = []
        self.depends: dict[str, list[bool]] = {"within": [], "last": [], "after": []}
        self.repeats: list[bool] = []
        self._num_envs = num_envs
        self._problem: str | None = None
        self.restart()

    @property
    def is_complete(self) -> bool:
        """Whether enough ends were seen."""
        following = self.after_reset if self.resets_alone else self.after_end
        return min(len(self.at_end), len(following)) >= ENOUGH

    @property
    def is_clear(self) -> bool:
        """Whether first observations differ from others so clearly that a wrong reset would have been seen."""
        if not (_none(self.at_end) and _none(self.first_steps)):
            return False
        return _none(self.after_reset) if self.resets_alone else _all(self.after_end)

    def restart(self) -> None:
        """Note that all members were reset."""
        self._ended = np.zeros(self._num_envs, np.bool_)

    def observe(
        self,
        observation: NDArray[Any],
        done: NDArray[np.bool_],
        info: dict[str, Any],
        explicit: bool | None = None,
    ) -> None:
        """Take a step into account.

        Args:
            observation: Where it led, ``[N, *O]``.
            done: Whether the environment ended an episode there, ``[N]``, bool.
            info: What the environment added.
            explicit: Whether the members whose episodes ended in the step before were reset explicitly since; if not
                given, ``resets_alone``.
        """
        explicit = self.resets_alone if explicit is None else explicit
        if _hides_observations(info, observation, done):
            self._problem = self._problem or _WITHIN_THE_STEP
        if not self.resets_alone and (self._ended & done).any():
            self._problem = self._problem or _NOT_AT_ALL
        if done.any() or self._ended.any():
            like = self.are_first(observation)
            if explicit:  # a step that ends an episode was taken, and is no reset
                self.after_reset.extend((like & ~done)[self._ended].tolist())
            else:  # without a reset, an environment may say again and again that its episode has ended
                self.after_end.extend(like[self._ended & ~done].tolist())
                done = done & ~self._ended
            self.at_end.extend(like[done].tolist())
        self._ended = done

    def are_first(self, observation: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which observations are like first ones, ``[N]``; none where these are not known.

        Args:
            observation: ``[N, *O]``.
        """
        return np.zeros(len(observation), np.bool_) if self.first is None else self.first.are_like(observation)

    def refuse(self) -> None:
        """Refuse the environment if what was seen leaves no doubt that it resets wrong.

        Raises:
            ValueError: Says what it does.
        """
        problem = self._problem
        if problem is None and self.first is not None:
            problem = self._problem_of_explicit_resets() if self.resets_alone else self._problem_of_own_resets()
        if problem is not None:
            raise ValueError(problem)

    def _problem_of_explicit_resets(self) -> str | None:
        if _all(self.others):
            return _OTHERS_TOO
        if self._resets_within_the_step():
            return _WITHIN_THE_STEP
        is_swallowed = _all(self.after_reset) and _none(self.first_steps)
        # two random starts may be alike, but after a right reset all steps would be
        is_another = _mostly([not same for same in self.repeats])
        return _TWICE if is_swallowed or is_another else None

    def _problem_of_own_resets(self) -> str | None:
        if self._resets_within_the_step():
            return _WITHIN_THE_STEP
        # the action alone is no proof: it may change how many random numbers are drawn before the reset
        acts = _mostly(self.depends["after"]) and _mostly([not like for like in self.after_end])
        return _NOT_AT_ALL if acts or _none(self.after_end) else None

    def _resets_within_the_step(self) -> bool:
        depends = self.depends
        if _mostly(depends["within"]) and _none(depends["last"]) and _mostly(depends["after"]):
            return True
        # one that breaks down after an end has not reset itself; where no end was seen at set-up, none can be tried
        steps_on = _none(self.after_end) or not self.was_stepped_past_ends
        return steps_on and _all(self.at_end) and _none(self.first_steps)


def _leaves_others_alone(envs: VectorEnv[Any, Any, Any], mask_key: str | None) -> bool:
    """Whether a masked reset of the first environment leaves the others as they are."""
    mask = np.zeros(envs.num_envs, np.bool_)
    mask[0] = True
    seeds: list[int | None] = [1] + [None] * (envs.num_envs - 1)
    rng = np.random.default_rng(0)
    try:
        first, info = envs.reset(seed=0)
        first = first.copy()
        for _ in range(100):
            before, *_, info = envs.step(random_actions(envs, legal_actions(envs, info, mask_key), rng))
            before = before.copy()
            if (before[1:] != first[1:]).any():  # only one that has left its start shows whether it was sent back
                after, _ = envs.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]
                return bool((before[1:] == after[1:]).all())
    except Exception:
        return False
    return False


def legal_actions(envs: VectorEnv[Any, Any, Any], info: dict[str, Any], mask_key: str | None) -> NDArray[np.bool_]:
    """Return which actions of a native environment are legal, ``[N, A]``; all of them where it does not say.

    Args:
        envs: The environment.
        info: What it said last.
        mask_key: Where in ``info`` it says which actions are legal; ``None``: all are, always.
    """
    space = envs.single_action_space
    assert isinstance(space, spaces.Discrete)
    everything = np.ones((envs.num_envs, space.n), np.bool_)
    return everything if mask_key not in info else np.array(info[mask_key], np.bool_)


def random_actions(
    envs: VectorEnv[Any, Any, Any], legal: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a legal action for each member, ``[N]``, because an environment may break down at an illegal one.

    Args:
        envs: The environment.
        legal: Which actions are, ``[N, A]``.
        rng: The generator to draw from.
    """
    space = envs.single_action_space
    assert isinstance(space, spaces.Discrete)
    return np.asarray(space.start + (legal * rng.random(legal.shape)).argmax(axis=1))


def _hides_observations(info: dict[str, Any], observation: NDArray[Any], done: NDArray[np.bool_]) -> bool:
    """Return whether ``info`` has the last observation of an episode, and another was returned."""
    for key in ("final_obs", "final_observation"):
        final = info.get(key, ())
        for i in np.flatnonzero(done) if len(final) == len(done) else ():
            if np.shape(final[i]) == observation[i].shape and not np.array_equal(final[i], observation[i]):
                return True
    return False


def _all(seen: Sequence[bool]) -> bool:
    return len(seen) >= ENOUGH and all(seen)


def _none(seen: Sequence[bool]) -> bool:
    return len(seen) >= ENOUGH and not any(seen)


def _mostly(seen: Sequence[bool]) -> bool:
    return len(seen) >= ENOUGH and 2 * sum(seen) > len(seen)
