"""Trains a shipped configuration with several seeds; prints each seed's last score and draws the learning curve.

Every run is the plain command in a process of its own, and its score that of its *last* weights. A run that is already
in the folder is not repeated and one that was interrupted goes on from its last checkpoint; how long that one took as a
whole is not known (nan).

    python benchmarks/learning_curve.py
    python benchmarks/learning_curve.py --config acrobot --threshold -100 --seeds 5
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_dqn.curves import Curve, draw_curves

Points = NDArray[np.float64]
Run = tuple[Points, Points, float]


def train(config: str, seed: int, folder: Path, more: list[str], name: str | None = None) -> Run:
    """Runs one seed, unless it is in the folder already, under ``name`` and its seed.

    Returns:
        Environment steps and validation returns of its evaluations, and the seconds the whole command took, NaN if it
        was interrupted.
    """
    run = folder / f"{name or config}-{seed}"
    if not (run / "seconds").exists():
        goes_on = (run / "checkpoints").exists()
        logger = f"{{class_path: CSVLogger, init_args: {{save_dir: {folder}, name: {run.name}, version: ''}}}}"
        command = [sys.executable, "-m", "lightning_dqn", "fit", "--config", config, "--seed_everything", str(seed)]
        command += ["--trainer.logger", logger, "--trainer.enable_progress_bar", "false"]
        command += ["--ckpt_path", "last_if_any", *more]
        start = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(ended.stderr)
        (run / "seconds").write_text("nan" if goes_on else str(time.monotonic() - start))
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/return")]
    steps = np.array([float(row["env_steps"]) for row in rows])
    returns = np.array([float(row["val/return"]) for row in rows])
    return steps, returns, float((run / "seconds").read_text())


def draw(steps: Points, runs: Points, threshold: float, title: str, out: Path) -> None:
    """Draws every seed thin and their median thick."""
    curves = [Curve(steps, run, "one seed" if k == 0 else None, thin=True) for k, run in enumerate(runs)]
    curves.append(Curve(steps, np.median(runs, axis=0), f"median of {len(runs)} seeds"))
    draw_curves(curves, title, out, {f"solved ({threshold:g})": threshold})


def main() -> None:
    """Runs all seeds, prints a table in Markdown, and saves the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cartpole", help="name of a shipped configuration")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=475.0, help="score at which the environment is solved")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning_curve"))
    parser.add_argument("--out", type=Path, help="picture to write; docs/images/<config>.png if not given")
    parser.add_argument("more", nargs="*", help="further arguments of the command, after --")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(train, options.config, seed, options.folder, options.more) for seed in range(options.seeds)]
        runs = [job.result() for job in jobs]
    curves = np.array([returns for _, returns, _ in runs])
    print("| seed | last weights | best | seconds, start-up included |\n|---|---|---|---|")
    for seed, (_, returns, seconds) in enumerate(runs):
        print(f"| {seed} | {returns[-1]:.1f} | {returns.max():.1f} | {seconds:.0f} |")
    solved = int((curves[:, -1] >= options.threshold).sum())
    print(f"\n{solved} of {len(runs)} seeds at {options.threshold:g} or above with their last weights")
    out = options.out or Path("docs/images") / f"{options.config}.png"
    draw(runs[0][0], curves, options.threshold, f"{options.config}: Double DQN", out)
    print(f"picture in {out}")


if __name__ == "__main__":
    main()
