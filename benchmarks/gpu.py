"""Updates per second, Atari from end to end, and memory on an accelerator, each beside its floor on the same device.

An update is that of a shipped preset at its paper's size (84 x 84 x 4 images, 18 actions), through ``Trainer.fit``, its
minibatches on the device already. Its floor is the time of its floating-point operations at the rate of a large matrix
product in the same precision, or of the bytes it must move at the rate of a large copy, whichever is longer; both rates
are measured beside it (``floors.py`` says what is counted). From end to end is the configuration ``atari`` without
logging and evaluation, with one update for four steps however many environments there are; its floor is the same
environments stepped at random and the floor of the updates in between.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --precision bf16-mixed --tf32
    python benchmarks/gpu.py --compiled
    python benchmarks/gpu.py --compiled --presets --num-envs 256 --storage-device cuda
    python benchmarks/gpu.py --device cpu --updates 1 --repetitions 1 --batch-size 4 --env-steps 64
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import lightning
import numpy as np
import torch
from floors import count_work, measure_rates, now
from gymnasium import spaces
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from lightning_dqn import ReplayBatch, Transition
from lightning_dqn.cli import DQNCLI
from lightning_dqn.shipped import shipped_configs

# arguments, minibatch, and how many updates follow one another: as the papers and configs/env/atari.yaml have it
PRESETS = {
    "Nature": (["--config=double_dqn", "--model.torso=lightning_dqn.NatureTorso"], 32, 8),
    "Rainbow": (["--config=rainbow_atari"], 32, 8),
    "BTR": (["--config=btr"], 256, 1),
}
FUSED = ["--model.optimizer=torch.optim.Adam", "--model.optimizer.init_args.fused=true"]
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
ATARI = "Atari DQN, env steps per second"
STEPS_PER_UPDATE = 4  # as configs/env/atari.yaml has it


class Screens(gym.Env[NDArray[np.uint8], np.int64]):
    """Says what an Atari game looks like, and is never played."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = spaces.Discrete(18)


class Row(NamedTuple):
    """One line of the table: speeds per second, memory in bytes, each beside its floor."""

    what: str
    speed: float
    best_speed: float
    memory: int | None
    least_memory: float


