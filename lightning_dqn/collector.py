"""The callback that steps the environments, between the learner and the data."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numpy.typing import NDArray

from lightning_dqn.agreement import check_agreement
from lightning_dqn.checkpoint_io import saves_fully
from lightning_dqn.experience.datamodule import ExperienceDataModule, RandomStream, data_of
from lightning_dqn.experience.exploration import EpsilonGreedy, Explorer, uniform_actions
from lightning_dqn.experience.faults import EnvironmentFailure
from lightning_dqn.experience.rewind import EpisodeRecord
from lightning_dqn.experience.stepping import VectorStep
from lightning_dqn.hparams import describe, differences
from lightning_dqn.monitors import WaitingMonitors
from lightning_dqn.ranks import over_ranks
from lightning_dqn.resume import RunState
from lightning_dqn.transition import ReplayBatch

_TRIES = 3  # how often in a row the environments are made again without a step that succeeds


class _Pause(NamedTuple):
    """What a second fit of the same Trainer continues from."""

    data: ExperienceDataModule
    env_steps: int
    counters: dict[str, Any]
    episodes: dict[str, NDArray[Any]]


class ExperienceCollector(Callback):
    """Acts in the training environments and stores what happens, after every batch learned.

    An iteration of training is: learn from a batch, give its TD errors back as priorities, then take
    ``data.train_frequency`` environment steps. The first ``data.learning_starts`` steps are taken at random before the
    first batch. A second ``fit`` of the same Trainer continues the first. The count of environment steps is the run's
    one clock: schedules read it and it is logged with every metric as ``env_steps``.

    Args:
        explorer: Chooses the actions.
        save_replay: Whether full checkpoints are accompanied by the replay, so that a resumed run goes on where it was.
        overlap: Whether the environments step while the learner learns. Actions are then those of the weights before an
            iteration's updates rather than after them, always, so a run is as reproducible as without.

    Raises:
        ValueError: If two collectors would step the environments, or an iteration with ``overlap`` takes more than one
            step of all environments.
    """

    def __init__(self, explorer: Explorer = EpsilonGreedy(), save_replay: bool = True, overlap: bool = False) -> None:
        self.explorer = explorer
        self.save_replay = save_replay
        self.overlap = overlap
        self.episodes = 0
        self.iterations = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=100)
        self._due = 0  # the env step up to which the last iteration collected
        self._state = RunState()
        self._pause: _Pause | None = None
        self._last_log = (0.0, 0.0)
        self._speed: float | None = None
        self._metrics: dict[str, torch.Tensor] = {}
        self._monitors = WaitingMonitors()
        self._failures = 0
        self._stepper: ThreadPoolExecutor | None = None
        self._underway: tuple[NDArray[np.int64], NDArray[np.bool_] | None, Future[VectorStep]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second collector, and a network for other environments; checkpoints are safe, W&B has its x axis.

        Raises:
            ValueError: Naming the field.
        """
        collectors = [callback for callback in trainer.callbacks if isinstance(callback, ExperienceCollector)]  # type: ignore[attr-defined]
        if len(collectors) > 1:
            raise ValueError(
                "trainer.callbacks: two ExperienceCollectors would both step the environments; keep one (the CLI's is "
                "configured under `collect:`)"
            )
        data = data_of(trainer)
        if data is not None:
            check_agreement(pl_module, data)
        if self.overlap and data is not None and data.train_frequency > data.num_envs * trainer.world_size:
            ranks = f" of {trainer.world_size} ranks" if trainer.world_size > 1 else ""
            raise ValueError(
                f"collect.overlap: an iteration takes one step of all environments while it learns, but "
                f"data.train_frequency ({data.train_frequency}) is more than data.num_envs ({data.num_envs}){ranks}"
            )
        self._state.setup(trainer)
        for logger in trainer.loggers:
            run = getattr(logger, "experiment", None)
            if run is not None and trainer.is_global_zero and hasattr(run, "define_metric"):
                run.define_metric("env_steps")
                run.define_metric("*", step_metric="env_steps")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes environments and buffer, and puts back what a checkpoint brought."""
        data = data_of(trainer)
        if data is None:
            return
        may_continue = trainer.ckpt_path is None and trainer.global_step > 0
        pause = self._pause if may_continue and self._pause is not None and self._pause.data is data else None
        self._pause = pause
        if trainer.ckpt_path is None and pause is None:  # from the start, perhaps not the first fit of these objects
            if trainer.global_step > 0:
                rank_zero_warn(
                    "This Trainer has trained before, but not to its end with this data module and collector: network "
                    "and epochs continue, while replay, clock and exploration start again."
                )
            data.env_steps = self.episodes = self.iterations = 0
            self._recent.clear()
            self.explorer.load_state_dict({})
        if pause is not None and pause.env_steps != data.env_steps:
            data.env_steps = pause.env_steps
            self.load_state_dict(pause.counters)
            rank_zero_warn(
                "A checkpoint was loaded between two fits of this Trainer: replay, clock and exploration continue, "
                "with the weights of that checkpoint."
            )
        self._failures = 0
        if pause is None:
            self.rng = data.rng(RandomStream.EXPLORATION)
        self._open(data, keep_buffer=pause is not None)
        self._state.begin(trainer)
        self._stepper = ThreadPoolExecutor(1, "environments") if self.overlap else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fills the buffer with random experience, as far as it is not there already."""
        if trainer.ckpt_path is not None:  # a resumed run can begin with the end of an epoch
            trainer.callback_metrics.update(self._metrics)
        data = data_of(trainer)
        if data is None:
            return
        self._begin(trainer, pl_module, data)
        if self.save_replay and saves_fully(trainer):
            self._state.write_behind(trainer, data)
        if len(data.buffer) == 0:
            warmup = data.batch_size if trainer.fast_dev_run else data.warm_up  # type: ignore[attr-defined]
            self._due = data.env_steps + warmup
            self._warm_up(data, self._due)
            while len(data.buffer) == 0:  # every window may still be open
                self._warm_up(data, data.env_steps + 1)
        self._last_log, self._speed = (data.env_steps, time.monotonic()), None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the running episodes, so that a second fit of the same Trainer continues this one."""
        data = data_of(trainer)
        if data is not None:
            self._pause = _Pause(data, data.env_steps, self.state_dict(), self._episodes(data))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ReplayBatch, batch_idx: int
    ) -> None:
        """Sends the environments on their way, if they step while the learner learns."""
        data = data_of(trainer)
        if data is None or self._stepper is None or data.env_steps >= self._due + data.train_frequency:
            return
        action = self._explore(self._observation, data, trainer, pl_module)
        self._record.note(self._envs.episode_length, action)
        self._underway = action, self._envs.action_mask, self._stepper.submit(self._envs.step, action)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ReplayBatch, batch_idx: int
    ) -> None:
        """Gives priorities back, then takes the environment steps of this iteration."""
        data = data_of(trainer)
        if data is None:
            return
        index, td_error = batch.index, torch.stack(outputs["td_error"])
        if math.isnan(td_error.sum().item()):  # an update whose loss is not finite says nothing about its transitions
            learned = ~td_error.isnan().any(dim=1)
            index, td_error = index[learned], td_error[learned]
        if len(index):
            data.buffer.update_priorities(index, td_error)
        self.iterations += 1
        self._due += data.train_frequency
        if self._underway is not None:
            action, action_mask, step = self._underway
            self._underway = None
            self._take(data, action, action_mask, step.result)
        self._act(trainer, pl_module, data)
        if trainer._logger_connector.should_update_logs:
            self._log(data, pl_module, time.monotonic())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log for callbacks that monitor a metric, without a row, however long ago the last row was."""
        data = data_of(trainer)
        if data is not None:
            self._log_clock(trainer, pl_module, logger=False)
            self._log(data, pl_module, time.monotonic(), logger=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As :meth:`teardown`; lets the module know as well, which Lightning does not."""
        leave_fit = getattr(pl_module, "leave_fit", None)  # the module may be another's
        if leave_fit is not None:
            leave_fit()
        self._stop()
        self._state.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Waits for a step that is under way, as the environments are closed next; writes no more of the replay."""
        self._stop()
        self._state.close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes when validation began."""
        self._validation_start = time.monotonic()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the clock and the return on the scale from random to human; also ``collect/...``, for callbacks."""
        self._log_clock(trainer, pl_module)
        self._log_normalized(trainer, pl_module, "val", "validation_metrics")
        data = data_of(trainer)
        if data is not None and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._log(data, pl_module, self._validation_start, logger=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the time that validation took out of the speed of collection."""
        self._last_log = (self._last_log[0], self._last_log[1] + time.monotonic() - self._validation_start)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the clock in the row of the test metrics, and the return on the scale from random to human."""
        self._log_clock(trainer, pl_module)
        self._log_normalized(trainer, pl_module, "test", "test_metrics")

    def state_dict(self) -> dict[str, Any]:
        """Counters, the env step that collection is due to reach, and what the explorer remembers."""
        return {
            "episodes": self.episodes,
            "iterations": self.iterations,
            "due": self._due,
            "explorer": self.explorer.state_dict(),
            "settings": {"explorer": _described(self.explorer)},
            "recent": [[score, length] for score, length in self._recent],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the counters over."""
        self.episodes = state_dict["episodes"]
        self.iterations = state_dict["iterations"]
        self._due = state_dict["due"]
        changed = any(line.startswith("collect.explorer was ") for line in self._changed_settings(state_dict))
        self.explorer.load_state_dict({} if changed else state_dict["explorer"])  # that of another class is of no use
        self._recent.clear()
        self._recent.extend((score, length) for score, length in state_dict["recent"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the replay into a directory beside the checkpoint; its name goes into the checkpoint."""
        metrics = trainer.callback_metrics
        checkpoint["callback_metrics"] = {name: value.detach().cpu() for name, value in metrics.items()}
        data = data_of(trainer)
        if self.save_replay and data is not None and data.dataset is not None:
            self._state.save(trainer, checkpoint, data, self._episodes(data), self.rng, self.state_dict())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Reads the replay that belongs to the checkpoint; without it, experience is collected anew, with a warning."""
        self._metrics = checkpoint.get("callback_metrics", {})
        saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
        self._state.load(trainer, pl_module, checkpoint, self._changed_settings(saved))

    def _changed_settings(self, state_dict: dict[str, Any]) -> list[str]:
        saved, own = state_dict.get("settings", {}).get("explorer"), _described(self.explorer)
        return [] if saved is None or own is None else differences(saved, own, "collect.explorer")

    def _open(self, data: ExperienceDataModule, keep_buffer: bool) -> None:
        self._envs = data.open(keep_buffer)
        self._record = EpisodeRecord(data.num_envs, data.num_actions)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, data: ExperienceDataModule) -> None:
        if self._state.is_loaded:
            self._observation, self._reference, counters = self._state.put_back(data, self._record, self.rng)
            if counters:
                self.load_state_dict(counters)
        elif self._pause is not None:
            self._restore_episodes(data, self._pause.episodes)
            self._pause = None
        else:
            self._observation = self._envs.reset()
            self._reference = data.buffer.remember(self._observation)

    def _episodes(self, data: ExperienceDataModule) -> dict[str, NDArray[Any]]:
        return self._record.state_arrays(self._envs, self._observation)

    def _warm_up(self, data: ExperienceDataModule, until: int) -> None:
        self._collect(data, until, self._random)

    def _act(self, trainer: Trainer, pl_module: LightningModule, data: ExperienceDataModule) -> None:
        self._collect(data, self._due, lambda observation: self._explore(observation, data, trainer, pl_module))

    def _collect(self, data: ExperienceDataModule, until: int, policy: Any) -> None:
        while data.env_steps < until:
            action = policy(self._observation)
            self._record.note(self._envs.episode_length, action)
            action_mask = self._envs.action_mask
            self._take(data, action, action_mask, partial(self._envs.step, action))

    def _take(
        self,
        data: ExperienceDataModule,
        action: NDArray[np.int64],
        action_mask: NDArray[np.bool_] | None,
        step: Callable[[], VectorStep],
    ) -> None:
        try:
            taken = step()
        except EnvironmentFailure as failure:
            self._failures += 1
            if data.on_env_error == "raise" or self._failures > _TRIES:
                raise
            self._restart(data, failure)
        else:
            self._failures = 0
            self._store(data, action, action_mask, taken)

    def _restart(self, data: ExperienceDataModule, failure: EnvironmentFailure) -> None:
        episodes = self._record.state_arrays(self._envs, self._observation)
        episodes["episode_seed"][slice(None) if failure.index is None else failure.index] = -1
        self._envs = data.open_envs()
        there = self._restore_episodes(data, episodes)
        what = f"{failure}. The environments were made again; {(~there).sum()} of {len(there)} began a new episode."
        self._tell(what)

    def _restore_episodes(self, data: ExperienceDataModule, episodes: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Bring new environments to where others were; return which of them are there, ``[N]``."""
        try:
            self._observation, there = self._record.play_again(self._envs, episodes)
        except EnvironmentFailure:
            self._envs = data.open_envs()
            self._observation, there = self._envs.reset(), np.zeros(data.num_envs, np.bool_)
        data.accumulator.forget(~there)
        self._reference = data.buffer.remember(self._observation, ~there)
        return there

    def _store(
        self,
        data: ExperienceDataModule,
        action: NDArray[np.int64],
        action_mask: NDArray[np.bool_] | None,
        step: VectorStep,
    ) -> None:
        reference, following = self._reference, data.buffer.remember(step.next_observation)
        masks = action_mask, step.next_action_mask
        data.buffer.add(data.accumulator.add(reference, action, *step.outcome, following, step.valid, *masks))
        starts = step.observation is not step.next_observation
        self._reference = data.buffer.remember(step.observation, step.done) if starts else following
        self._observation = step.observation
        data.env_steps += int(np.count_nonzero(step.valid)) * data.world_size
        self._note_ends(step)

    def _tell(self, what: str) -> None:
        rank_zero_warn(what)

    def _stop(self) -> None:
        self._monitors.end()
        if self._stepper is not None:
            self._stepper.shutdown()
        self._stepper = self._underway = None

    def _explore(
        self, observation: NDArray[Any], data: ExperienceDataModule, trainer: Trainer, pl_module: LightningModule
    ) -> NDArray[np.int64]:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            q_values = pl_module(torch.from_numpy(observation).to(pl_module.device)).cpu().numpy()
        return self._choose(q_values, data)

    def _choose(self, q_values: NDArray[np.float32], data: ExperienceDataModule) -> NDArray[np.int64]:
        if self._envs.action_mask is not None:
            q_values = np.where(self._envs.action_mask, q_values, -np.inf)
        return self.explorer(q_values, data.env_steps, self.episodes, self.rng)

    def _note_ends(self, step: VectorStep) -> None:
        done = step.done
        ended = int(np.count_nonzero(done))
        if ended:
            self.episodes += ended
            finished = zip(step.episode_return[done].tolist(), step.episode_length[done].tolist(), strict=True)
            self._recent.extend(finished)

    def _random(self, observation: NDArray[Any]) -> NDArray[np.int64]:
        if self._envs.action_mask is None:
            return self.rng.integers(self._envs.num_actions, size=len(observation))
        return uniform_actions(self._envs.action_mask, self.rng)

    def _log(
        self, data: ExperienceDataModule, pl_module: LightningModule, now: float, logger: bool | None = None
    ) -> None:
        log = partial(_log_exactly, pl_module, logger=logger)
        if logger is None:  # validations and ends of epochs log the clock themselves
            self._log_clock(pl_module.trainer, pl_module)
        returns, lengths = np.array(self._recent or [(0.0, 0)], np.float64).sum(axis=0)
        own = data.env_steps / data.world_size, len(self._recent), returns, lengths
        env_steps, episodes, returns, lengths = over_ranks(pl_module.trainer, own, "sum")
        steps, then = self._last_log
        if logger is None or env_steps > steps:  # right after a row, the speed is the one in that row
            self._speed = (env_steps - steps) / max(now - then, 1e-9)
        if logger is None:
            self._last_log = (env_steps, now)
        if self._speed is not None:
            log("collect/env_steps_per_second", self._speed, prog_bar=True)
        for name, value in self.explorer.schedules(data.env_steps, self.episodes).items():
            log(f"collect/{name}", value, prog_bar=True)
        for name, value in data.buffer.schedules(data.env_steps).items():
            log(f"collect/{name}", value)
        if episodes:
            self._monitors.end()
            log("collect/return", returns / episodes, prog_bar=True)
            log("collect/episode_length", lengths / episodes)
        elif logger is False:
            self._monitors.wait(pl_module.trainer, ("collect/return", "collect/episode_length"))

    def _log_clock(self, trainer: Trainer, pl_module: LightningModule, logger: bool | None = None) -> None:
        data = data_of(trainer)
        if data is not None:
            (env_steps,) = over_ranks(trainer, [data.env_steps / data.world_size], "sum")
            _log_exactly(pl_module, "env_steps", env_steps, logger=logger)

    def _log_normalized(self, trainer: Trainer, pl_module: LightningModule, stage: str, metrics: str) -> None:
        data, played = data_of(trainer), getattr(pl_module, metrics, None)
        scores = None if data is None else data.reference_scores
        if scores is not None and played is not None:  # it is linear, so the score of the mean is the mean of scores
            _log_exactly(pl_module, f"{stage}/human_normalized", scores.normalize(float(played.compute()["return"])))


def _described(explorer: Explorer) -> Any:
    try:
        return describe(explorer)
    except TypeError:  # an explorer that does not keep its arguments
        return None


def _log_exactly(
    pl_module: LightningModule, name: str, value: float, prog_bar: bool = False, logger: bool | None = None
) -> None:
    # a Python number would be logged as float32, which cannot tell 16,777,217 from 16,777,216
    pl_module.log(name, torch.tensor(value, dtype=torch.float64), prog_bar=prog_bar, logger=logger)
