"""Native vector environments stepped past ends of episodes at set-up, to see how they reset.

Shapes: ``N`` environments, ``O`` the observation shape.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from lightning_dqn.experience.autoreset import (
    ENOUGH,
    FirstObservations,
    ResetCheck,
    legal_actions,
    members_reset_alone,
    random_actions,
)

_SAMPLE = 32  # first observations
_STEPS = 2_000  # environment steps of each part; where no episode ends within them, the run itself is watched
_ROUNDS = 12

_CHECKS: WeakKeyDictionary[VectorEnv[Any, Any, Any], ResetCheck] = WeakKeyDictionary()


def check_resets(envs: VectorEnv[Any, Any, Any], mask_key: str | None = None) -> ResetCheck:
    """Step a native environment past ends of episodes and refuse it if it resets wrong; do so once for each object.

    Args:
        envs: The environment.
        mask_key: Where in ``info`` it says which actions are legal; ``None``: all are, always.

    Returns:
        What is known of its resets. It is not complete where too few episodes ended.

    Raises:
        ValueError: If it does not reset as a run relies on; says what it does.
    """
    if envs not in _CHECKS:
        check = ResetCheck(envs.num_envs, members_reset_alone(envs, mask_key))
        _Probe(envs, mask_key, check).run()
        _CHECKS[envs] = check
    return _CHECKS[envs]


class _Round(NamedTuple):
    """Episodes from one seed, played past each member's first end.

    Attributes:
        seed: Of the reset of all members.
        actions: Of each step, ``[N]``.
        observations: Where each led, ``[N, *O]``.
        end: The step that ended each member's first episode, ``[N]``, int64; -1: none did.
    """

    seed: int
    actions: list[NDArray[np.int64]]
    observations: list[NDArray[Any]]
    end: NDArray[np.int64]


class _Renewal(NamedTuple):
    """An explicit reset, and the step that followed.

    Attributes:
        done: Which members were reset, ``[N]``, bool.
        seed: What they were given.
        first: What they showed then, ``[N, *O]``.
        action: Of the next step, ``[N]``.
        following: Where it led, ``[N, *O]``.
    """

    done: NDArray[np.bool_]
    seed: int
    first: NDArray[Any]
    action: NDArray[np.int64]
    following: NDArray[Any]


class _Probe:
    """A player of random legal actions that shows a check what a native environment does at the ends of episodes."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], mask_key: str | None, check: ResetCheck) -> None:
        self._envs, self._mask_key, self._check = envs, mask_key, check
        self._num_envs, self._members = envs.num_envs, np.arange(envs.num_envs)
        self._first_action = int(envs.single_action_space.start)  # type: ignore[attr-defined]
        self._steps = max(1, _STEPS // envs.num_envs)
        self._rng = np.random.default_rng(0)
        self._info: dict[str, Any] = {}
        self._rounds: list[_Round] = []
        self._renewals: list[_Renewal] = []
        self._has_short_episodes = True  # so it is taken where an environment breaks down after its first end

    def run(self) -> None:
        """Play, and refuse the environment if it resets wrong."""
        explicit = self._check.resets_alone
        parts = [self._sample_first, self._step_past_ends]
        parts += [self._reset_at_ends, self._vary_actions, self._repeat_resets] if explicit else [self._vary_actions]
        for part in parts:
            # an environment may break down on a step after an end, and a run names what fails in it
            with suppress(Exception):
                part()
            self._check.refuse()
        self._check.restart()

    def _sample_first(self) -> None:
        sample, steps = [], []
        ended = np.zeros(self._num_envs, np.bool_)
        first = self._reset(0)
        for _ in range(-(-_SAMPLE // self._num_envs)):
            sample.append(first)
            following, done = self._step(self._random_actions())
            steps.append(following[~(ended | done)])
            ended, first = done, self._reset(None)
        self._check.first = FirstObservations(np.concatenate(sample))
        self._check.first_steps = self._check.are_first(np.concatenate(steps)).tolist()

    def _step_past_ends(self) -> None:
        left = self._steps
        while left and len(self._rounds) < _ROUNDS and len(self._check.after_end) < ENOUGH:
            self._reset(len(self._rounds))
            played = _Round(len(self._rounds), [], [], np.full(self._num_envs, -1))
            self._rounds.append(played)
            while left and ((played.end < 0) | (played.end >= len(played.actions) - 1)).any():
                played.actions.append(self._random_actions())
                observation, done = self._step(played.actions[-1])
                played.observations.append(observation)
                played.end[(played.end < 0) & done] = len(played.actions) - 1
                left -= 1
                self._check.was_stepped_past_ends |= bool(done.any())
                self._check.observe(observation, done, self._info, explicit=False)
        self._has_short_episodes = len(self._check.at_end) >= ENOUGH

    def _reset_at_ends(self) -> None:
        if not self._has_short_episodes:
            return
        self._reset(None)
        renewal = None
        for _ in range(self._steps):
            action = self._random_actions()
            observation, done = self._step(action)
            self._check.observe(observation, done, self._info)
            if renewal is not None:
                self._renewals.append(_Renewal(*renewal, action, observation))
            if self._check.is_complete:
                break
            seed = int(self._rng.integers(2**31))
            renewal = (done, seed, self._reset_members(observation, done, seed)) if done.any() else None

    def _vary_actions(self) -> None:
        """See on which actions observations depend: on those within episodes, at their ends, or after these."""
        if self._check.is_clear or not self._has_short_episodes:
            return
        for played in self._rounds:
            if all(map(np.array_equal, self._replay(played, np.full(self._num_envs, -1))[0], played.observations)):
                for offset, where in ((-1, "within"), (0, "last"), (1, "after")):
                    at = np.where(played.end > 0, played.end + offset, -1)
                    observations, varied, ended = self._replay(played, at)
                    for i in np.flatnonzero(varied & (ended == (offset == 0))):
                        differs = not np.array_equal(observations[at[i]][i], played.observations[at[i]][i])
                        self._check.depends[where].append(differs)

    def _replay(
        self, played: _Round, at: NDArray[np.int64]
    ) -> tuple[list[NDArray[Any]], NDArray[np.bool_], NDArray[np.bool_]]:
        """Play a round again with another action of each member at one step.

        Returns:
            Observations; whether there was another action, ``[N]``; and whether that step ended an episode, ``[N]``.
        """
        self._reset(played.seed)
        observations = []
        varied, ended = np.zeros((2, self._num_envs), np.bool_)
        for t, action in enumerate(played.actions):
            index = action - self._first_action
            legal = self._legal()
            allowed = legal[self._members, index]  # after another action, those that followed need not be legal
            legal[self._members, index] &= legal.sum(axis=1) == 1
            other = self._random_actions(legal)
            now = (at == t) & (other != action)
            observation, done = self._step(np.where(now | ~allowed, other, action))
            varied, ended = varied | now, np.where(now, done, ended)
            observations.append(observation)
        return observations, varied, ended

    def _repeat_resets(self) -> None:
        """See whether the first step after an end and a reset is as after the same reset within an episode."""
        if self._check.is_clear:
            return
        for renewal in self._renewals:
            (known, same), (known_again, same_again) = self._repeat(renewal, 1), self._repeat(renewal, 2)
            # where two resets within episodes lead to different steps, chance decides and nothing can be said
            known &= known_again & (same == same_again).all(axis=1)
            for i in np.flatnonzero(known):
                self._check.repeats.append(bool(np.array_equal(same[i], renewal.following[i].ravel())))

    def _repeat(self, renewal: _Renewal, steps: int) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        self._reset(renewal.seed // 2 + steps)
        before = np.zeros(self._num_envs, np.bool_)
        for _ in range(steps):
            observation, done = self._step(self._random_actions())
            before |= done
        first = self._reset_members(observation, renewal.done, renewal.seed)
        known = renewal.done & ~before & (first == renewal.first).reshape(self._num_envs, -1).all(axis=1)
        allowed = self._legal()[self._members, renewal.action - self._first_action]
        following, _ = self._step(np.where(allowed, renewal.action, self._random_actions()))
        return known & allowed, following.reshape(self._num_envs, -1)

    def _reset(self, seed: int | None) -> NDArray[Any]:
        self._check.restart()
        observation, self._info = self._envs.reset(seed=seed)
        return np.array(observation)

    def _reset_members(self, before: NDArray[Any], done: NDArray[np.bool_], seed: int) -> NDArray[Any]:
        """Reset some members explicitly, as a run does after an end.

        Args:
            before: What all showed, ``[N, *O]``.
            done: Which members to reset, ``[N]``, bool.
            seed: The seed of each of them.

        Returns:
            What all show then, ``[N, *O]``.
        """
        if self._num_envs == 1:
            observation, self._info = self._envs.reset(seed=seed)
            return np.array(observation)
        legal = self._legal()
        elsewhere = ~done & ~self._check.are_first(before)
        seeds: Any = [seed if ended else None for ended in done]
        observation, self._info = self._envs.reset(seed=seeds, options={"reset_mask": done.copy()})
        self._check.others.extend(self._check.are_first(np.asarray(observation))[elsewhere].tolist())
        if self._mask_key is not None:  # a reset says nothing of those that go on
            self._info = {**self._info, self._mask_key: np.where(done[:, None], self._legal(), legal)}
        return np.array(observation)

    def _step(self, action: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        observation, _, terminated, truncated, self._info = self._envs.step(action)
        return np.array(observation), np.asarray(terminated) | np.asarray(truncated)

    def _random_actions(self, legal: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        return random_actions(self._envs, self._legal() if legal is None else legal, self._rng)

    def _legal(self) -> NDArray[np.bool_]:
        return legal_actions(self._envs, self._info, self._mask_key)
