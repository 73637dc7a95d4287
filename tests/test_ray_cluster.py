"""Which Ray instance a process works with; each case in a process of its own."""

import os
import subprocess
import sys


def run(code, **variables):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | variables,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


STARTED_HERE = """
import signal
import ray
from lightning_dqn.ray.cluster import connect

mine = lambda *args: None
signal.signal(signal.SIGTERM, mine)
disconnect = connect()
assert ray.is_initialized()
assert signal.getsignal(signal.SIGTERM) is mine

within = connect()  # what is connected stays so
within()
assert ray.is_initialized()
disconnect()
assert not ray.is_initialized()
"""


def test_ray_is_started_quietly_for_who_has_none_and_ends_with_who_started_it():
    done = run(STARTED_HERE, RAY_ADDRESS="")
    assert done.stdout == ""
    assert "Started a local Ray instance" not in done.stderr
