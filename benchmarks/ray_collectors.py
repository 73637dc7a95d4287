"""What Ray collectors bring where environments cost time, beside the in-process collector with and without overlap.

Every environment step takes a millisecond, either of a processor (``busy``) or of waiting for somebody else
(``sleeping``, such as a simulator that runs elsewhere). All learn the same: eight updates of a small network for 64
steps. Time is that of the iterations alone, some way into the run: starting Ray and its actors takes seconds, once. The
kinds take turns; the speed of a kind is the median over the turns.

    python benchmarks/ray_collectors.py
    python benchmarks/ray_collectors.py --kinds "in process" "2 Ray actors" --turns 5 --env-steps 16000
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from lightning_dqn import DQNLightningModule, ExperienceCollector, ExperienceDataModule, MLPTorso, ReplayBuffer
from lightning_dqn.ray import RayCollector
from lightning_dqn.ray.cluster import connect

COST = 1e-3
NUM_ENVS, FREQUENCY, UPDATES = 8, 64, 8
SKIPPED = 20
"""Iterations before the clock starts: what was asked for while actors started has come in by then."""
KINDS: dict[str, Callable[[], ExperienceCollector]] = {
    "in process": ExperienceCollector,
    "in process, overlap": partial(ExperienceCollector, overlap=True),
    "1 Ray actor": partial(RayCollector, num_actors=1),
    "2 Ray actors": partial(RayCollector, num_actors=2),
}


class Costly(gym.Env[Any, Any]):
    """Takes its time for every step; episodes are 200 steps.

    Args:
        wait: How.
    """

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, wait: str) -> None:
        self.wait = {"busy": _work, "sleeping": time.sleep}[wait]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode."""
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> Any:
        """Takes a step, and a millisecond."""
        self.wait(COST)
        self.t += 1
        return self.np_random.random(4, np.float32), 1.0, False, self.t == 200, {}


def _work(seconds: float) -> None:
    # processor time, not time by the clock: a core that is shared gives less of it
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Stopwatch(Callback):
    """Times iterations, without those at the beginning."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts the clock."""
        if batch_idx == SKIPPED:
            self.start, self.env_steps = time.perf_counter(), trainer.datamodule.env_steps  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stops it."""
        self.seconds = time.perf_counter() - getattr(self, "start", 0.0)
        self.taken = trainer.datamodule.env_steps - getattr(self, "env_steps", 0)  # type: ignore[attr-defined]


def steps_per_second(kind: str, wait: str, env_steps: int) -> float:
    """Environment steps of a training, in a second.

    Args:
        kind: Of the collector.
        wait: What a step costs.
        env_steps: How many are timed.
    """
    overlaps = "overlap" in kind
    # with overlap an iteration is one step of all environments
    frequency = NUM_ENVS if overlaps else FREQUENCY
    data = ExperienceDataModule(
        partial(Costly, wait),
        num_envs=NUM_ENVS,
        buffer=ReplayBuffer(50_000),
        train_frequency=frequency,
        gradient_steps=UPDATES * frequency // FREQUENCY,
        learning_starts=128,
        steps_per_epoch=SKIPPED * frequency + env_steps,
        seed=0,
    )
    model = DQNLightningModule(
        data.observation_shape, data.num_actions, torso=partial(MLPTorso, hidden_sizes=(120, 84))
    )
    watch, collector = Stopwatch(), KINDS[kind]()
    callbacks: list[Callback] = [collector, watch]
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=callbacks,
    ).fit(model, data)
    return float(watch.taken / watch.seconds)


def main() -> None:
    """Measures, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--waits", nargs="+", choices=("busy", "sleeping"), default=["busy", "sleeping"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--env-steps", type=int, default=6_400)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    disconnect = connect()
    print("| a step costs 1 ms | steps/s, median | each turn | times in process |\n|---|---|---|---|")
    for wait in options.waits:
        found: dict[str, list[float]] = {kind: [] for kind in options.kinds}
        for _ in range(options.turns):
            for kind in options.kinds:
                found[kind].append(steps_per_second(kind, wait, options.env_steps))
        for kind, speeds in found.items():
            median, base = (statistics.median(found[name]) for name in (kind, options.kinds[0]))
            each = ", ".join(f"{speed:.0f}" for speed in speeds)
            print(f"| {wait}: {kind} | {median:.0f} | {each} | {median / base:.2f} |", flush=True)
    disconnect()


if __name__ == "__main__":
    main()