class Batches:
    """The same minibatches again and again, on the device already."""

    def __init__(self, batch: ReplayBatch, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[ReplayBatch]:
        for _ in range(self.count):
            yield self.batch


class Clock(Callback):
    """Takes the time of equally long parts of a run, the first left out.

    Args:
        device: Waited for before each look at the clock.
        batches: Of one part.
    """

    def __init__(self, device: torch.device, batches: int) -> None:
        self.device, self.batches = device, batches
        self.moments: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Looks at the clock where a part ends."""
        if trainer.global_step % self.batches == 0:
            if not self.moments and self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.moments.append(now(self.device))

    @property
    def seconds(self) -> float:
        """The median time of a part."""
        return statistics.median(np.diff(self.moments).tolist())

    @property
    def memory(self) -> int | None:
        """The most that was allocated since the first part, in bytes; ``None`` on a CPU, where torch does not count."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


def make_batch(updates: int, batch_size: int, num_actions: int, device: torch.device) -> ReplayBatch:
    """Random images and rewards, ``[K, B, ...]``."""
    rows = (updates, batch_size)
    observation, following = torch.randint(256, (2, *rows, 4, 84, 84), dtype=torch.uint8, device=device)
    action, reward = torch.randint(num_actions, rows, device=device), torch.randn(rows, device=device)
    ones = torch.ones(rows, device=device)
    return ReplayBatch(Transition(observation, action, reward, 0.97 * ones, following), action, ones)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those of a Trainer that does nothing but train."""
    return {
        "accelerator": "gpu" if options.device == "cuda" else "cpu",
        "devices": 1,
        "precision": options.precision,
        "max_epochs": 1,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def measure_updates(name: str, options: argparse.Namespace) -> Row:
    """Updates of a preset through the Trainer."""
    arguments, batch_size, together = PRESETS[name]
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    batch_size = options.batch_size or batch_size
    compiled = f"--model.compile_updates={str(options.compiled).lower()}"
    cli = DQNCLI([*FUSED, *arguments, compiled, "--data.env_id=gpu.Screens"], run=False)
    model, batch = cli.model.to(device), make_batch(together, batch_size, 18, device)
    work, rates = count_work(model, batch, dtype), measure_rates(device, dtype)
    batches, parts = -(-options.updates // together), 1 + options.repetitions
    clock = Clock(device, batches)
    trainer = Trainer(**settings(options), gradient_clip_val=cli.trainer.gradient_clip_val, callbacks=[clock])
    trainer.fit(model, Batches(batch, batches * parts))
    assert model.gradient_steps == batches * together * parts
    what = f"{name}, minibatches of {batch_size}, updates per second"
    return Row(what, batches * together / clock.seconds, 1 / work.seconds(rates), clock.memory, work.kept)


def measure_atari(options: argparse.Namespace, folder: str) -> Row | str:
    """Environment steps of DQN on Atari through the Trainer, with its files in a folder, or why there are none."""
    if importlib.util.find_spec("ale_py") is None or "atari" not in shipped_configs():
        return f"{ATARI}: needs the atari extra"
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    parts = 1 + options.repetitions
    changed = {f"trainer.{name}": value for name, value in settings(options).items()} | {
        "model.compile_updates": options.compiled,
        "data.num_envs": options.num_envs,
        "data.train_frequency": options.num_envs,
        "data.gradient_steps": options.num_envs // STEPS_PER_UPDATE,
        "data.storage_device": options.storage_device,
        "data.learning_starts": 32,
        "data.buffer.capacity": 50_000,
        "data.batch_size": options.batch_size or 32,
        "data.steps_per_epoch": parts * options.env_steps,
    }
    arguments = [f"--{name}={str(value).lower()}" for name, value in changed.items()]
    cli = DQNCLI(["--config=atari", *arguments, f"--trainer.default_root_dir={folder}"], run=False)
    data, model = cli.datamodule, cli.model.to(device)
    work = count_work(model, make_batch(1, data.batch_size, data.num_actions, device), dtype)
    update = work.seconds(measure_rates(device, dtype)) * data.gradient_steps / data.train_frequency
    step = seconds_of_a_random_step(cli, options.env_steps)
    clock = Clock(device, -(-options.env_steps // data.train_frequency))
    cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    cli.trainer.fit(model, datamodule=data)
    speed = clock.batches * data.train_frequency / clock.seconds
    what = f"{ATARI}, {data.num_envs} environments, replay on {data.storage_device}"
    return Row(what, speed, 1 / (step + update), clock.memory, work.kept)


def seconds_of_a_random_step(cli: DQNCLI, env_steps: int) -> float:
    """Seconds of one environment step where nothing is learned and nothing stored."""
    data, rng = cli.datamodule, np.random.default_rng(0)
    envs = data.open()
    envs.reset()
    start = time.perf_counter()
    for _ in range(0, env_steps, data.num_envs):
        envs.step(rng.integers(data.num_actions, size=data.num_envs))
    seconds = time.perf_counter() - start
    data.close()
    return seconds / env_steps


def line(row: Row) -> str:
    """A row in Markdown."""
    mebi = 2**20
    memory = "-" if row.memory is None else f"{row.memory / mebi:,.0f}"
    speeds = f"{row.speed:,.4g} | {row.best_speed:,.4g} | {row.speed / row.best_speed:.0%}"
    return f"| {row.what} | {speeds} | {memory} | {row.least_memory / mebi:,.0f} |"


def main() -> None:
    """Measures on the device and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--precision", choices=DTYPES, default="32-true")
    parser.add_argument("--tf32", action="store_true", help="matrix products in TF32, as convolutions are anyway")
    parser.add_argument("--compiled", action="store_true", help="updates and acting, and captured as CUDA graphs")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the presets' own")
    parser.add_argument("--updates", type=int, default=400, help="of one repetition")
    parser.add_argument("--env-steps", type=int, default=20_000, help="of one repetition; 0 leaves Atari out")
    parser.add_argument("--num-envs", type=int, default=8, help="that Atari is played in; a multiple of 4")
    parser.add_argument("--storage-device", choices=["cuda", "cpu"], default="cpu", help="where Atari's replay lies")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    if options.num_envs < 1 or options.num_envs % STEPS_PER_UPDATE:
        parser.error(f"--num-envs must be a multiple of {STEPS_PER_UPDATE}, got {options.num_envs}")
    warnings.filterwarnings("ignore", module="lightning")
    for talkative in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    if options.tf32:
        torch.set_float32_matmul_precision("high")
    rows: dict[str, Callable[[], Row | str]] = {
        name: partial(measure_updates, name, options) for name in options.presets
    }
    own = tempfile.TemporaryDirectory()  # for what a run leaves behind
    if options.env_steps:
        rows[ATARI] = partial(measure_atari, options, own.name)
    there = options.device == "cpu" or torch.cuda.is_available()
    device = (
        "no GPU here" if not there else torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    )
    print(f"{device}, {options.precision}, torch {torch.__version__}, lightning {lightning.__version__}\n")
    print("| what | measured | floor | share of it | peak MiB | floor MiB |\n|---|---|---|---|---|---|")
    for name, measure in rows.items():
        row = measure() if there else f"{name}: no GPU on this machine, see --device cpu"
        print(line(row) if isinstance(row, Row) else f"| {row} | | | | | |", flush=True)
    own.cleanup()


if __name__ == "__main__":
    main()
