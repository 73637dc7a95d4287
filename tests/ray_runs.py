"""Commands on a Ray cluster of two machines, both of which are this one."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.runs import QUIET, SMALL

NOTES = '''
import os, signal, time
from pathlib import Path
import ray, torch
from lightning.pytorch import Callback

class Notes(Callback):
    """Leaves what a rank came to; dies or dawdles on its way there if it is told to."""

    def __init__(self, die_at: int = -1, who: int = 1, pause: float = 0.0):
        self.die_at, self.who, self.pause = die_at, who, pause

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        time.sleep(self.pause)
        died = Path("died")
        if trainer.global_step == self.die_at and trainer.global_rank == self.who and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_fit_end(self, trainer, pl_module):
        buffer = trainer.datamodule.buffer.state_arrays()
        torch.save({
            "weights": pl_module.state_dict(),
            "buffer": {name: torch.from_numpy(array.copy()) for name, array in buffer.items()},
            "env_steps": trainer.datamodule.env_steps,
            "node": ray.get_runtime_context().get_node_id(),
            "draw": torch.rand(4),
        }, f"rank{trainer.global_rank}.pt")
'''
CONFIG = ["--config", "cartpole", *SMALL, *QUIET, "--video=null", "--curve=null", "--seed_everything=1"]
LOGGER = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: runs, name: small}}"


@contextlib.contextmanager
def two_nodes():
    """A cluster whose machines have a core each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def pids_of(node, name):
    """Processes of a machine, by what they are: ``gcs_server``, ``raylet``."""
    return [info.process.pid for info in node.all_processes[name]]


def start(folder, cluster, *arguments, **notes):
    """Begins ``python -m lightning_dqn.ray`` in a folder; what it says goes to ``said.txt``."""
    folder.mkdir(exist_ok=True)
    (folder / "notes.py").write_text(NOTES)
    callback = json.dumps({"class_path": "notes.Notes", "init_args": notes})
    arguments = [*arguments, f"--trainer.callbacks={callback}"]
    if arguments[0] == "fit":
        arguments.append(LOGGER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "RAY_ADDRESS": cluster.address}
    said = (folder / "said.txt").open("a")
    command = [sys.executable, "-m", "lightning_dqn.ray", *arguments]
    return subprocess.Popen(command, stdout=said, stderr=said, cwd=folder, env=environment, start_new_session=True)


def said_in(folder):
    return (folder / "said.txt").read_text()


def wait_for(condition, process=None, seconds=180):
    """Waits until something is so, while a process lives."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"the command has ended with {process.returncode}")
        if time.monotonic() > end:
            pytest.fail("nothing happened")
        time.sleep(0.2)


def processes_of(session, title):
    """Processes of a cluster whose title begins so, such as ``ray::RayTrainWorker``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().startswith(title)
            if named and session in (path / "environ").read_bytes().decode(errors="replace"):
                found.append(int(path.name))
    return found
