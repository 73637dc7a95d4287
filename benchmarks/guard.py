"""Whether training has come to take more Python: calls of functions in an iteration, also beside those of a bare loop.

Times on a shared machine vary by more than what is to be noticed; calls do not vary at all. Two runs of different
lengths are counted and subtracted, so set-up does not count. Fails if a count, or its ratio to that of the hand-written
loop of ``overhead.py``, is more than 15 % above what ``guard.json`` says, or if the two have done unequal work.

    python benchmarks/guard.py
    python benchmarks/guard.py --update    # after a change that is worth it
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from overhead import run_loop, run_trainer

ALLOWED = 1.15
KNOWN = Path(__file__).with_name("guard.json")
WORKLOADS = {
    "1 environment, 1 update in 1 step": {"num_envs": 1, "train_frequency": 1, "gradient_steps": 1},
    "1 environment, 8 updates in 80 steps": {"num_envs": 1, "train_frequency": 80, "gradient_steps": 8},
    "16 environments, 8 updates in 32 steps": {"num_envs": 16, "train_frequency": 32, "gradient_steps": 8},
}
ITERATIONS = 20, 60
"""Of the shorter and of the longer run."""

Run = Callable[[argparse.Namespace], tuple[float, int, int]]


def count_calls(run: Run, options: argparse.Namespace) -> tuple[int, tuple[int, int]]:
    """Calls of Python's and of C's functions in a run, and the gradient steps and environment steps it has taken."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        _, *work = run(options)
    finally:
        sys.setprofile(None)
    return calls, (work[0], work[1])


def calls_per_iteration(run: Run, workload: dict[str, int]) -> tuple[float, tuple[int, int]]:
    """Calls of an iteration, and what the longer run has done."""
    counted = []
    for iterations in ITERATIONS:
        env_steps = iterations * workload["train_frequency"]
        settings = {
            **workload,
            "learning_starts": 16,
            "batch_size": 16,
            "hidden_sizes": [16],
            "epochs": 1,
            "env_steps": env_steps,
        }
        counted.append(count_calls(run, argparse.Namespace(**settings)))
    (shorter, _), (longer, work) = counted
    return (longer - shorter) / (ITERATIONS[1] - ITERATIONS[0]), work


def main() -> int:
    """Counts, prints a table in Markdown, and says by its exit code whether all is as it was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="take what is counted for what is right")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    calls_per_iteration(run_trainer, {"num_envs": 1, "train_frequency": 1, "gradient_steps": 1})  # first times differ
    known = {} if options.update else json.loads(KNOWN.read_text())
    found, grown = {}, []
    print("| an iteration | calls | before | times a bare loop's | before |\n|---|---|---|---|---|")
    for name, workload in WORKLOADS.items():
        trainer, did = calls_per_iteration(run_trainer, workload)
        loop, had_to = calls_per_iteration(run_loop, workload)
        assert did == had_to, f"unequal work: {did} against {had_to}"
        found[name] = {"calls": round(trainer), "ratio": round(trainer / loop, 3)}
        before = known.get(name, found[name])
        print(f"| {name} | {trainer:.0f} | {before['calls']} | {trainer / loop:.2f} | {before['ratio']:.2f} |")
        grown += [f"{name}: {what}" for what in before if found[name][what] > ALLOWED * before[what]]
    if options.update:
        KNOWN.write_text(json.dumps(found, indent=2) + "\n")
    for what in grown:
        print(f"more than {ALLOWED:g} times what it was: {what}", file=sys.stderr)
    return bool(grown)


if __name__ == "__main__":
    sys.exit(main())
