"""Environments that die, hang or break down: noticed in time, and named."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import TimeoutError as NoAnswer
from typing import Any, TypeVar

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

T = TypeVar("T")


class EnvironmentFailure(RuntimeError):
    """An environment did not do what it was asked for.

    Attributes:
        index: Which of the vector environment's members; ``None`` where that cannot be told.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[type[EnvironmentFailure], tuple[str, int | None]]:
        return type(self), (str(self), self.index)


def step_in_time(envs: VectorEnv[Any, Any, Any], action: Any, timeout: float) -> Any:
    """Takes a step; environments in processes of their own must answer in time.

    Args:
        envs: The environments.
        action: What to do.
        timeout: Seconds.

    Raises:
        multiprocessing.TimeoutError: If one does not answer.
    """
    if not isinstance(envs, AsyncVectorEnv):
        return envs.step(action)
    envs.step_async(action)
    return envs.step_wait(timeout)


def reset_in_time(envs: VectorEnv[Any, Any, Any], timeout: float, **kwargs: Any) -> Any:
    """Starts episodes; environments in processes of their own must answer in time.

    Args:
        envs: The environments.
        timeout: Seconds.
        **kwargs: ``seed`` and ``options``, see :meth:`gymnasium.vector.VectorEnv.reset`.

    Raises:
        multiprocessing.TimeoutError: If one does not answer.
    """
    if not isinstance(envs, AsyncVectorEnv):
        return envs.reset(**kwargs)
    envs.reset_async(**kwargs)
    return envs.reset_wait(timeout)


def naming_failures(
    envs: VectorEnv[Any, Any, Any], timeout: float, whereabouts: Callable[[int], str], ask: Callable[[], T]
) -> T:
    """Asks environments for something, and says which of them failed, should one do so.

    Args:
        envs: The environments.
        timeout: How long ``ask`` waits, in seconds.
        whereabouts: Says of a member where in its episode it is.
        ask: What to ask for.

    Raises:
        EnvironmentFailure: Whatever went wrong.
        ValueError: If it was a setting (``data. ...``) that the environment cannot serve.
    """
    try:
        return ask()
    except Exception as error:
        index = _who_failed(envs, error)
        if str(error).startswith("data."):  # a setting that does not fit, already named
            if index is None:
                raise
            raise ValueError(f"{error} (environment {index} at {whereabouts(index)})") from error
        which = "an environment" if index is None else f"environment {index}"
        if isinstance(error, NoAnswer):
            what = f"did not answer within {timeout:g} seconds (data.env_timeout)"
        elif isinstance(error, EOFError | OSError) and isinstance(envs, AsyncVectorEnv):
            what = "died"
        else:
            what = f"broke down with {type(error).__name__}: {error};"
        where = "" if index is None else f" at {whereabouts(index)}"
        raise EnvironmentFailure(f"{which} {what}{where}", index) from error


def _who_failed(envs: VectorEnv[Any, Any, Any], error: Exception) -> int | None:
    if isinstance(envs, SyncVectorEnv):
        return _index_in_loop(envs, error)
    if not isinstance(envs, AsyncVectorEnv):
        return None
    pipes: list[Any] = list(envs.parent_pipes)
    for i, (process, pipe) in enumerate(zip(envs.processes, pipes, strict=True)):
        if pipe is None:  # gymnasium's mark of an environment that raised
            return i
        if isinstance(error, EOFError | OSError):
            process.join(0.5)  # it may be just about to end
            if not process.is_alive():
                return i
        if isinstance(error, NoAnswer) and not pipe.poll(0):
            process.kill()  # closing the environments would wait for it
            return i
    return None


def _index_in_loop(envs: SyncVectorEnv, error: Exception) -> int | None:
    trace = error.__traceback__
    while trace is not None:
        local = trace.tb_frame.f_locals
        if local.get("self") is envs and isinstance(local.get("i"), int):
            return int(local["i"])
        trace = trace.tb_next
    return None
