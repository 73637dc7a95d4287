"""Long runs: once the replay is full, memory, open files and processes stay as they are."""

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from PIL import Image

from lightning_dqn.cli import DQNCLI

pytestmark = pytest.mark.slow

MIB = 2**20


class Watch(Callback):
    """Notes what the process holds, every so many environment steps."""

    seen: list[tuple[int, int, int, int]] = []

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, pl_module, *args):
        steps = trainer.datamodule.env_steps
        if steps // self.every > (self.seen[-1][0] if self.seen else 0) // self.every:
            # what the heap holds though it is free differs by 10 MiB from one moment to the next
            ctypes.CDLL(None).malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
            files = len(list(Path("/proc/self/fd").iterdir()))
            self.seen.append((steps, pages * os.sysconf("SC_PAGE_SIZE"), files, children))


def slope_of(steps, memory, lowest_of):
    """How much memory rises in 100,000 steps, in MiB, going by the lowest of each so many moments."""
    whole = len(steps) // lowest_of * lowest_of
    lowest = memory[:whole].reshape(-1, lowest_of).min(axis=1)
    return float(np.polyfit(steps[:whole:lowest_of] / 1e5, lowest / MIB, 1)[0])


def soak(every, full, args, lowest_of=1):
    """Runs a configuration; returns the slope and the growth of memory, in MiB, after ``full`` steps.

    The slope is for 100,000 steps, see :func:`slope_of`; the growth from the median of the first third to that of the
    last.
    """
    Watch.seen = []
    watch = f"{{class_path: {__name__}.Watch, init_args: {{every: {every}}}}}"
    cli = DQNCLI(["fit", *args, f"--trainer.callbacks=[{watch}]", "--trainer.enable_progress_bar=false"])
    steps, memory, files, children = np.array([row for row in Watch.seen if row[0] > full]).T
    slope = slope_of(steps, memory, lowest_of)
    third = len(memory) // 3
    growth = float(np.median(memory[-third:]) - np.median(memory[:third])) / MIB
    print(
        f"\n{args[0]}: {growth:+.2f} MiB, {slope:+.2f} MiB for 100,000 steps over {steps[-1] - steps[0]:,} of them, "
        f"{memory[-1] / MIB:.0f} MiB in all, files {files.min()} to {files.max()}, "
        f"processes {children.min()} to {children.max()}"
    )
    assert files.max() - files.min() <= 1
    assert children.min() == children.max()
    return cli, slope, growth


def test_cartpole_does_not_grow():
    more = ["--data.buffer.capacity=10_000", "--trainer.max_epochs=120", "--trainer.check_val_every_n_epoch=20"]
    _, slope, _ = soak(5_000, 60_000, ["--config=cartpole", "--config=per", *more])
    assert slope < 1


def test_pong_does_not_grow():
    # one small update for 64 steps, so that there is time for as many steps as a slope needs
    more = [
        "--seed_everything=0",
        "--model.torso.hidden_size=16",
        "--data.num_envs=64",
        "--data.buffer.capacity=4_000",
        "--data.batch_size=1",
        "--data.train_frequency=64",
        "--data.gradient_steps=1",
        "--data.learning_starts=4_000",
        "--data.steps_per_epoch=10_048",
        "--data.eval_episodes=1",
        "--data.max_eval_steps=100",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.max_epochs=20",
    ]
    # from after five validations with a checkpoint each, for which much is loaded and made that stays; of ten moments
    # the lowest, as the thread that writes the replay holds 8 MiB of it, or 16, while it does
    cli, slope, _ = soak(640, 60_000, ["--config=atari", *more], lowest_of=10)
    assert cli.datamodule.env_steps > 200_000
    assert len(cli.datamodule.buffer) == 4_000
    assert slope < 1


def test_pong_on_a_cpu_with_checkpoint_and_resume():
    more = [
        "--seed_everything=0",
        "--data.buffer.capacity=4_000",
        "--data.learning_starts=1_000",
        "--data.steps_per_epoch=3_168",
        "--data.eval_episodes=1",
        "--data.max_eval_steps=500",
    ]
    args = ["--config=atari", *more]
    cli, _, growth = soak(500, 10_000, [*args, "--trainer.max_epochs=6"])
    assert cli.datamodule.env_steps == 1_000 + 6 * 3_168
    assert growth < 10  # from one moment to the next it differs by as much
    path = Path("runs/atari/version_0/checkpoints/latest.ckpt")
    assert path.is_file()
    assert path.stat().st_size < 60 * MIB
    assert Image.open("runs/atari/version_0/episode.gif").n_frames > 10
    resumed, *_ = soak(500, 0, [*args, "--trainer.max_epochs=7", f"--ckpt_path={path}"])
    assert resumed.datamodule.env_steps == 1_000 + 7 * 3_168
    assert Watch.seen[0][0] >= 1_000 + 6 * 3_168
