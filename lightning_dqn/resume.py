"""What a run needs beside its checkpoint to go on as if it had not stopped: replay, windows, episodes, generators."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from lightning_dqn.checkpoint_io import (
    CrashSafeCheckpointIO,
    checkpoint_folders,
    full_checkpoint,
    install_checkpoint_io,
)
from lightning_dqn.experience.checkpoint import SnapshotError
from lightning_dqn.experience.datamodule import ExperienceDataModule, data_of
from lightning_dqn.experience.pieces import Saved
from lightning_dqn.experience.rewind import EpisodeRecord
from lightning_dqn.experience.snapshots import SnapshotKeeper
from lightning_dqn.hparams import differences
from lightning_dqn.ranks import of_first_rank
from lightning_dqn.signals import is_interrupted

_WINDOWS, _EPISODES = "windows_", "episodes_"


class RunState:
    """Saves and loads what is too large for a checkpoint, in a folder beside it; the checkpoint names it."""

    def __init__(self) -> None:
        self._snapshots = SnapshotKeeper()
        self._loaded: tuple[dict[str, Saved], dict[str, Any]] | None = None
        self._held: Path | None = None  # the snapshot that says what the buffer held at some moment of this fit

    @property
    def is_loaded(self) -> bool:
        """Whether there is something to put back."""
        return self._loaded is not None

    def setup(self, trainer: Trainer) -> None:
        """Has checkpoints saved safely, and looked at together with what belongs to them."""
        install_checkpoint_io(trainer, partial(self._accept, trainer), self._written)

    def begin(self, trainer: Trainer) -> None:
        """Cleans up after runs that were killed; a fit from the start, perhaps not the first, knows of no other."""
        self._held = None
        if trainer.ckpt_path is None:
            self._loaded = None
            if trainer.global_step == 0:  # a second fit of a trainer continues the same run
                self._snapshots.clear()
        if trainer.is_global_zero:
            for home in {full_checkpoint(trainer)[0], *checkpoint_folders(trainer)}:
                self._snapshots.clean(home)

    def write_behind(self, trainer: Trainer, data: ExperienceDataModule) -> None:
        """From now on writes what is certain to be saved before it is asked for, so that a save need not take long.

        Args:
            trainer: Which is training.
            data: Whose buffer is open, with what was put back into it.
        """
        home, _ = full_checkpoint(trainer)
        self._snapshots.begin(home, trainer.global_rank, data.buffer.rings(), self._held)

    def close(self) -> None:
        """Writes nothing more but what is saved."""
        self._snapshots.close()

    def save(
        self,
        trainer: Trainer,
        checkpoint: dict[str, Any],
        data: ExperienceDataModule,
        episodes: dict[str, NDArray[Any]],
        exploration: np.random.Generator,
        counters: dict[str, Any],
    ) -> None:
        """Writes it, and its name into the checkpoint; if that cannot be done, warns.

        Args:
            trainer: Which is saving.
            checkpoint: What is about to be written.
            data: Whose buffer and windows it is about.
            episodes: What it takes to play the present episodes again.
            exploration: The generator that actions are drawn from.
            counters: Plain values; the checkpoint has those of rank 0 alone.
        """
        states = {name: generator.bit_generator.state for name, generator in _generators(data, exploration).items()}
        meta = {"rngs": states, "gamma": data.gamma, "n_step": data.n_step}
        if trainer.world_size > 1:
            meta |= {"env_steps": data.env_steps, "counters": counters}
        parts = {
            "": data.buffer.loose_arrays(),
            _WINDOWS: data.accumulator.state_arrays(),
            _EPISODES: episodes,
        }
        arrays = {prefix + name: array for prefix, part in parts.items() for name, array in part.items()}
        replay, problem = None, "another rank could not write"
        (home, file), rank = full_checkpoint(trainer), trainer.global_rank
        progress = trainer.global_step, counters["iterations"]
        name = of_first_rank(trainer, self._snapshots.name(home, data.env_steps, progress))
        checkpoint["run"] = {"id": self._snapshots.run_id, "file": file}
        try:
            replay = self._snapshots.save(home, name, rank, arrays, meta, data.buffer.rings(), is_interrupted(trainer))
        except OSError as error:
            problem = str(error)
        if not trainer.strategy.reduce_boolean_decision(replay is not None):
            rank_zero_warn(f"The replay could not be saved, this checkpoint is without it; training goes on: {problem}")
            return
        assert replay is not None
        checkpoint["replay"] = replay
        checkpoint["ranks"] = trainer.world_size
        if trainer.state.status == TrainerStatus.RUNNING:
            self._held = home / replay["name"] / f"rank{rank}"
            self.write_behind(trainer, data)
        if not isinstance(trainer.strategy.checkpoint_io, CrashSafeCheckpointIO) and trainer.is_global_zero:
            self._written(checkpoint)  # nobody else is going to say so

    def load(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any], changed_explorer: list[str]
    ) -> None:
        """Reads what belongs to a checkpoint; if that cannot be done, warns, and experience is collected anew.

        Args:
            trainer: Which is loading it.
            pl_module: Whose hyper-parameters are compared with those of the checkpoint.
            checkpoint: What was read.
            changed_explorer: Differences between the explorer of the checkpoint and that of this run, in words.
        """
        data = data_of(trainer)
        if trainer.state.fn != "fit" or data is None:
            return
        self._snapshots.resume_run(_run_id(trainer, checkpoint))
        _warn_of_differences(trainer, pl_module, data, checkpoint, changed_explorer)
        replay = checkpoint.get("replay")
        if replay is None:
            rank_zero_warn(f"{trainer.ckpt_path} has no replay with it: experience is collected anew.")
            return
        ranks = _ranks(checkpoint)
        if ranks != trainer.world_size:
            rank_zero_warn(
                f"{trainer.ckpt_path} is of {ranks} ranks, this run has {trainer.world_size} (trainer.devices, "
                f"trainer.num_nodes): experience is collected anew. With {ranks} it would go on exactly."
            )
            return
        loaded, problem = None, "that of another rank cannot be read"
        try:
            loaded = self._snapshots.load(replay, _beside(trainer), trainer.global_rank)
        except SnapshotError as error:
            problem = str(error)
        if trainer.strategy.reduce_boolean_decision(loaded is not None):  # all go on, or all begin anew
            self._loaded = loaded
        else:
            rank_zero_warn(f"The replay of {trainer.ckpt_path} is lost, experience is collected anew: {problem}")

    def put_back(
        self, data: ExperienceDataModule, record: EpisodeRecord, exploration: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Puts what was loaded where it belongs, and plays the episodes again up to where they were.

        Args:
            data: Whose environments and buffer are open, and empty.
            record: Notes the actions that are taken again.
            exploration: The generator that actions are drawn from.

        Returns:
            What the environments show now, ``[N, *O]``, the buffer's references to it, and the counters.
        """
        arrays, meta = self._put_back(data, exploration)
        assert data.envs is not None, "the environments are not open"
        observation, there = record.play_again(data.envs, _part(arrays, _EPISODES))
        data.accumulator.load_state_arrays(_part(arrays, _WINDOWS), there)
        reference = data.buffer.remember(observation, ~there)
        if not there.all():
            rank_zero_warn(
                f"{(~there).sum()} of {len(there)} environments could not be brought back to where they were: they "
                "begin new episodes."
            )
        _say_where(data, meta)
        return observation, reference, meta.get("counters", {})

    def put_back_replay(self, data: ExperienceDataModule, exploration: np.random.Generator) -> dict[str, Any]:
        """Puts what was loaded where it belongs, but for the episodes: for who begins new ones.

        Args:
            data: Whose buffer is open, and empty.
            exploration: The generator that actions are drawn from.

        Returns:
            The counters.
        """
        _, meta = self._put_back(data, exploration)
        _say_where(data, meta)
        counters: dict[str, Any] = meta.get("counters", {})
        return counters

    def _put_back(
        self, data: ExperienceDataModule, exploration: np.random.Generator
    ) -> tuple[dict[str, Saved], dict[str, Any]]:
        assert self._loaded is not None, "nothing was loaded"
        (arrays, meta), self._loaded = self._loaded, None
        self._held = self._snapshots.release()
        data.buffer.load_state_arrays(arrays)
        data.env_steps = meta.get("env_steps", data.env_steps)
        for name, generator in _generators(data, exploration).items():
            generator.bit_generator.state = meta["rngs"][name]
        return arrays, meta

    def _accept(self, trainer: Trainer, checkpoint: Mapping[str, Any], path: Path) -> str | None:
        """Why a checkpoint cannot be gone on from as it was: its replay; ``None`` if it can."""
        replay, problem = checkpoint.get("replay"), None
        if trainer.state.fn != "fit" or data_of(trainer) is None or replay is None:
            return None
        if _ranks(checkpoint) != trainer.world_size:  # nor from the one before
            return None
        try:
            self._snapshots.load(replay, _beside(trainer), trainer.global_rank)
        except SnapshotError as error:
            problem = str(error)
        whole = trainer.strategy.reduce_boolean_decision(problem is None)  # all processes take the same one
        return None if whole else problem or "the replay of another rank cannot be read"

    def _written(self, checkpoint: Mapping[str, Any]) -> None:
        if checkpoint.get("replay") is not None:
            self._snapshots.written(checkpoint["replay"])


