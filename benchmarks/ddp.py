"""What a second rank costs: iterations of two DDP ranks against those of one process that do the same work on each.

An iteration of one process is one step of its environments and ``K`` updates; of two ranks each does as much, and
gradients are averaged. On a machine with a free core for each, the ratio of the two is what DDP costs; where cores are
not free, ranks wait for each other, and the processor time of rank 0 says more. The first iterations are left out. Runs
are interleaved, and the ratio of each pair is taken before the median.

    python benchmarks/ddp.py
    python benchmarks/ddp.py --hidden-sizes 512 512 --batch-size 256
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_dqn import DQNLightningModule, ExperienceDataModule, MLPTorso
from lightning_dqn.ranks import over_ranks

_LEFT_OUT = 100  # iterations, in which caches fill
_ASKED = 1_000


class Clock(Callback):
    """When iterations ended.

    Attributes:
        times: In seconds, of each; by the wall's clock and by the processor's.
    """

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes one."""
        self.times.append((time.perf_counter(), time.process_time()))


def work(options: argparse.Namespace) -> None:
    """One run of so many ranks; rank 0 prints seconds per iteration, of two clocks, and per question to all ranks."""
    seed_everything(0, verbose=False)
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=options.num_envs,
        batch_size=options.batch_size,
        train_frequency=options.num_envs * options.ranks,
        gradient_steps=options.gradient_steps,
        steps_per_epoch=options.num_envs * options.ranks * options.iterations,
    )
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=partial(MLPTorso, hidden_sizes=options.hidden_sizes),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
    )
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu",
        devices=options.ranks,
        strategy="ddp" if options.ranks > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[clock],
    )
    trainer.fit(model, datamodule=data)
    iterations = len(clock.times) - 1 - _LEFT_OUT
    seconds, computing = (
        (last - first) / iterations for first, last in zip(clock.times[_LEFT_OUT], clock.times[-1], strict=True)
    )
    start = time.perf_counter()
    for _ in range(_ASKED):
        over_ranks(trainer, [0, seconds], "max")
    asking = (time.perf_counter() - start) / _ASKED
    if trainer.is_global_zero:
        print(f"seconds {seconds} {computing} {asking}")


def run(ranks: int) -> tuple[float, float, float]:
    """What a run in processes of its own prints."""
    command = [sys.executable, __file__, *sys.argv[1:], "--ranks", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    line = next(line for line in said.splitlines() if line.startswith("seconds "))
    seconds, computing, asking = map(float, line.split()[1:])
    return seconds, computing, asking


def main() -> None:
    """Prints medians over the pairs, and the load of the machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=8, help="of each rank")
    parser.add_argument("--batch-size", type=int, default=64, help="of each rank")
    parser.add_argument("--gradient-steps", type=int, default=8)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--iterations", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.iterations < 2 * _LEFT_OUT:
        parser.error(f"--iterations must be at least {2 * _LEFT_OUT}")
    if options.ranks is not None:
        work(options)
        return
    busy = os.getloadavg()[0]
    pairs = [(run(1), run(2)) for _ in range(options.repetitions)]
    asking = statistics.median(pair[1][2] for pair in pairs) * 1e6
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {busy:.1f} before; torch {torch.__version__}")
    for which, name in enumerate(("on the wall", "of the processor, for rank 0")):
        one, two = (statistics.median(pair[k][which] for pair in pairs) * 1e3 for k in (0, 1))
        ratios = sorted(pair[1][which] / pair[0][which] for pair in pairs)
        spread = f"{statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"an iteration {name}: one process {one:.2f} ms, two ranks {two:.2f} ms, ratio {spread}")
    print(f"one question to all ranks: {asking:.0f} us")


if __name__ == "__main__":
    main()
