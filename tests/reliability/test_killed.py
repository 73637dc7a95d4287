"""``kill -9`` at random moments of a run, again and again: what gets through is the run that was never killed."""

import multiprocessing
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest

from lightning_dqn.checkpoint_file import read_checkpoint
from lightning_dqn.cli import main
from lightning_dqn.experience.checkpoint import read_manifest
from lightning_dqn.loggers import read_rows
from tests.reliability.test_resume import TIMED, arguments, digest

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "gradient_steps", "random_state", "ExperienceDataModule")
OWN_FOLDERS = ("--trainer.logger.version=null", "--checkpoint_latest.dirpath=null", "--checkpoint_best.dirpath=null")


def forked(args):
    """A run in a process that has imported everything already."""
    run = multiprocessing.get_context("fork").Process(target=main, args=(args,))
    run.start()
    return run


class FromTheCommandLine:
    """A run as a user starts it, with the methods of a process of ``multiprocessing``."""

    def __init__(self, args):
        self.process = subprocess.Popen([sys.executable, "-m", "lightning_dqn", *args])
        self.kill = self.process.kill

    @property
    def exitcode(self):
        return self.process.poll()

    def join(self, timeout=None):
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)


def begun(run, folder):
    """Waits until a run has made its folder, one more than there were; returns when that was."""
    before = versions(folder)
    while versions(folder) == before and run.exitcode is None:
        time.sleep(0.001)
    return time.monotonic()


def versions(folder):
    """When each configuration was written: one that is written again is a new run."""
    return {path: path.stat().st_mtime_ns for path in (folder / "log").glob("*/config.yaml")}


def left(folder):
    """What a finished run has left: its state, and its curve."""
    newest = max(folder.rglob("latest.ckpt"), key=lambda path: path.stat().st_mtime)
    checkpoint = read_checkpoint(newest)
    state = {name: digest(checkpoint[name]) for name in STATE}
    state["collector"] = digest(checkpoint["callbacks"]["ExperienceCollector"])
    manifest = read_manifest(newest.parent / checkpoint["replay"]["name"] / "rank0")
    state["replay"] = manifest._replace(run=None)  # all but the run id is the same in both runs
    curve = max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    return state, [{name: value for name, value in row.items() if name not in TIMED} for row in read_rows(curve)]


def interrupted(start, args, folder, seconds, rng, most):
    """Kills a run at random moments until it ends; returns how often, and how often there was a checkpoint."""
    kills = with_checkpoint = 0
    while True:
        run = start([*args, "--ckpt_path=last_if_any"])
        begun(run, folder)
        run.join(rng.uniform(0, seconds) if kills < most else None)
        run.kill()
        run.join()
        if run.exitcode == 0:
            return kills, with_checkpoint
        assert run.exitcode == -signal.SIGKILL
        kills += 1
        with_checkpoint += bool(list(folder.rglob("latest.ckpt")))


def check(start, algorithm, num_envs, folder, count, epochs=12, more=()):
    """Kills until there have been so many kills, however many runs that takes; each must end as if there were none."""

    def of(part):
        return [*arguments(algorithm, num_envs, folder / part, epochs), *more]

    whole = start(of("whole"))
    began = begun(whole, folder / "whole")
    whole.join()
    assert whole.exitcode == 0
    seconds = time.monotonic() - began
    expected = left(folder / "whole")
    rng, kills, with_checkpoint, runs = np.random.default_rng(), 0, 0, 0
    while kills < count:
        part = f"killed{runs}"
        killed, went_on = interrupted(start, of(part), folder / part, seconds, rng, count - kills)
        assert left(folder / part) == expected
        kills, with_checkpoint, runs = kills + killed, with_checkpoint + went_on, runs + 1
    print(
        f"\n{algorithm}: {kills} kills, {with_checkpoint} of them with a checkpoint to go on from; {runs} of {runs} "
        f"runs ended with the same state and the same {len(expected[1])} rows"
    )


# each process with a folder of its own, as by default, or all with the same
@pytest.mark.parametrize("more", [OWN_FOLDERS, pytest.param((), marks=pytest.mark.slow)])
def test_killed_a_run_ends_as_if_it_had_not_been(tmp_path, more):
    check(forked, "rainbow", 4, tmp_path, 1, 6, more)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "num_envs"), [("rainbow", 4), ("double_dqn", 1)])
def test_killed_fifty_times_from_the_command_line(tmp_path, algorithm, num_envs):
    check(FromTheCommandLine, algorithm, num_envs, tmp_path, 25, more=OWN_FOLDERS)


@pytest.mark.slow
def test_killed_a_hundred_times_in_one_folder(tmp_path):
    check(forked, "rainbow", 4, tmp_path, 100)
