"""The cluster as a command sees it: one that is there or one of this machine, its size, whether its head lives."""

from __future__ import annotations

import os
import re
import socket
from types import TracebackType
from typing import Any

import ray

from lightning_dqn.apps.command import Refusal
from lightning_dqn.ray.cluster import connect

_ADDRESS = re.compile(r"[^/]+:\d+")
_PATIENCE = 3.0  # seconds that the head has for taking a connection


class HeadLost(RuntimeError):
    """The head of the cluster is gone, and with it whoever could start or find anything."""


def is_alive(address: str) -> bool:
    """Whether a head takes connections.

    Args:
        address: ``host:port``.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError:
        return False
    return True


class Cluster:
    """A connection to Ray for as long as a ``with`` block takes.

    See :func:`~lightning_dqn.ray.cluster.connect` for which cluster it is.

    Attributes:
        address: Of the head, as ``host:port``.

    Raises:
        Refusal: If the cluster cannot be reached.
    """

    address: str

    def __enter__(self) -> Cluster:
        """Connects, unless that is done already."""
        where = os.environ.get("RAY_ADDRESS", "")
        if _ADDRESS.fullmatch(where) and not is_alive(where):  # for which Ray would wait for minutes
            raise Refusal(f"RAY_ADDRESS: there is no cluster at {where}; `ray start --head` says where it starts one")
        try:
            self._leave = connect()
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Refusal(f"RAY_ADDRESS: there is no cluster at {where} ({reason})") from error
        here = ray.get_runtime_context()
        self.address = here.gcs_address
        own = next(node for node in _nodes() if node["NodeID"] == here.get_node_id())
        self._own = f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnects, if it was connected here; without a head there is nobody to disconnect from."""
        if not isinstance(error, HeadLost):
            self._leave()

    def is_alive(self) -> bool:
        """Whether the head takes connections, and Ray's process on this machine does."""
        return is_alive(self.address) and is_alive(self._own)

    def require_head(self, cure: str) -> None:
        """Finds out whether there is still somebody to wait for.

        Args:
            cure: What goes on once it is started again.

        Raises:
            HeadLost: If the head, or Ray's process on this machine, is gone.
        """
        if not self.is_alive():
            raise HeadLost(f"Ray's head at {self.address}, or Ray on this machine, is gone; start it, and {cure}")

    def require(self, processes: int, each: dict[str, float], what: str) -> None:
        """Finds out whether so many processes fit into the cluster as it is.

        Args:
            processes: How many.
            each: What each of them takes, such as ``{"CPU": 1.0}``.
            what: Name of the argument that says how many.

        Raises:
            Refusal: If they do not; Ray would wait for machines that nobody is going to bring.
        """
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, amount in each.items():
            if processes * amount > there.get(name, 0.0):
                raise Refusal(
                    f"{what} {processes} of {amount:g} {name} each: the cluster has {there.get(name, 0.0):g} {name}; "
                    f"take fewer, give each less (--{name.lower()}s), or add machines by `ray start --address "
                    f"{self.address}`"
                )


def _nodes() -> list[dict[str, Any]]:
    return list(ray.nodes())  # type: ignore[no-untyped-call]
