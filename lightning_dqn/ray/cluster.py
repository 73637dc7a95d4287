"""Which Ray instance a process works with: the one that is there, or one of its own for as long as it takes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

import ray


def connect() -> Callable[[], None]:
    """Sees to it that Ray can be used from this process.

    A process that is connected already stays so. Else ``RAY_ADDRESS`` says where the cluster is; without it, Ray is
    started here, on this machine alone, quietly and without telling its makers.

    Returns:
        What undoes it: nothing for who was connected before, else the connection, and the instance started here, end.
    """
    if ray.is_initialized():
        return _leave_it
    handler = signal.getsignal(signal.SIGTERM)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # where this process is killed, Ray's helpers look for the rest of Ray for a minute before they end
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():  # Ray has put its own in the place of the Trainer's
        signal.signal(signal.SIGTERM, handler)
    return ray.shutdown


def _leave_it() -> None:
    pass
