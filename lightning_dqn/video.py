"""A film of a greedy episode, made without a display."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from lightning_dqn.experience.camera import Camera, encode_gif
from lightning_dqn.experience.datamodule import ExperienceDataModule, data_of
from lightning_dqn.experience.envs import make_env
from lightning_dqn.experience.evaluation import EvaluationEpisodes, PlayedEpisodes, Policy
from lightning_dqn.files import NewFile
from lightning_dqn.forgiving import Forgiving
from lightning_dqn.rng import restore_shared_random_state, shared_random_state
from lightning_dqn.signals import is_interrupted


class EpisodeVideo(Callback):
    """Films one greedy episode at the end of a fit, and before that as often as asked for: ``episode.gif``.

    It is the first episode of the validation, by its seed, in an environment of its own. Nothing about training
    changes: random numbers are as they would be without. What goes wrong is a warning, and the film is missing.

    Args:
        every_n_epochs: Epochs between two films, each in the place of the one before; ``None``: only at the end.
        max_steps: A longer episode is filmed up to here.
        max_frames: Pictures of a film. Of longer episodes pictures are left out, which makes them play faster.
        folder: Where it is put; if not given, the run's folder.

    Raises:
        ValueError: If a number is not positive; names the field.

    Attributes:
        path: The film, if there is one.
        caption: What it shows.
        made: How many there have been.
    """

    path: Path | None = None
    made = 0
    caption = ""

    def __init__(
        self,
        every_n_epochs: int | None = None,
        max_steps: int = 1_000,
        max_frames: int = 500,
        folder: str | None = None,
    ) -> None:
        for name, value in {"every_n_epochs": every_n_epochs, "max_steps": max_steps}.items():
            if value is not None and value < 1:
                raise ValueError(f"video.{name} must be at least 1, got {value}")
        if max_frames < 2:
            raise ValueError(f"video.max_frames must be at least 2, got {max_frames}")
        self.every_n_epochs = every_n_epochs
        self.max_steps = max_steps
        self.max_frames = max_frames
        self.folder = folder
        self._forgiving = Forgiving(
            "There is no film of an episode", "Without EpisodeVideo (`--video null`) none is tried."
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Films if this is one of the epochs for it; the last one comes later."""
        epoch, every = trainer.current_epoch + 1, self.every_n_epochs
        if every is not None and epoch % every == 0 and epoch != trainer.max_epochs:
            self._film(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Films the last episode, unless someone who wants the run to stop is waiting for it."""
        if not is_interrupted(trainer):
            self._film(trainer, pl_module)

    def _film(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, folder = data_of(trainer), self.folder or trainer.log_dir
        # pygame has one screen for all; closing ours would take it from those who are watching training
        watched = data is not None and data.env_kwargs.get("render_mode") == "human"
        if data is None or folder is None or watched or trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return

        def policy(observation: NDArray[np.generic], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
            with trainer.precision_plugin.forward_context():
                actions: torch.Tensor = pl_module.act(observation, mask)  # type: ignore[operator]
            return actions.cpu().numpy()

        with self._forgiving, _leaving_no_trace(pl_module), _quiet_pygame():
            film, played, ended = film_episode(data, policy, self.max_steps, self.max_frames)
            path = Path(folder) / "episode.gif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with NewFile(path) as file:
                file.write(film)
            self.made += 1
            length = f"in {played.lengths[0]:,} steps" if ended else f"in the first {played.lengths[0]:,} steps"
            self.path, self.caption = path, f"return {played.returns[0]:.1f} {length}, seed {played.seeds[0]}"


def film_episode(
    data: ExperienceDataModule, policy: Policy, max_steps: int, max_frames: int
) -> tuple[bytes, PlayedEpisodes, bool]:
    """Plays the first validation episode in an environment made for it.

    Args:
        data: Whose environment and seed are taken.
        policy: Maps observations ``[1, *O]`` and the mask of legal actions to actions ``[1]``.
        max_steps: Where a longer one is cut off.
        max_frames: Pictures to keep.

    Returns:
        The film as a GIF, how the episode went, and whether it came to its end.

    Raises:
        gymnasium.error.DependencyNotInstalled: If what draws the environment is not installed; says how to.
        ValueError: If there is no such environment that draws itself.
    """
    kwargs = {**data.env_kwargs, "render_mode": "rgb_array"}
    seeds = data.val_dataloader().batches[0].seeds[:1]
    longest = min(max_steps, data.max_eval_steps)
    camera = Camera(make_env(data.env_id, kwargs, data.wrappers, data.action_mask), max_frames)
    envs = SyncVectorEnv([lambda: camera], autoreset_mode=AutoresetMode.DISABLED)
    try:
        played = EvaluationEpisodes(lambda: envs, seeds, longest, data.action_mask).play(policy)
    finally:
        envs.close()
    return encode_gif(camera.frames, camera.seconds), played, camera.ended


@contextmanager
def _quiet_pygame() -> Iterator[None]:
    """Without a greeting, and without SDL's complaint where there is no screen, which is not needed."""
    wanted = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_VIDEODRIVER": "dummy"}
    missing = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def _leaving_no_trace(module: LightningModule) -> Iterator[None]:
    """Evaluation mode, after which every part is in the mode it was in, and shared generators are where they were."""
    modes = {part: part.training for part in module.modules()}
    state = shared_random_state()
    module.eval()
    try:
        yield
    finally:
        restore_shared_random_state(state)
        for part, mode in modes.items():
            part.training = mode