def _say_where(data: ExperienceDataModule, meta: dict[str, Any]) -> None:
    for name in ("gamma", "n_step"):
        if meta[name] != getattr(data, name):
            rank_zero_warn(
                f"data.{name} was {meta[name]} and is now {getattr(data, name)}: what the replay already holds "
                "keeps the old returns."
            )
    rank_zero_info(f"Resumed at {data.env_steps:,} environment steps with {len(data.buffer):,} transitions.")


def _beside(trainer: Trainer) -> Path:
    return Path(str(trainer.ckpt_path)).absolute().parent


def _run_id(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Any:
    """Return the id of the run of a checkpoint; ``None`` for a run that saves under another file name.

    Such a run has an id of its own, because the checkpoint that it resumes stays and still needs its snapshot.
    """
    run = checkpoint.get("run")
    return run.get("id") if isinstance(run, dict) and run.get("file") == full_checkpoint(trainer)[1] else None


def _ranks(checkpoint: Mapping[str, Any]) -> Any:
    """How many have each saved a replay; one, if the checkpoint is from before there were several."""
    return checkpoint.get("ranks", 1)


def _generators(data: ExperienceDataModule, exploration: np.random.Generator) -> dict[str, np.random.Generator]:
    assert data.dataset is not None
    return {"exploration": exploration, "replay": data.dataset.rng, "episodes": data.episode_rng}


def _part(arrays: dict[str, Saved], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): np.asarray(array) for name, array in arrays.items() if name.startswith(prefix)}


def _warn_of_differences(
    trainer: Trainer,
    pl_module: LightningModule,
    data: ExperienceDataModule,
    checkpoint: dict[str, Any],
    changed_explorer: list[str],
) -> None:
    changed = differences(checkpoint.get("hyper_parameters", {}), dict(pl_module.hparams), "model")
    changed += differences(checkpoint.get("datamodule_hyper_parameters", {}), dict(data.hparams), "data")
    changed += changed_explorer
    if changed:
        rank_zero_warn(
            f"{trainer.ckpt_path} was saved with other settings: {'; '.join(changed)}. This run uses its own."
        )
