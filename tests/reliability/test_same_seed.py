"""The same seed again and again, each time in a process of its own: the same run, bit for bit, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reliability.test_resume import ALGORITHMS, arguments, digest, fit, in_a_process, rows

RUNS = 3
TOLD = "network", "optimizer", "replay", "episodes", "generators", "torch"
CASES = [(algorithm, num_envs) for algorithm in ALGORITHMS for num_envs in (1, 4)]
EPOCHS = 3


def hashes(train, algorithm, num_envs, folder, epochs):
    """Hashes of weights, target, optimizer, replay, generators and all else that a run leaves, and its rows."""
    return train(arguments(algorithm, num_envs, folder, epochs)) | {"rows": digest(rows(folder, epochs))}


def check(runs, algorithm, num_envs, folder, epochs):
    assert runs[1:] == runs[:-1]
    other = fit(arguments(algorithm, num_envs, folder / "other", epochs, ["--seed_everything=4"]))
    # hashes that do not tell seeds from each other would show nothing
    assert all(other[name] != runs[0][name] for name in TOLD)
    print(f"\n{algorithm}, {num_envs} environments: {len(runs)} of {len(runs)} the same in {len(runs[0])} hashes")


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "num_envs"), [("rainbow", 4)])
def test_one_seed_is_one_run(tmp_path, algorithm, num_envs):
    runs = [hashes(in_a_process, algorithm, num_envs, tmp_path / str(run), 1) for run in range(2)]
    check(runs, algorithm, num_envs, tmp_path, 1)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """All cases in each of three processes, in another order each; hashes by case."""
    found = []
    for run in range(RUNS):
        folder = tmp_path_factory.mktemp("run")
        ended = subprocess.run(
            [sys.executable, "-m", __name__, str(folder), str(run)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=os.environ | {"WANDB_MODE": "disabled"},
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        found.append(json.loads(ended.stdout.splitlines()[-1]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "num_envs"), CASES)
def test_so_it_is_for_every_algorithm(tmp_path, processes, algorithm, num_envs):
    check([run[f"{algorithm} {num_envs}"] for run in processes], algorithm, num_envs, tmp_path, EPOCHS)


def main(folder, seed):
    """Prints the hashes of all cases, taken in the order of a seed."""
    order = np.random.default_rng(int(seed)).permutation(len(CASES))
    found = {}
    for algorithm, num_envs in (CASES[i] for i in order):
        home = Path(folder) / f"{algorithm}{num_envs}"
        found[f"{algorithm} {num_envs}"] = hashes(fit, algorithm, num_envs, home, EPOCHS)
    print(json.dumps(found))


if __name__ == "__main__":
    folder, seed = sys.argv[1:]
    sys.argv[1:] = []
    main(folder, seed)
