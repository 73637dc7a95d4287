"""A job of SLURM that is put back into the queue: saved, asked for once, and gone on with as if nothing had been."""

import signal

import numpy as np
import pytest

from lightning_dqn.cli import DQNCLI
from tests.reliability.test_resume import arguments, fit, rows

ARRAY = {"SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def _job(tmp_path, monkeypatch):
    """The environment of a job with one task, and a ``scontrol`` that ends the job as SLURM's does."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scontrol = tools / "scontrol"
    # SLURM sends SIGTERM to the processes of a job that is requeued, and a while later SIGKILL
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nkill -TERM $PPID\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    one = {"NTASKS": "1", "JOB_ID": "4711", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in one.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same outside of SLURM and without a signal, and its rows."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(arguments("noisy", 3, folder, 3)), rows(folder, 3)


def check(folder, monkeypatch, whole, iteration, array, ckpt_path=()):
    """Signals a job, goes on from what it left, and compares with a run that was not signalled."""
    for name, value in array.items():
        monkeypatch.setenv(name, value)
    signalled = (
        "--trainer.callbacks=[{class_path: tests.reliability.interrupting.Raise, "
        f"init_args: {{iteration: {iteration}, name: SIGUSR1}}}}]"
    )
    with pytest.raises(SystemExit) as ended:
        DQNCLI(arguments("noisy", 3, folder / "job", 3, [signalled]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert (folder / "asked").read_text() == f"requeue {'4700_3' if array else '4711'}\n"
    assert len(list(folder.glob("hpc_ckpt_*.ckpt"))) == 1
    assert (fit(arguments("noisy", 3, folder / "job", 3, ckpt_path)), rows(folder / "job", 3)) == whole
    assert (folder / "asked").read_text().count("\n") == 1


# Lightning finds its own checkpoint of the job; the command line that of the run
@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize(
    ("array", "ckpt_path"),
    [
        pytest.param({}, (), id="job"),
        pytest.param(ARRAY, (), id="array"),
        pytest.param({}, ("--ckpt_path=last_if_any",), id="last"),
    ],
)
def test_a_job_that_is_requeued_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch, whole, array, ckpt_path):
    check(tmp_path, monkeypatch, whole, 8, array, ckpt_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize("repetition", range(20))
def test_at_any_iteration(tmp_path, monkeypatch, whole, repetition):
    iteration = int(np.random.default_rng().integers(16))
    check(tmp_path, monkeypatch, whole, iteration, ARRAY if repetition % 2 else {})
