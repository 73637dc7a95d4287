"""A signal at any iteration: what is saved goes on to the same end, bit for bit."""

import functools
import signal
import time

import numpy as np
import pytest

from lightning_dqn.checkpoint_file import read_checkpoint
from lightning_dqn.cli import DQNCLI
from tests.reliability.interrupting import Raise, RaiseInStep
from tests.reliability.test_resume import arguments, fit, rows

ITERATIONS = 6  # of an epoch of 96 steps, 16 at a time


@pytest.fixture(autouse=True)
def _handler_left_as_it_was():
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def raising(iteration, name):
    return (
        "--trainer.callbacks=[{class_path: tests.reliability.interrupting.Raise, "
        f"init_args: {{iteration: {iteration}, name: {name}}}}}]"
    )


def check(folder, algorithm, num_envs, iteration, name, whole=None, more=()):
    """Raises a signal, goes on from what was saved, and compares with a run that had none.

    Returns:
        Seconds from the signal until the run had ended.
    """
    if whole is None:
        whole = fit(arguments(algorithm, num_envs, folder / "whole", 4, more)), rows(folder / "whole", 4)
    code = {"SIGTERM": 128 + signal.SIGTERM, "SIGINT": 130}[name]
    with pytest.raises(SystemExit) as ended:
        DQNCLI(arguments(algorithm, num_envs, folder / "first", 4, [*more, raising(iteration, name)]))
    took = time.time() - Raise.raised
    assert ended.value.code == code
    path = f"--ckpt_path={folder / 'first' / 'latest' / 'latest.ckpt'}"
    resumed = fit([*arguments(algorithm, num_envs, folder / "second", 4, more), path])
    assert (resumed, rows(folder / "first", 4) + rows(folder / "second", 4)) == whole
    return took


def check_saving(folder, algorithm, num_envs, iteration, whole):
    """Raises the signal to save, which must change nothing, and goes on from what was saved.

    Returns:
        Seconds from the signal until the checkpoint was written.
    """
    # no other checkpoint than the one that is asked for
    more = [raising(iteration, "SIGUSR1"), "--checkpoint_latest.every_n_epochs=100"]
    assert (fit(arguments(algorithm, num_envs, folder / "saving", 4, more)), rows(folder / "saving", 4)) == whole
    path = folder / "saving" / "latest" / "latest.ckpt"
    took = path.stat().st_mtime - Raise.raised
    step = read_checkpoint(path)["global_step"]
    assert step == iteration + (2 if (iteration + 1) % ITERATIONS == 0 else 1)  # a validation that is due comes first
    resumed = fit([*arguments(algorithm, num_envs, folder / "resumed", 4), f"--ckpt_path={path}"])
    assert resumed == whole[0]
    logged = rows(folder / "resumed", 4)
    assert logged == whole[1][-len(logged) :]
    assert int(logged[0]["step"]) == step
    return took


# within the first epoch, on the last iteration of an epoch, the first of one, and within the last
@pytest.mark.parametrize(
    ("iteration", "name"),
    [
        (2, "SIGTERM"),
        (12, "SIGINT"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((5, "SIGTERM"), (5, "SIGINT"), (20, "SIGTERM"))),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, iteration, name):
    check(tmp_path, "noisy", 3, iteration, name)


@pytest.mark.slow
@pytest.mark.parametrize("iteration", [2, 5, 12])
def test_stopped_run_without_validation_resumes_exactly(tmp_path, iteration):
    check(tmp_path, "noisy", 3, iteration, "SIGTERM", more=["--trainer.limit_val_batches=0"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of Rainbow without a signal, and its rows."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(arguments("rainbow", 4, folder, 4)), rows(folder, 4)


@pytest.fixture(scope="module")
def tally():
    """Counts what went on to the same end, and how long each signal took."""
    seconds = {}
    yield seconds
    for name, took in seconds.items():
        print(f"\n{name}: {len(took)} of {len(took)} went on to the same end, saved in {max(took):.2f} s at most")


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(50))
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_at_any_iteration(tmp_path, whole, tally, name, repetition):
    iteration = int(np.random.default_rng().integers(4 * ITERATIONS - 1))
    if name == "SIGUSR1":
        took = check_saving(tmp_path, "rainbow", 4, iteration, whole)
    else:
        took = check(tmp_path, "rainbow", 4, iteration, name, whole)
    assert took < 10
    tally.setdefault(name, []).append(took)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Return a run without a signal, and its rows, by ``log_every_n_steps``."""

    @functools.cache
    def whole(log_every):
        folder = tmp_path_factory.mktemp("whole")
        more = [f"--trainer.log_every_n_steps={log_every}"]
        return fit(arguments("double_dqn", 2, folder, 4, more)), rows(folder, 4)

    return whole


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(30))
def test_rows_after_a_stop_at_any_iteration_equal_those_of_a_run_without_one(tmp_path, wholes, tally, repetition):
    rng = np.random.default_rng()
    iteration, name = int(rng.integers(4 * ITERATIONS - 1)), str(rng.choice(["SIGTERM", "SIGINT"]))
    log_every = (1, 2, 3, 7, 50)[repetition % 5]
    more = [f"--trainer.log_every_n_steps={log_every}"]
    took = check(tmp_path, "double_dqn", 2, iteration, name, wholes(log_every), more)
    tally.setdefault("stops with log_every_n_steps of 1 to 50", []).append(took)


@pytest.mark.parametrize(
    "iteration", [pytest.param(8, marks=pytest.mark.slow), 11]
)  # within an epoch, and on the last iteration of one
def test_a_signal_to_save_changes_nothing_else(tmp_path, iteration):
    whole = fit(arguments("noisy", 3, tmp_path / "whole", 4)), rows(tmp_path / "whole", 4)
    check_saving(tmp_path, "noisy", 3, iteration, whole)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_before_the_first_update_ends_the_run_within_a_step(tmp_path, monkeypatch, caplog, name, code):
    monkeypatch.setattr(RaiseInStep, "taken", 0)
    kind = "tests.reliability.interrupting.RaiseInStep"
    more = [
        f"--data.wrappers=[{{class_path: {kind}, init_args: {{step: 50, name: {name}}}}}]",
        "--data.learning_starts=300",
    ]
    with pytest.raises(SystemExit) as ended:
        DQNCLI(arguments("double_dqn", 3, tmp_path, 4, more))
    assert ended.value.code == code
    assert RaiseInStep.taken <= 51
    assert not list(tmp_path.rglob("*.ckpt"))
    assert "nothing was saved" in caplog.text


def test_a_signal_to_save_waits_for_the_first_update(tmp_path, monkeypatch):
    monkeypatch.setattr(RaiseInStep, "taken", 0)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nobody listens yet, and by default it ends the process
    kind = "tests.reliability.interrupting.RaiseInStep"
    whole = fit(arguments("double_dqn", 3, tmp_path / "whole", 2))
    wrapped = f"--data.wrappers=[{{class_path: {kind}, init_args: {{step: 20, name: SIGUSR1}}}}]"
    more = [wrapped, "--checkpoint_latest.every_n_epochs=100"]
    assert fit(arguments("double_dqn", 3, tmp_path / "saving", 2, more)) == whole
    path = tmp_path / "saving" / "latest" / "latest.ckpt"
    assert fit([*arguments("double_dqn", 3, tmp_path / "resumed", 2), f"--ckpt_path={path}"]) == whole
