"""Which Ray instance a process works with; each case in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(code, **variables):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | variables,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


STARTED_HERE = """
import os, signal, subprocess, sys
import ray
from lightning_dqn.ray.cluster import connect

mine = lambda *args: None
signal.signal(signal.SIGTERM, mine)
disconnect = connect()
assert ray.is_initialized()
assert signal.getsignal(signal.SIGTERM) is mine
address = ray.get_runtime_context().gcs_address

within = connect()  # what is connected stays so
within()
assert ray.is_initialized()

code = '''
import ray
from lightning_dqn.ray.cluster import connect
disconnect = connect()
print(ray.get_runtime_context().gcs_address)
disconnect()
assert not ray.is_initialized()
'''
other = subprocess.run(
    [sys.executable, "-c", code], env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True
)
assert other.stdout.split() == [address], other.stdout + other.stderr
assert ray.is_initialized()
disconnect()
assert not ray.is_initialized()
"""


def test_ray_is_started_for_who_has_none_and_used_where_it_is():
    done = run(STARTED_HERE, RAY_ADDRESS="")
    assert done.stdout == ""
    assert "Started a local Ray instance" not in done.stderr
