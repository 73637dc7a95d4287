"""What the Trainer costs: ``Trainer.fit`` against a hand-written loop over the same buffer, network and environments.

Both take the same environment steps and gradient steps (counted and compared) with the same pieces of this package;
only the loop around them differs. ``Trainer.fit`` runs with the command line's progress bar, CSV logger and checkpoints
on, and its set-up is part of its time. Runs are interleaved, and the ratio of each pair is taken before the median.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --gradient-steps 1 --repetitions 7
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
import warnings
from functools import partial
from operator import itemgetter

import lightning
import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional as F

from lightning_dqn import DQNLightningModule, EpsilonGreedy, ExperienceDataModule, LinearSchedule, MLPTorso
from lightning_dqn.experience.datamodule import RandomStream
from lightning_dqn.watch import ProgressBar

EXPLORER = EpsilonGreedy(LinearSchedule(1.0, 0.05, decay_steps=10_000))


def make(options: argparse.Namespace) -> tuple[DQNLightningModule, ExperienceDataModule]:
    """The same model and data for both loops."""
    torch.manual_seed(0)
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=options.num_envs,
        batch_size=options.batch_size,
        train_frequency=options.train_frequency,
        gradient_steps=options.gradient_steps,
        learning_starts=options.learning_starts,
        steps_per_epoch=options.env_steps // options.epochs,
        seed=0,
    )
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=partial(MLPTorso, hidden_sizes=options.hidden_sizes),
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
    )
    return model, data


def run_trainer(options: argparse.Namespace) -> tuple[float, int, int]:
    """Seconds, gradient steps and environment steps of ``Trainer.fit``."""
    model, data = make(options)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=options.epochs,
            logger=CSVLogger(folder),
            callbacks=[ProgressBar(), ModelCheckpoint(filename="latest", save_on_train_epoch_end=True)],
            limit_val_batches=0,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=data)
        seconds = time.perf_counter() - start
    return seconds, model.gradient_steps, data.env_steps


def run_loop(options: argparse.Namespace) -> tuple[float, int, int]:
    """Seconds, gradient steps and environment steps of a loop as one would write it by hand."""
    model, data = make(options)
    online, target = model.online, model.target
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3, fused=True)
    online_weights: list[torch.Tensor] = list(online.parameters())
    target_weights: list[torch.Tensor] = list(target.parameters())
    start = time.perf_counter()
    envs = data.open()
    explore_rng, replay_rng = data.rng(RandomStream.EXPLORATION), data.rng(RandomStream.REPLAY)
    observation = envs.reset()
    env_steps = gradient_steps = iterations = 0
    total = data.learning_starts + options.epochs * data.iterations_per_epoch * data.train_frequency
    while env_steps < total:
        if env_steps < data.learning_starts:
            action = explore_rng.integers(data.num_actions, size=data.num_envs)
        else:
            with torch.no_grad():
                q_values = online(torch.from_numpy(observation)).q_values.numpy()
            action = EXPLORER(q_values, env_steps, 0, explore_rng)
        step = envs.step(action)
        data.buffer.add(data.accumulator.add(observation, action, *step.outcome, step.next_observation, step.valid))
        observation = step.observation
        env_steps += int(step.valid.sum())
        while data.learning_starts + iterations * data.train_frequency <= min(env_steps, total - 1):
            iterations += 1
            batch = data.buffer.sample(data.gradient_steps, data.batch_size, replay_rng)
            for k in range(data.gradient_steps):
                state, chosen, reward, discount, following, *_ = batch.transition.map(itemgetter(k))
                with torch.no_grad():
                    greedy = online(following).q_values.argmax(1, keepdim=True)
                    returns = reward + discount * target(following).q_values.gather(1, greedy).squeeze(1)
                loss = F.huber_loss(online(state).q_values.gather(1, chosen.unsqueeze(1)).squeeze(1), returns)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                gradient_steps += 1
                with torch.no_grad():
                    torch._foreach_lerp_(target_weights, online_weights, model.target_update_rate)
    seconds = time.perf_counter() - start
    data.close()
    return seconds, gradient_steps, env_steps


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradient-steps", type=int, default=8, help="K, updates per Lightning batch")
    parser.add_argument("--train-frequency", type=int, default=16, help="environment steps per Lightning batch")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--learning-starts", type=int, default=1_000, help="environment steps before the first batch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options_warm = argparse.Namespace(**{**vars(options), "env_steps": 1_000, "epochs": 1})
    run_trainer(options_warm), run_loop(options_warm)
    trainer, loop = [], []
    for _ in range(options.repetitions):
        trainer.append(run_trainer(options))
        loop.append(run_loop(options))
        assert trainer[-1][1:] == loop[-1][1:], f"unequal work: {trainer[-1]} against {loop[-1]}"
    updates = trainer[0][1]
    ratios = [a[0] / b[0] for a, b in zip(trainer, loop, strict=True)]
    print(
        f"CartPole-v1, {options.num_envs} environments, {options.hidden_sizes}, batch {options.batch_size}, "
        f"K = {options.gradient_steps}, {updates:,} gradient steps and {trainer[0][2]:,} env steps a run; "
        f"lightning {lightning.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}, one thread\n"
    )
    print("| loop | median s | min - max s | us per gradient step |\n|---|---|---|---|")
    for name, runs in (("Trainer.fit", trainer), ("hand-written", loop)):
        seconds = [run[0] for run in runs]
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} | {min(seconds):.2f} - {max(seconds):.2f} | {median / updates * 1e6:.0f} |")
    print(f"\nratio: median {statistics.median(ratios):.3f}, range {min(ratios):.3f} - {max(ratios):.3f}")


if __name__ == "__main__":
    main()
