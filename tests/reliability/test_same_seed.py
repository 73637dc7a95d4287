"""The same seed three times, each in a process of its own: the same run, bit for bit, on a CPU."""

import sys
from pathlib import Path

import pytest

from tests.reliability.test_resume import ALGORITHMS, arguments, digest, fit, in_a_process, rows

RUNS = 3
TOLD = "network", "optimizer", "replay", "episodes", "generators", "torch"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-dqn"])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def check(folder, algorithm, num_envs, epochs):
    """Hashes of weights, target, optimizer, replay, generators and all else that a run leaves, and its rows."""
    runs = []
    for run in range(RUNS):
        found = in_a_process(arguments(algorithm, num_envs, folder / str(run), epochs))
        runs.append(found | {"rows": digest(rows(folder / str(run), epochs))})
    assert runs[1:] == runs[:-1]
    other = fit(arguments(algorithm, num_envs, folder / "other", epochs, ["--seed_everything=4"]))
    # hashes that do not tell seeds from each other would show nothing
    assert all(other[name] != runs[0][name] for name in TOLD)
    print(f"\n{algorithm}, {num_envs} environments: {RUNS} of {RUNS} the same in {len(runs[0])} hashes")


@pytest.mark.parametrize(("algorithm", "num_envs"), [("rainbow", 4)])
def test_one_seed_is_one_run(tmp_path, algorithm, num_envs):
    check(tmp_path, algorithm, num_envs, 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_so_it_is_for_every_algorithm(tmp_path, algorithm, num_envs):
    check(tmp_path, algorithm, num_envs, 3)
