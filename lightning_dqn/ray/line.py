"""The line between the command and its learners: signals go one way, what is to be printed the other."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_PATIENCE = 5.0  # seconds that a line, on this machine, has for an answer
_LOGGERS = ("lightning.pytorch", "lightning.fabric")


class Line:
    """An actor beside the command, which learners wait at for a signal, and leave what they say with.

    Ray's own way of printing would mix this with what its processes have to say of themselves.
    """

    def __init__(self) -> None:
        self._number = 0
        self._rung = asyncio.Event()
        self._said: list[tuple[int, str]] = []

    async def ring(self, number: int) -> None:
        """Tells everybody who waits, and who comes later.

        Args:
            number: Of a signal.
        """
        self._number = number
        self._rung.set()

    async def wait(self) -> int:
        """The number of the signal, once there is one."""
        await self._rung.wait()
        return self._number

    async def say(self, when: int, text: str) -> None:
        """Leaves text to be printed; what is said first may come in later.

        Args:
            when: It was said, in nanoseconds.
            text: Whole lines.
        """
        self._said.append((when, text))

    async def take(self) -> str:
        """All that was said since the last time."""
        said, self._said = self._said, []
        return "".join(text for _, text in sorted(said))


def open_line() -> Any:
    """Handle of a :class:`Line` on this machine; it ends with this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Line).options(num_cpus=0, scheduling_strategy=here).remote()


def print_said(line: Any) -> None:
    """Prints what there is.

    Args:
        line: Handle of a :class:`Line`.
    """
    with contextlib.suppress(ray.exceptions.RayError):  # of a head that is gone; whoever looks at it will say so
        print(ray.get(line.take.remote(), timeout=_PATIENCE), end="", flush=True)


@contextlib.contextmanager
def speaking(line: Any) -> Iterator[None]:
    """Sends what this process prints, warns of and logs to the command.

    Args:
        line: Handle of a :class:`Line`.
    """
    mouth = _Mouth(line)
    handlers = [handler for name in _LOGGERS for handler in logging.getLogger(name).handlers]
    streams = [handler for handler in handlers if isinstance(handler, logging.StreamHandler)]
    before = [handler.setStream(mouth) for handler in streams]
    try:
        with contextlib.redirect_stdout(mouth), contextlib.redirect_stderr(mouth):
            yield
    finally:
        for handler, stream in zip(streams, before, strict=True):
            handler.setStream(stream)
        mouth.finish()


class _Mouth(io.TextIOBase):
    def __init__(self, line: Any) -> None:
        self._line = line
        self._begun = ""
        self._sent: list[Any] = []

    def write(self, text: str) -> int:
        whole, end, self._begun = (self._begun + text).rpartition("\n")
        if end:
            self._send(whole + end)
        return len(text)

    def finish(self) -> None:
        """Waits until all has arrived."""
        if self._begun:
            self._send(f"{self._begun}\n")
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._sent)

    def _send(self, text: str) -> None:
        on_their_way = ray.wait(self._sent, num_returns=len(self._sent), timeout=0)[1] if self._sent else []
        self._sent = [*on_their_way, self._line.say.remote(time.time_ns(), text)]
