"""How long it takes from the command to the first batch, beside the imports that nobody can do without.

The command is ``lightning-dqn fit --config cartpole``, loggers, random warm-up and all, ended where it begins to learn.
The other imports Lightning, Gymnasium and W&B, and makes the environment. They take turns, each in a new process.

    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

IMPORTS = "import lightning.pytorch, gymnasium, wandb; gymnasium.make('CartPole-v1')"
COMMAND = ["-m", "lightning_dqn", "fit", "--config", "cartpole", "--trainer.callbacks+=startup.EndAtFirstBatch"]


class EndAtFirstBatch(Callback):
    """Ends the process where the first batch would be learned from."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Ends it at once, with nothing cleaned up: that is not part of the start."""
        os._exit(0)


def measure(*arguments: str) -> tuple[float, float]:
    """Seconds on the clock and of processors until a process has ended."""
    environment = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": str(Path(__file__).parent)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    measure("-c", IMPORTS), measure(*COMMAND)  # files of both into the system's memory
    turns = [(measure("-c", IMPORTS), measure(*COMMAND)) for _ in range(options.repetitions)]
    print("| | seconds | range | of processors | range |\n|---|---|---|---|---|")
    for i, name in enumerate(("imports and an environment", "`lightning-dqn fit` to its first batch")):
        cells = [name]
        for kind in range(2):
            times = [turn[i][kind] for turn in turns]
            cells += [f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}"]
        print(f"| {' | '.join(cells)} |")
    for kind, name in enumerate(("seconds", "processor time")):
        ratios = [turn[1][kind] / turn[0][kind] for turn in turns]
        print(f"\n{name}: {statistics.median(ratios):.2f} times, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
