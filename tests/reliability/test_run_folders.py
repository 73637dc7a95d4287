"""Runs that start at the same moment, runs that are killed and runs of several ranks: each has a folder of its own."""

import fcntl
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_dqn.cli import main
from lightning_dqn.files import is_held
from lightning_dqn.loggers import read_rows

ROOT = Path(__file__).parents[2]
ROUNDS, STARTS = 50, 4
GIVEN = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: runs, name: small, version: 0}}"

pytestmark = pytest.mark.slow


def arguments(*more):
    """A run of two epochs and 192 environment steps."""
    return [
        "fit",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: runs, name: small}}",
        "--data.env_id=CartPole-v1",
        "--data.learning_starts=64",
        "--data.steps_per_epoch=64",
        "--data.train_frequency=16",
        "--data.eval_episodes=2",
        "--data.max_eval_steps=20",
        "--video=null",
        "--curve=null",
        *more,
    ]


def run_at_once(folder, seed, barrier):
    os.chdir(folder)
    sys.argv[1:] = []  # LightningCLI warns of arguments given twice
    with Path(f"said{seed}.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        barrier.wait()
        main(arguments(f"--seed_everything={seed}"))


def start_together(folder):
    """Run ``STARTS`` commands from the same moment on, in processes that have imported everything already."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(STARTS)
    runs = [context.Process(target=run_at_once, args=(folder, seed, barrier)) for seed in range(STARTS)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()


def in_a_process(folder, command, timeout=300):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_runs_started_together_have_folders_of_their_own(tmp_path):
    """The helper process has no threads that a fork would lose."""
    ended = in_a_process(ROOT, ["-m", "tests.reliability.test_run_folders", str(tmp_path)], 3600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for k in range(ROUNDS):
        said = "\n".join(path.read_text() for path in (tmp_path / f"round{k}").glob("said*.txt"))
        folders = sorted((tmp_path / f"round{k}" / "runs" / "small").iterdir())
        assert [folder.name for folder in folders] == [f"version_{n}" for n in range(STARTS)], said
        seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
        assert sorted(seeds) == list(range(STARTS))
        for folder in folders:
            assert (folder / "checkpoints" / "latest.ckpt").is_file()
            assert [row["env_steps"] for row in read_rows(folder / "metrics.csv") if "val/return" in row] == [
                "128.0",
                "192.0",
            ]
    print(f"\n{ROUNDS} of {ROUNDS} times {STARTS} starts at once: {STARTS} folders")


def test_folder_of_a_killed_run_is_free(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-m", "lightning_dqn", *arguments("--trainer.max_epochs=1000000")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "runs" / "small" / "version_0"
    while not (folder / "metrics.csv").is_file():
        assert first.poll() is None
    assert is_held(folder)
    refused = in_a_process(tmp_path, ["-m", "lightning_dqn", *arguments(GIVEN)])
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: trainer.logger: the folder is in use by another run")
    first.kill()
    first.wait()
    assert not is_held(folder)
    assert in_a_process(tmp_path, ["-m", "lightning_dqn", *arguments()]).returncode == 0
    assert in_a_process(tmp_path, ["-m", "lightning_dqn", *arguments(GIVEN)]).returncode == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == ["version_0", "version_1"]


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_run_of_several_ranks_has_one_folder(tmp_path, launcher):
    start = ["-m", "torch.distributed.run", "--nproc_per_node=2"] if launcher == "torchrun" else []
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.steps_per_epoch=256"]
    ended = in_a_process(tmp_path, [*start, "-m", "lightning_dqn", *arguments(*ranks)])
    assert ended.returncode == 0, ended.stderr[-3000:]
    (folder,) = (tmp_path / "runs" / "small").iterdir()
    assert folder.name == "version_0"
    assert "val/return" in (folder / "metrics.csv").read_text()


def test_refused_run_of_several_ranks_ends_all_of_them(tmp_path):
    folder = tmp_path / "runs" / "small" / "version_0"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    # the output ends when the last rank that writes to it has ended
    ended = in_a_process(
        tmp_path, ["-m", "lightning_dqn", *arguments("--trainer.devices=2", "--trainer.strategy=ddp", GIVEN)]
    )
    os.close(descriptor)
    assert ended.returncode == 1
    assert "error: trainer.logger: the folder is in use by another run" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(folder.iterdir())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for k in range(ROUNDS):
        start_together(Path(sys.argv[1]) / f"round{k}")
