"""How the cost of training grows with the environments, the batch and the network.

Whole runs of ``Trainer.fit`` as in ``throughput.py``, in which one thing at a time gets larger. Runs of all sizes take
turns; a cost is the median over the turns. The exponent is that of the power of the size that fits the costs best: 0
where size costs nothing, 1 where twice the size costs twice as much. What a larger replay costs is in ``replay.py``:
a run would have to fill it first.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --axes environments --compile
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from throughput import BATCH, Workload, ours, versions

BASE = Workload("CartPole-v1", (120, 84), 1, 8, 8, 10_000, 50, 2.5e-4, 2_000)


class Axis(NamedTuple):
    """What gets larger.

    Attributes:
        sizes: From small to large.
        unit: Of the cost.
        run: Trains at a size; returns seconds for one unit.
    """

    sizes: tuple[int, ...]
    unit: str
    run: Callable[[int, bool], float]


def _of_an_update(workload: Workload, compile_updates: bool, batch_size: int = BATCH) -> float:
    found = ours(workload, compile_updates, batch_size)
    return found["seconds"] / found["updates"]


def _environments(size: int, compile_updates: bool) -> float:
    # one update for 128 steps: what is seen is the stepping
    workload = BASE._replace(num_envs=size, frequency=128 * 8, updates=8, steps=8_192 + 128 * size)
    found = ours(workload, compile_updates)
    return found["seconds"] / found["env_steps"]


def _batch(size: int, compile_updates: bool) -> float:
    return _of_an_update(BASE, compile_updates, size)


def _network(size: int, compile_updates: bool) -> float:
    return _of_an_update(BASE._replace(hidden_sizes=(size, size)), compile_updates)


AXES = {
    "environments": Axis((1, 4, 16, 64, 256), "environment step", _environments),
    "batch": Axis((32, 128, 512, 2_048), "update", _batch),
    "network": Axis((64, 128, 256, 512), "update", _network),
}


def exponent(sizes: tuple[int, ...], costs: list[float]) -> float:
    """Of the power law through the costs, by least squares of logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compiled updates")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"CartPole, 120-84, batch {BATCH}, one update a step, one thread; {versions()}\n")
    print("| what grows | microseconds of one | at each size | exponent |\n|---|---|---|---|", flush=True)
    for name in options.axes:
        axis = AXES[name]
        with contextlib.redirect_stdout(io.StringIO()):  # the progress bar's
            turns = [[axis.run(size, options.compile) for size in axis.sizes] for _ in range(options.repetitions)]
        costs = [1e6 * statistics.median(costs) for costs in zip(*turns, strict=True)]
        cells = ", ".join(f"{size:,}: {cost:,.0f}" for size, cost in zip(axis.sizes, costs, strict=True))
        print(f"| {name} | {axis.unit} | {cells} | {exponent(axis.sizes, costs):.2f} |", flush=True)


if __name__ == "__main__":
    main()
