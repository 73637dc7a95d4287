"""The four small tasks of the RL Zoo's table for DQN, at its budgets, with the shipped configurations.

Every run is the plain command in a process of its own. The score of a seed is the mean of 100 greedy episodes with the
*last* weights; a task's is the interquartile mean over its seeds, with a 95 % interval from a percentile bootstrap over
them. A run that is already in the folder is not repeated, so an interrupted benchmark goes on.

    python benchmarks/classic_control.py
    python benchmarks/classic_control.py --tasks cartpole acrobot --jobs 2
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from learning_curve import train

from lightning_dqn.apps.statistics import estimate, interquartile_mean

# mean return of one trained agent, https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md
ZOO_DQN = {"cartpole": 500.0, "acrobot": -76.6, "mountaincar": -100.8, "lunarlander": 154.4}


def main() -> None:
    """Runs every seed of every task and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=ZOO_DQN, default=list(ZOO_DQN))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/classic_control"))
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = {
            task: [pool.submit(train, task, seed, options.folder, []) for seed in range(options.seeds)]
            for task in options.tasks
        }
    print(
        "| task | env steps | RL Zoo DQN | IQM | 95 % interval | seeds | seconds a run |\n|---|---|---|---|---|---|---|"
    )
    for task in options.tasks:
        runs = [job.result() for job in jobs[task]]
        scores = np.array([returns[-1] for _, returns, _ in runs])
        iqm = estimate(interquartile_mean, scores[:, None])
        seeds, seconds = ", ".join(f"{score:.1f}" for score in scores), np.median([seconds for _, _, seconds in runs])
        steps = f"{runs[0][0][-1]:,.0f}"
        print(f"| {task} | {steps} | {ZOO_DQN[task]} | {iqm.value:.1f} | {iqm.interval()} | {seeds} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
