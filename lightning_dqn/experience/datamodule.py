"""The data side of a run: training environments, replay buffer, evaluation episodes, and the clock of env steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, Literal, Self, get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from lightning.pytorch import LightningDataModule, Trainer

from lightning_dqn.experience.atari_scores import ReferenceScores, reference_scores
from lightning_dqn.experience.envs import (
    EnvSource,
    Vectorization,
    Wrapper,
    env_name,
    is_found_without_import,
    make_env,
    make_envs,
    resolve_env,
)
from lightning_dqn.experience.evaluation import EvaluationEpisodes, EvaluationSchedule
from lightning_dqn.experience.evaluation_envs import EvaluationEnvs
from lightning_dqn.experience.n_step import NStepAccumulator
from lightning_dqn.experience.replay import ReplayBuffer, ReplayDataset
from lightning_dqn.experience.rows import Place
from lightning_dqn.experience.settings import check_capacity, check_device, check_range, choose_seed
from lightning_dqn.experience.stepping import SeededEnvs, episode_seeds
from lightning_dqn.hparams import save_plain_hyperparameters
from lightning_dqn.ranks import of_first_rank
from lightning_dqn.trust import open_settings

OnEnvError = Literal["raise", "restart"]
_MOST = 2**31 - 1
_MOST_AT_ONCE = 1_000_000  # of what is drawn or listed all at once
_LONGEST = 1_000_000  # seconds; an operating system that is asked to wait for more than 24 days refuses


class RandomStream(IntEnum):
    """Independent streams of random numbers; each draws from a generator of its own."""

    ENVIRONMENTS = 0
    EXPLORATION = 1
    REPLAY = 2
    VALIDATION = 3
    TEST = 4


class ExperienceDataModule(LightningDataModule):
    """Environments and replay as a Lightning data module.

    Training batches are :class:`~lightning_dqn.transition.ReplayBatch` drawn from a replay buffer that an
    :class:`~lightning_dqn.collector.ExperienceCollector` fills. Validation, test and prediction batches are
    :class:`~lightning_dqn.experience.evaluation.EvaluationEpisodes`. Time is counted in environment steps, summed over
    environments: ``learning_starts`` of them are taken at random before the first update, then an epoch is
    ``steps_per_epoch`` of them, so a run takes ``learning_starts + max_epochs * steps_per_epoch``.

    Under several ranks (DDP) each has environments, buffer and random numbers of its own. What is counted in
    environment steps is of all ranks together, as are ``eval_episodes``; ``num_envs``, ``batch_size``,
    ``eval_num_envs`` and the capacity of the buffer are of each.

    Args:
        env_id: A registered id (``CartPole-v1``, ``my_module:MyEnv-v0``), the dotted path of a class or function
            (``my_package.MyEnv``), or from Python any callable that makes an environment. ``ALE/Pong-v5`` and
            ``MinAtar/Breakout-v1``, or any other game of these, come with what they need.
        num_envs: Training environments that are stepped together, of each rank.
        env_kwargs: Arguments of the environment.
        wrappers: Put around each environment in order, the last outermost; class or function paths.
        vectorization: ``sync`` steps the environments one after the other, ``async`` each in a process of its own,
            ``native`` uses the environment's own vector implementation, in evaluation too if its members can be reset
            one by one.
        action_mask: Where the environment says which actions are legal: a key of its Dict observations or of ``info``.
            Only these are then chosen and bootstrapped from. If not given, all actions always are.
        reward_clip: Learns from rewards clipped to ``[-reward_clip, reward_clip]``; returns are logged as they are. If
            not given, rewards are not clipped.
        life_loss: Learns from a lost life as from the end of an episode: nothing is bootstrapped beyond it. The episode
            itself goes on. For environments that tell ``lives`` in ``info``, as Atari does.
        on_env_error: What to do when an environment breaks down, dies or hangs: ``raise`` an error that names it, or
            ``restart``: all are made again, the others brought back to where they were, and its episode is abandoned.
        env_timeout: Seconds that environments in processes of their own (``async``) have for an answer.
        seed_every_episode: Whether each training episode starts with a seed of its own, from which it can be replayed.
            If false, an environment is seeded once in a fit, which spares Atari the 90 ms it takes to be seeded.
            Evaluation episodes always have their seeds.
        buffer: Where transitions are kept; if not given, a :class:`~lightning_dqn.experience.replay.ReplayBuffer` of
            100,000.
        storage_dir: A folder on disk in which observations are kept, in a file that is mapped into memory; for replay
            larger than that. Nothing of it is left behind.
        storage_device: The device that observations are kept on: ``cpu``, or ``cuda`` for the one that learns.
        n_step: Longest n-step window.
        gamma: Discount of one environment step, in [0, 1].
        batch_size: Transitions per gradient step, of each rank.
        train_frequency: Environment steps per iteration, summed over environments and ranks.
        gradient_steps: Gradient steps per iteration. ``gradient_steps / train_frequency`` is the replay ratio.
        learning_starts: Environment steps taken at random before the first update; at least one batch is always
            collected, on each rank.
        steps_per_epoch: Environment steps per epoch, rounded up to whole iterations. Validation and checkpoints fall at
            epoch ends.
        eval_episodes: Episodes of each validation, test or prediction; their seeds never change.
        eval_num_envs: Evaluation environments that are stepped together.
        max_eval_steps: Cuts longer evaluation episodes off; for environments without a time limit.
        eval_seed: Picks the set of evaluation episodes; the same set for every ``seed``, so that runs compare.
        seed: Seed of environments, exploration and replay. If not given, that of ``seed_everything``, else random.

    Raises:
        ValueError: If an argument is out of range or the environment is unknown; the message names the field.
    """

    def __init__(
        self,
        env_id: EnvSource,
        num_envs: int = 8,
        env_kwargs: dict[str, Any] | None = None,
        wrappers: Sequence[Wrapper] = (),
        vectorization: Vectorization = "sync",
        action_mask: str | None = None,
        reward_clip: float | None = None,
        life_loss: bool = False,
        on_env_error: OnEnvError = "raise",
        env_timeout: float = 60.0,
        seed_every_episode: bool = True,
        buffer: ReplayBuffer | None = None,
        storage_dir: str | None = None,
        storage_device: str = "cpu",
        n_step: int = 1,
        gamma: float = 0.99,
        batch_size: int = 64,
        train_frequency: int = 16,
        gradient_steps: int = 8,
        learning_starts: int = 1_000,
        steps_per_epoch: int = 2_500,
        eval_episodes: int = 10,
        eval_num_envs: int = 10,
        max_eval_steps: int = 27_000,
        eval_seed: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        save_plain_hyperparameters(self)
        check_range(
            1,
            _MOST,
            num_envs=num_envs,
            n_step=n_step,
            batch_size=batch_size,
            train_frequency=train_frequency,
            steps_per_epoch=steps_per_epoch,
            eval_num_envs=eval_num_envs,
            max_eval_steps=max_eval_steps,
        )
        check_range(1, _MOST_AT_ONCE, gradient_steps=gradient_steps, eval_episodes=eval_episodes)
        check_range(0, _MOST, learning_starts=learning_starts)
        check_range(0, math.inf, eval_seed=eval_seed, seed=seed or 0)
        if vectorization not in get_args(Vectorization):
            raise ValueError(f"data.vectorization must be one of {get_args(Vectorization)}, got {vectorization!r}")
        if on_env_error not in get_args(OnEnvError):
            raise ValueError(f"data.on_env_error must be one of {get_args(OnEnvError)}, got {on_env_error!r}")
        if not 0 < env_timeout <= _LONGEST:
            raise ValueError(f"data.env_timeout must be above 0 and at most {_LONGEST:,} seconds, got {env_timeout}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"data.gamma must be in [0, 1], got {gamma}")
        if reward_clip is not None and not 0 < reward_clip < math.inf:
            raise ValueError(f"data.reward_clip must be positive and finite, got {reward_clip}")
        self.buffer = ReplayBuffer() if buffer is None else buffer
        check_capacity(self.buffer.capacity, batch_size, num_envs * n_step)
        self.storage_dir = None if storage_dir is None else Path(storage_dir)
        self.storage_device = check_device(storage_device)
        if self.storage_dir is not None and self.storage_device.type != "cpu":
            raise ValueError("data.storage_dir and data.storage_device name two places; choose one")
        resolve_env(env_id)
        self.env_id = env_id
        self.num_envs = num_envs
        self.env_kwargs = env_kwargs or {}
        self.wrappers = wrappers
        self.vectorization: Vectorization = vectorization
        self.action_mask = action_mask
        self.reward_clip = reward_clip
        self.life_loss = life_loss
        self.on_env_error: OnEnvError = on_env_error
        self.env_timeout = env_timeout
        self.seed_every_episode = seed_every_episode
        self.n_step = n_step
        self.gamma = gamma
        self.batch_size = batch_size
        self.train_frequency = train_frequency
        self.gradient_steps = gradient_steps
        self.learning_starts = max(learning_starts, batch_size)
        self.iterations_per_epoch = math.ceil(steps_per_epoch / train_frequency)
        self.eval_episodes = eval_episodes
        self.eval_num_envs = eval_num_envs
        self.max_eval_steps = max_eval_steps
        self.eval_seed = eval_seed
        self.seed = choose_seed(seed)
        self.env_steps = 0
        self.envs: SeededEnvs | None = None
        self.accumulator = NStepAccumulator(num_envs, n_step, gamma)
        self.dataset: ReplayDataset | None = None
        self.replay_rng: np.random.Generator | None = None
        self._spaces: tuple[spaces.Box, spaces.Discrete] | None = None
        self._evaluation_envs: EvaluationEnvs | None = None

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        trust: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Return the data module that a checkpoint was saved with, without its replay.

        The checkpoint may only name registered environments, classes of this package, gymnasium's wrappers, and what is
        in trusted modules; nothing else that it names is imported or called.

        Args:
            checkpoint_path: A file on this machine, or an open file. A damaged file is replaced by the checkpoint
                before, with a warning.
            map_location: See :func:`torch.load`.
            hparams_file: Refused, as the settings are in the checkpoint.
            weights_only: Not used, as nothing but tensors and plain values is ever loaded.
            trust: Modules whose environments and classes the checkpoint may name too, such as ``("my_package",)``.
            **kwargs: Arguments of the data module that replace those of the checkpoint.

        Raises:
            CheckpointError: If the checkpoint cannot be read, is on another machine, or names something outside of the
                allowed modules.
            FileNotFoundError: If there is no file.
            ValueError: If there is a ``hparams_file``.
        """
        checkpoint, settings, builder = open_settings(cls, checkpoint_path, map_location, hparams_file, trust, kwargs)
        env_id = settings.get("env_id")
        if isinstance(env_id, str) and not is_found_without_import(env_id, builder.allows):
            builder.refuse(env_id, "data.env_id")
        data = cls(**builder.arguments(cls, settings, "data"), **kwargs)
        if cls.__qualname__ in checkpoint:
            data.load_state_dict(checkpoint[cls.__qualname__])
        return data

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one observation as the network sees it: one-hot if Discrete, one flat vector if Dict."""
        return self._look_at_spaces()[0].shape

    @property
    def observation_dtype(self) -> np.dtype[Any]:
        """What one number of an observation is stored as."""
        return np.dtype(self._look_at_spaces()[0].dtype)

    @property
    def num_actions(self) -> int:
        """Number of discrete actions."""
        return int(self._look_at_spaces()[1].n)

    @property
    def reference_scores(self) -> ReferenceScores | None:
        """What a human and a random agent score in this environment; ``None`` if that is not known."""
        return reference_scores(env_name(self.env_id))

    @property
    def world_size(self) -> int:
        """Processes that collect side by side, each with environments and a buffer of its own."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def warm_up(self) -> int:
        """Environment steps of all ranks before the first update."""
        return max(self.learning_starts, self.batch_size * self.world_size)

    def rng(self, stream: RandomStream) -> np.random.Generator:
        """A generator for one purpose, independent of all others and of other ranks.

        Args:
            stream: What it is for.
        """
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return np.random.default_rng(np.random.SeedSequence([self.seed, rank, stream]))

    def setup(self, stage: str) -> None:
        """Checks what only the Trainer knows, and takes over the seed of rank 0; makes nothing yet.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: If the whole budget would be spent before learning starts.
        """
        if stage != "fit" or self.trainer is None:
            return
        self.seed = of_first_rank(self.trainer, self.seed)  # if nobody chose one, each has drawn its own
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        budget = (self.trainer.max_epochs or 0) * self.iterations_per_epoch * self.train_frequency
        if 0 < budget < self.warm_up:
            raise ValueError(
                f"data.learning_starts ({self.warm_up}) is beyond the budget of trainer.max_epochs * "
                f"data.steps_per_epoch = {budget} environment steps"
            )

    def open(self, keep_buffer: bool = False) -> SeededEnvs:
        """Make the training environments and an empty replay buffer; the collector calls this when fitting starts.

        Args:
            keep_buffer: Keep the buffer, its open windows and all random numbers, for a fit that continues another.

        Raises:
            MemoryError: If the buffer does not fit, before it is allocated.
        """
        if keep_buffer and self.dataset is not None:
            self.replay_rng = self.dataset.rng
        else:
            self.open_buffer()
        return self.open_envs()

    def open_buffer(self) -> None:
        """Makes an empty replay buffer alone, for who has the environments elsewhere.

        Raises:
            MemoryError: If it does not fit, before it is allocated.
        """
        mask_size = 0 if self.action_mask is None else self.num_actions
        place = Place(self.storage_dir, self._device())
        self.buffer.allocate(self.observation_shape, self.observation_dtype, mask_size, place)
        self.episode_rng = self.rng(RandomStream.ENVIRONMENTS)
        self.replay_rng = self.rng(RandomStream.REPLAY)
        self.accumulator.clear()

    def open_envs(self) -> SeededEnvs:
        """Makes the training environments, again if there were some; their seeds go on."""
        if self.envs is not None:
            self.envs.close()
        envs = self._make_envs(self.num_envs, self.vectorization)
        self.envs = SeededEnvs(
            envs,
            episode_seeds(self.episode_rng),
            mask_key=self.action_mask,
            seed_every_episode=self.seed_every_episode,
            reward_clip=self.reward_clip,
            life_loss=self.life_loss,
            timeout=self.env_timeout,
        )
        return self.envs

    def train_dataloader(self) -> ReplayDataset:
        """The replay buffer itself, as an iterable of whole batches."""
        self.dataset = ReplayDataset(
            self.buffer,
            self.batch_size,
            self.gradient_steps,
            self.iterations_per_epoch,
            self.rng(RandomStream.REPLAY) if self.replay_rng is None else self.replay_rng,
            clock=lambda: self.env_steps,
        )
        return self.dataset

    def val_dataloader(self) -> EvaluationSchedule:
        """The validation episodes, ``eval_num_envs`` a batch."""
        return self._episodes(RandomStream.VALIDATION)

    def test_dataloader(self) -> EvaluationSchedule:
        """The test episodes: seeds that validation never saw."""
        return self._episodes(RandomStream.TEST)

    def predict_dataloader(self) -> EvaluationSchedule:
        """The test episodes."""
        return self._episodes(RandomStream.TEST)

    def state_dict(self) -> dict[str, Any]:
        """The environment's name and the clock; the replay is saved beside the checkpoint, by the collector."""
        return {"env_id": env_name(self.env_id), "env_steps": self.env_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the clock over.

        Raises:
            ValueError: If the checkpoint comes from another environment; names the field.
        """
        if state_dict["env_id"] != env_name(self.env_id):
            raise ValueError(
                f"ckpt_path: the checkpoint was trained on {state_dict['env_id']}, but data.env_id is "
                f"{env_name(self.env_id)}; use DQNLightningModule.load_from_checkpoint to take its weights elsewhere"
            )
        self.env_steps = state_dict["env_steps"]

    def teardown(self, stage: str) -> None:
        """Closes the environments.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
        """
        self.close()

    def on_exception(self, exception: BaseException) -> None:
        """Closes the environments: after an exception the Trainer does not call :meth:`teardown`."""
        self.close()

    def close(self) -> None:
        """Closes training and evaluation environments; the replay stays."""
        if self.envs is not None:
            self.envs.close()
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()
        self.envs = self._evaluation_envs = self.replay_rng = None

    def without_experience(self) -> Self:
        """A copy that makes the same environments in another process, and holds nothing of this one's experience."""
        settings = copy.copy(self)
        settings.trainer = settings.dataset = settings.envs = settings._evaluation_envs = None
        settings.buffer = ReplayBuffer(1)
        settings.accumulator = NStepAccumulator(self.num_envs, self.n_step, self.gamma)
        settings.env_id = resolve_env(self.env_id)  # the other process has not registered the user's environments
        settings._look_at_spaces()
        return settings

    def _device(self) -> torch.device:
        """That of this process, if it is of the kind asked for: with several devices each process has its own."""
        asked = self.storage_device
        if asked.type == "cpu" or ":" in str(asked) or self.trainer is None:
            return asked
        own: torch.device = self.trainer.strategy.root_device
        return own if own.type == asked.type else asked

    def _episodes(self, stream: RandomStream) -> EvaluationSchedule:
        rng = np.random.default_rng(np.random.SeedSequence([self.eval_seed, 0, stream]))
        seeds = [int(seed) for seed in rng.integers(2**31, size=self.eval_episodes)]
        rank, world_size = self.trainer.global_rank if self.trainer is not None else 0, self.world_size
        if world_size > len(seeds):
            raise ValueError(f"data.eval_episodes ({len(seeds)}) must be at least the number of devices, {world_size}")
        # one after the other, so that all of them in the order of ranks are in the order of one rank
        own = np.array_split(seeds, world_size)[rank]
        # as many batches on each: a network with buffers sends them round at every forward of a batch
        count = min(math.ceil(self._eval_share / self.eval_num_envs), len(seeds) // world_size)
        return EvaluationSchedule(
            [
                EvaluationEpisodes(self._open_evaluation, chunk.tolist(), self.max_eval_steps, self.action_mask)
                for chunk in np.array_split(own, count)
            ]
        )

    @property
    def _eval_share(self) -> int:
        """The most evaluation episodes that a rank plays."""
        return math.ceil(self.eval_episodes / self.world_size)

    def _open_evaluation(self) -> VectorEnv[Any, Any, Any]:
        if self._evaluation_envs is None:
            count = min(self.eval_num_envs, self._eval_share)
            if self.vectorization == "async":  # no more processes than training has
                count = min(count, self.num_envs)
            is_registered = not callable(resolve_env(self.env_id))
            self._evaluation_envs = EvaluationEnvs(
                self._make_envs, count, self.vectorization, is_registered, self.action_mask
            )
        return self._evaluation_envs.open()

    def _make_envs(self, count: int, vectorization: Vectorization) -> VectorEnv[Any, Any, Any]:
        return make_envs(self.env_id, count, self.env_kwargs, self.wrappers, vectorization, self.action_mask)

    def _look_at_spaces(self) -> tuple[spaces.Box, spaces.Discrete]:
        if self._spaces is None:
            if self.vectorization == "native":
                envs = self._make_envs(1, "native")
                found = (envs.single_observation_space, envs.single_action_space)
                envs.close()
            else:
                env = make_env(self.env_id, self.env_kwargs, self.wrappers, self.action_mask)
                found = (env.observation_space, env.action_space)
                env.close()
            self._spaces = found  # type: ignore[assignment]
        assert self._spaces is not None
        return self._spaces


def data_of(trainer: Trainer) -> ExperienceDataModule | None:
    """The data module to fill; ``None`` when learning from some other dataloader."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    return data if isinstance(data, ExperienceDataModule) else None
