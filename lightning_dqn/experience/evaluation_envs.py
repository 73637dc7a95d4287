"""The environments that evaluation episodes are played in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymnasium.vector import VectorEnv

from lightning_dqn.experience.autoreset import members_reset_alone
from lightning_dqn.experience.envs import Vectorization, close_envs


class EvaluationEnvs:
    """Made when they are first asked for, and kept until they are closed.

    Args:
        make: Makes so many environments, stepped together in such a way.
        count: How many.
        vectorization: That of training.
        is_registered: Whether there is another form than the native one.
        mask_key: Where in ``info`` they say which actions are legal; ``None``: all are, always.
    """

    def __init__(
        self,
        make: Callable[[int, Vectorization], VectorEnv[Any, Any, Any]],
        count: int,
        vectorization: Vectorization,
        is_registered: bool,
        mask_key: str | None = None,
    ) -> None:
        self._make = make
        self._count = count
        self._vectorization = vectorization
        self._is_registered = is_registered
        self._mask_key = mask_key
        self._envs: VectorEnv[Any, Any, Any] | None = None

    def open(self) -> VectorEnv[Any, Any, Any]:
        """The environments.

        Raises:
            ValueError: If the environment cannot be made; names the field.
        """
        if self._envs is None:
            if self._vectorization == "native" and self._is_registered:
                self._envs = self._native_or_sync()
            else:
                self._envs = self._make(self._count, self._vectorization)
        return self._envs

    def close(self) -> None:
        """Closes them, if there are any."""
        if self._envs is not None:
            close_envs(self._envs)
        self._envs = None

    def _native_or_sync(self) -> VectorEnv[Any, Any, Any]:
        """Native if its members can be reset one by one, else sync."""
        envs = self._make(max(self._count, 2), "native")  # of one alone nothing can be said
        alone = False
        try:
            alone = members_reset_alone(envs, self._mask_key)
        finally:
            if not alone:
                envs.close()
        return envs if alone else self._make(self._count, "sync")
