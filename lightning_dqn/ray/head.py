"""The cluster as a command sees it: one that is there or one of this machine, its size, whether its head lives."""

from __future__ import annotations

import logging
import os
import socket
from types import TracebackType
from typing import Any

import ray

from lightning_dqn.apps.command import Refusal

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

    It is the cluster that ``RAY_ADDRESS`` names; without it, one of this machine alone, which ends with the block.

    Attributes:
        address: Of the head, as ``host:port``.

    Raises:
        Refusal: If the cluster cannot be reached.
    """

    address: str

    def __enter__(self) -> Cluster:
        """Connects, unless that is done already."""
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            where = os.environ.get("RAY_ADDRESS")
            # a dashboard would be half of what is started here; there, whether there is one is settled
            dashboard = None if where else False
            try:
                ray.init(
                    where or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise Refusal(f"RAY_ADDRESS: there is no Ray cluster at {where} ({reason})") from error
        here = ray.get_runtime_context()
        self.address = here.gcs_address
        own = next(node for node in _nodes() if node["NodeID"] == here.get_node_id())
        self._own = f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Disconnects, if it was connected here; without a head there is nobody to disconnect from."""
        if self._is_ours and not isinstance(error, HeadLost):
            ray.shutdown()

    def is_alive(self) -> bool:
        """Whether the head takes connections, and Ray's process on this machine does."""
        return is_alive(self.address) and is_alive(self._own)

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
