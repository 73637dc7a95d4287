"""N + M iterations in one go, or N, a new process, and M: everything is the same, bit for bit."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dqn.cli import DQNCLI

ALGORITHMS = [
    *("dqn", "double_dqn", "dueling", "per", "n_step", "noisy", "c51", "qr_dqn", "iqn"),
    *("munchausen_dqn", "munchausen_iqn", "rainbow"),
]
# what is not the same: how long things took
TIMED = {"collect/env_steps_per_second"}


def arguments(algorithm, num_envs, folder, epochs, more=()):
    """A run of 96 environment steps an epoch, with validations and checkpoints after each."""
    return [
        "fit",
        "--config=cartpole",
        f"--config={algorithm}",
        "--seed_everything=3",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.check_val_every_n_epoch=1",
        f"--trainer.max_epochs={epochs}",
        "--trainer.logger=CSVLogger",
        f"--trainer.logger.save_dir={folder}",
        "--trainer.logger.name=log",
        f"--trainer.logger.version=run{epochs}",
        "--model.torso.init_args.hidden_sizes=[16]",
        f"--data.num_envs={num_envs}",
        "--data.batch_size=8",
        "--data.learning_starts=40",
        "--data.steps_per_epoch=96",
        "--data.buffer.capacity=150",
        "--data.eval_episodes=2",
        "--data.max_eval_steps=20",
        f"--checkpoint_latest.dirpath={folder}/latest",
        f"--checkpoint_best.dirpath={folder}/best",
        *more,
    ]


def fit(args):
    """Trains in this process; returns a hash of each part of the state that is left."""
    cli = DQNCLI(args)
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    collector = next(callback for callback in trainer.callbacks if hasattr(callback, "_record"))
    generators = {"exploration": collector.rng, "replay": data.dataset.rng, "episodes": data.episode_rng}
    return {
        "network": digest(model.state_dict()),
        "optimizer": digest(trainer.optimizers[0].state_dict()),
        "schedule": digest([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        "replay": digest(data.buffer.state_arrays()),
        "windows": digest(data.accumulator.state_arrays()),
        "episodes": digest(collector._record.state_arrays(collector._envs, collector._observation)),
        "explorer": digest(collector.explorer.state_dict()),
        "counters": digest([data.env_steps, model.gradient_steps, collector.episodes, trainer.global_step]),
        "generators": digest([generator.bit_generator.state for generator in generators.values()]),
        "torch": digest(torch.get_rng_state()),
    }


def digest(state):
    """A hash of tensors, arrays and plain values, nested in any way."""
    found = hashlib.sha256()

    def feed(value):
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                feed(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                feed(item)
        elif isinstance(value, torch.Tensor | np.ndarray):
            array = np.ascontiguousarray(np.asarray(value))
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            found.update(repr(value).encode())

    feed(state)
    return found.hexdigest()


def rows(folder, epochs):
    path = Path(folder) / "log" / f"run{epochs}" / "metrics.csv"
    if not path.exists():  # of a run that was stopped before its first row
        return []
    with path.open() as file:
        return [
            {name: value for name, value in row.items() if value and name not in TIMED} for row in csv.DictReader(file)
        ]


def in_a_process(args):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.reliability.test_resume", *args], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def check(algorithm, num_envs, folder, before, after, more=(), go_on=fit):
    """Compares a run of ``before + after`` epochs with one that stopped in between; returns how many rows it wrote."""
    whole = fit(arguments(algorithm, num_envs, folder / "whole", before + after, more))
    fit(arguments(algorithm, num_envs, folder / "parts", before, more))
    path = f"--ckpt_path={folder / 'parts' / 'latest' / 'latest.ckpt'}"
    resumed = go_on([*arguments(algorithm, num_envs, folder / "parts", before + after, more), path])
    assert resumed == whole
    expected = [row for row in rows(folder / "whole", before + after) if int(float(row["epoch"])) >= before]
    assert rows(folder / "parts", before + after) == expected
    assert len(expected) > after
    return len(expected)


@pytest.mark.parametrize(
    ("algorithm", "num_envs", "more"),
    [
        ("double_dqn", 1, ()),
        ("rainbow", 4, ()),
        ("munchausen_iqn", 4, ("--data.n_step=3",)),
        ("n_step", 4, ("--collect.overlap=true", "--data.train_frequency=4", "--data.gradient_steps=2")),
        ("dqn", 3, ("--collect.explorer=lightning_dqn.EZGreedy",)),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path, algorithm, num_envs, more):
    check(algorithm, num_envs, tmp_path, 2, 2, more)


@pytest.mark.parametrize(
    ("algorithm", "epoch", "validation"),
    [
        ("double_dqn", 2, "--trainer.limit_val_batches=0"),
        ("rainbow", 2, "--trainer.check_val_every_n_epoch=3"),
        *(
            pytest.param("rainbow", *case, marks=pytest.mark.slow)
            for case in (
                (1, "--trainer.limit_val_batches=0"),
                (1, "--trainer.check_val_every_n_epoch=2"),
                (2, "--trainer.check_val_every_n_epoch=2"),
                (3, "--trainer.check_val_every_n_epoch=3"),
                (2, "--trainer.val_check_interval=0.5"),
                (2, "--trainer.val_check_interval=4"),  # of 6 iterations: the epoch ends without a validation
            )
        ),
    ],
)
def test_resume_from_an_epoch_end_without_validation_is_exact(tmp_path, algorithm, epoch, validation):
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    arguments_of_copy = json.dumps({"epoch": epoch, "source": f"{whole}/latest", "target": str(copy)})
    kind = "tests.reliability.interrupting.CopyFolder"
    copying = f"--trainer.callbacks=[{{class_path: {kind}, init_args: {arguments_of_copy}}}]"
    expected = fit(arguments(algorithm, 4, whole, 4, [validation, copying]))
    resumed = fit([*arguments(algorithm, 4, tmp_path / "rest", 4, [validation]), f"--ckpt_path={copy}/latest.ckpt"])
    assert resumed == expected
    assert rows(tmp_path / "rest", 4) == [row for row in rows(whole, 4) if int(float(row["epoch"])) >= epoch]


# all at once that the optimizer, its schedule and the precision can add to a state, and the compiled update
OTHERS = [
    (
        "rainbow",
        4,
        (
            "--trainer.precision=bf16-mixed",
            "--trainer.gradient_clip_val=0.5",
            "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 0.001, weight_decay: 0.01}}",
            "--model.lr_scheduler={class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {T_max: 40}}",
        ),
    ),
    ("dqn", 4, ("--model.compile_updates=true",)),
]


@pytest.fixture(scope="module")
def tally():
    """Counts the cases that were the same."""
    same = []
    yield same
    print(f"\n{len(same)} of {len(same)} resumed runs the same in 10 hashes, {sum(same):,} rows")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "num_envs", "more"),
    [*[(algorithm, n, ()) for algorithm in ALGORITHMS for n in (1, 4) for _ in range(2)], *OTHERS],
)
def test_so_it_is_in_a_new_process_at_any_moment(tmp_path, tally, algorithm, num_envs, more):
    before = int(np.random.default_rng().integers(1, 6))
    logged = check(algorithm, num_envs, tmp_path, before, 2, more, in_a_process)
    print(f"\n{algorithm}, {num_envs} environments, {before} + 2 epochs: the same, {logged} rows")
    tally.append(logged)


if __name__ == "__main__":
    print(json.dumps(fit(sys.argv[1:])))
