"""A run of several processes, as a script: ``python -m tests.ddp_runs FOLDER '{"ranks": 2, ...}'``."""

import json
import math
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import (
    DQNLightningModule,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    MLPTorso,
    NoisyLinear,
    NormalizedTorso,
    PrioritizedReplayBuffer,
)


class Notes(Callback):
    """What a rank learned from, and where it was."""

    def __init__(self, keep_batches, pid_folder=None):
        self.keep_batches, self.batches, self.weights, self.draw = keep_batches, [], None, None
        self.pid_folder = pid_folder

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        state = torch.get_rng_state()
        self.draw = torch.rand(4)
        torch.set_rng_state(state)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.keep_batches:
            self.batches.append(batch.transition.map(torch.clone))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.pid_folder and trainer.global_step == 20:  # whoever waits to send a signal can
            (self.pid_folder / f"pid{trainer.global_rank}").write_text(str(os.getpid()))


class WithBuffers(MLPTorso):
    """A network whose statistics DDP sends from rank 0 to the others at every forward of a batch."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, [16])
        self.norm = torch.nn.BatchNorm1d(16)

    def forward(self, observation):
        return self.norm(super().forward(observation))


class NotFinite(DQNLightningModule):
    """A model whose loss is infinite once, on one rank."""

    def losses(self, transition, weight):
        update = super().losses(transition, weight)
        strikes = self.gradient_steps == 4 and self.trainer.global_rank == 1
        return update._replace(loss=update.loss + math.inf) if strikes else update


def make_torso(options):
    """Return what builds the torso of a run."""
    if options.get("buffers"):
        return WithBuffers
    plain = partial(MLPTorso, hidden_sizes=[16])
    return partial(NormalizedTorso, torso=plain) if options.get("normalized") else plain


def make(folder, options):
    """Trainer, model and data of a run."""
    data = ExperienceDataModule(
        "CartPole-v1",
        **{
            "num_envs": 2,
            "batch_size": 8,
            "train_frequency": 8,
            "gradient_steps": 3,
            "learning_starts": 64,
            "steps_per_epoch": 120,
            "eval_episodes": 9,
            "eval_num_envs": 5,
            "buffer": PrioritizedReplayBuffer(500) if options.get("prioritized") else None,
            **options.get("data", {}),
        },
    )
    model = (NotFinite if options.get("not_finite") else DQNLightningModule)(
        data.observation_shape,
        data.num_actions,
        torso=make_torso(options),
        head=partial(ExpectedHead, layer=NoisyLinear) if options.get("noisy") else ExpectedHead,
        **options.get("model", {}),
    )
    latest = ModelCheckpoint(folder, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
    notes = Notes(options.get("keep_batches", False), folder)
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": options.get("ranks", 1),
            "strategy": "ddp" if options.get("ranks", 1) > 1 else "auto",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 5,
            "callbacks": [notes, latest, ExperienceCollector()],
            **options.get("trainer", {}),
        },
    )
    return trainer, model, data, notes


def main(folder, options):
    """Fits, and leaves of each rank what it came to in ``rank<rank>.pt``."""
    seed_everything(1)
    trainer, model, data, notes = make(folder, options)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=options.get("ckpt_path"))
    finally:
        collector = next(callback for callback in trainer.callbacks if isinstance(callback, ExperienceCollector))
        torch.save(
            {
                "weights": model.state_dict(),
                "start": notes.weights,
                "draw": notes.draw,
                "batches": [tuple(batch) for batch in notes.batches],
                "buffer": {name: torch.from_numpy(a.copy()) for name, a in data.buffer.state_arrays().items()},
                "size": len(data.buffer),
                "env_steps": data.env_steps,
                "episodes": collector.episodes,
                "iterations": collector.iterations,
                "gradient_steps": model.gradient_steps,
                "skipped": model.skipped_updates,
                "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            },
            folder / f"rank{trainer.global_rank}.pt",
        )


def start(folder, *launcher, env=None, **options):
    """Begins a run in processes of its own; what it says goes to ``said.txt``."""
    folder.mkdir(exist_ok=True)
    command = [*(launcher or (sys.executable,)), "-m", "tests.ddp_runs", str(folder), json.dumps(options)]
    said = (folder / "said.txt").open("a")
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(command, stdout=said, stderr=said, cwd=folder, env=environment, start_new_session=True)


def run(folder, *launcher, **options):
    """Runs to the end; what each rank came to, and what was said."""
    process = start(folder, *launcher, **options)
    code = process.wait(300)
    said = (folder / "said.txt").read_text()
    assert code == 0, said
    return results(folder), said


def results(folder):
    """What each rank of a run came to."""
    paths = sorted(folder.glob("rank*.pt"))
    return [torch.load(path, weights_only=True) for path in paths]


if __name__ == "__main__":
    warnings.simplefilter("default")
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
