"""Whether the members of a native vector environment can be reset one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv


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
        raise ValueError(
            "data.vectorization: this native vector environment resets within the step that ends an episode, which "
            "hides the last observation; make it with next-step autoreset"
        )
    alone = envs.num_envs == 1 or _leaves_others_alone(envs, mask_key)
    if not alone and mode == AutoresetMode.DISABLED:
        raise ValueError(
            "data.vectorization: this native vector environment neither resets by itself nor some of its members "
            "alone; use sync or async"
        )
    return alone


def _leaves_others_alone(envs: VectorEnv[Any, Any, Any], mask_key: str | None) -> bool:
    """Whether a masked reset of the first environment leaves the others as they are."""
    mask = np.zeros(envs.num_envs, np.bool_)
    mask[0] = True
    seeds: list[int | None] = [1] + [None] * (envs.num_envs - 1)
    rng = np.random.default_rng(0)
    space = envs.single_action_space
    assert isinstance(space, spaces.Discrete)
    try:
        first, info = envs.reset(seed=0)
        first = first.copy()
        for _ in range(100):
            # an environment may break down at an illegal action
            legal = info.get(mask_key or "", np.ones((envs.num_envs, space.n)))
            before, *_, info = envs.step(space.start + (legal * rng.random(np.shape(legal))).argmax(axis=1))
            before = before.copy()
            if (before[1:] != first[1:]).any():  # only one that has left its start shows whether it was sent back
                after, _ = envs.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]
                return bool((before[1:] == after[1:]).all())
    except Exception:
        return False
    return False
