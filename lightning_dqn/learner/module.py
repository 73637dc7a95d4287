"""The learner: an online and a target network, and one training step that serves every algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_dqn.functional import legal_values
from lightning_dqn.hparams import save_plain_hyperparameters
from lightning_dqn.learner.averages import keep_averages
from lightning_dqn.learner.compiled import CompiledForward, CompiledUpdate, Update, say_why
from lightning_dqn.learner.heads import ExpectedHead
from lightning_dqn.learner.metrics import EpisodeMetrics
from lightning_dqn.learner.modes import evaluation_mode, layers_to_switch
from lightning_dqn.learner.networks import HeadFactory, MLPTorso, QNetwork, TorsoFactory
from lightning_dqn.learner.normalization import target_copy
from lightning_dqn.learner.optimizers import check_state, make_lr_scheduler, make_optimizer, use_new_settings
from lightning_dqn.learner.requirements import check_optimizers, check_trainer
from lightning_dqn.learner.resumed_settings import changed_settings, check_network
from lightning_dqn.learner.skipping import SkippedUpdates
from lightning_dqn.learner.targets import DoubleQLearning, TargetRule, check_that_they_fit
from lightning_dqn.learner.threads import limit_threads, restore_threads
from lightning_dqn.learner.watchers import updates_are_watched, why_not_compiled
from lightning_dqn.ranks import of_all_ranks
from lightning_dqn.rng import restore_shared_random_state, separate_shared_random_state, shared_random_state
from lightning_dqn.transition import ReplayBatch, Transition
from lightning_dqn.trust import open_settings


@dataclass
class _Iteration:
    """Which of the ``K`` minibatches of a Lightning batch is next, and what became of those already learned from."""

    batch: ReplayBatch | None = None
    update: int = 0
    losses: list[Tensor] = field(default_factory=list)
    td_errors: list[Tensor] = field(default_factory=list)
    q_values: list[Tensor] = field(default_factory=list)


class _Weights:
    """Parameters and buffers of both networks, in one order."""

    def __init__(self, online: nn.Module, target: nn.Module) -> None:
        self.online: list[Tensor] = list(online.parameters())
        self.target: list[Tensor] = list(target.parameters())
        self.buffers = list(zip(target.buffers(), online.buffers(), strict=True))


class DQNLightningModule(LightningModule):
    """Deep Q-learning as a Lightning module.

    It learns from any dataloader of :class:`~lightning_dqn.transition.ReplayBatch`, one Lightning batch holding the
    minibatches of ``K`` gradient steps, and knows nothing of environments. Optimisation is automatic: gradient
    clipping, precision, learning-rate schedulers (stepped once per batch) and callbacks work as Lightning documents.

    Args:
        observation_shape: Shape of one observation.
        num_actions: Number of discrete actions.
        torso: Builds the feature network from the observation shape.
        head: Builds the head from the number of features and of actions.
        target_rule: What the network is regressed on.
        optimizer: Builds the optimizer from the online network's parameters.
        lr_scheduler: Builds a learning-rate scheduler from the optimizer; stepped once per iteration.
        target_update_period: Gradient steps between two moves of the target network.
        target_update_rate: How far it moves towards the online network, in (0, 1]: 1 is a hard copy; a small rate with
            a period of 1 is Polyak averaging.
        max_skipped_updates: Updates whose loss is not finite are left out; after so many in a row the run stops.
        compile_updates: Whether losses, gradients, clipping and optimizer are compiled to one function, and the forward
            for acting to another. This takes some seconds at the start of a run and makes updates two to three times as
            fast where the network is small. Where that is not possible, a warning says why, and updates go on as they
            are. Results agree to within rounding errors.

    Raises:
        ValueError: If a period or rate is out of range, or head and target rule cannot go together; the message names
            the field.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        torso: TorsoFactory = MLPTorso,
        head: HeadFactory = ExpectedHead,
        target_rule: TargetRule = DoubleQLearning(),
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        target_update_period: int = 1,
        target_update_rate: float = 0.005,
        max_skipped_updates: int = 10,
        compile_updates: bool = False,
    ) -> None:
        super().__init__()
        observation_shape = [int(size) for size in observation_shape]
        num_actions = int(num_actions)
        save_plain_hyperparameters(self)
        if target_update_period < 1:
            raise ValueError(f"model.target_update_period must be at least 1 gradient step, got {target_update_period}")
        if not 0 < target_update_rate <= 1:
            raise ValueError(f"model.target_update_rate must be in (0, 1], got {target_update_rate}")
        if max_skipped_updates < 1:
            raise ValueError(f"model.max_skipped_updates must be at least 1, got {max_skipped_updates}")
        try:
            self.online = QNetwork(observation_shape, num_actions, torso, head)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            raise ValueError(f"model.torso and model.head: the network cannot be made. Too large? {said}") from error
        self.target = target_copy(self.online)
        self.target_rule = target_rule
        check_that_they_fit(self.online.head, self.online.torso.num_features, num_actions, target_rule)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.target_update_period = target_update_period
        self.target_update_rate = target_update_rate
        self.max_skipped_updates = max_skipped_updates
        self.compile_updates = compile_updates
        self.gradient_steps = 0
        self._skipped = SkippedUpdates()
        self._random_states: list[dict[str, Any]] = []
        self._changed: list[str] = []  # settings that a resumed run has and its checkpoint has not
        self.validation_metrics = EpisodeMetrics()
        self.test_metrics = EpisodeMetrics()
        self._iteration = _Iteration()
        self._weights: _Weights | None = None
        self._layers: list[nn.Module] | None = None
        self._watched = True
        self._ranks = 1
        self._threads: int | None = None
        self._compiled: CompiledUpdate | None = None
        self._acting: CompiledForward | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # the Trainer sets this one name several times per hook, and torch's own __setattr__ is a slow way to do so
        if name in ("_current_fx_name", "_iteration", "gradient_steps"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        trust: Sequence[str] = (),
        **kwargs: Any,
    ) -> Self:
        """Return the module that a checkpoint was saved from, with its weights.

        The checkpoint may only name classes of this package, of torch and of trusted modules; nothing else that it
        names is imported or called.

        Args:
            checkpoint_path: A file on this machine, or an open file. A damaged file is replaced by the checkpoint
                before, with a warning.
            map_location: See :func:`torch.load`; if not given, the device that the weights were saved from.
            hparams_file: Refused, as the settings are in the checkpoint.
            strict: Whether the weights must match the network exactly; true if not given.
            weights_only: Not used, as nothing but tensors and plain values is ever loaded.
            trust: Modules whose classes the checkpoint may name too, such as ``("my_package",)``.
            **kwargs: Arguments of the module that replace those of the checkpoint.

        Raises:
            CheckpointError: If the checkpoint cannot be read, is on another machine, or names something outside of the
                allowed modules.
            FileNotFoundError: If there is no file.
            ValueError: If there is a ``hparams_file``.
        """
        checkpoint, settings, builder = open_settings(cls, checkpoint_path, map_location, hparams_file, trust, kwargs)
        module = cls(**builder.arguments(cls, settings, "model"), **kwargs)
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]
        module.load_state_dict(weights, strict=module.strict_loading if strict is None else strict)
        return module.to(next((t.device for t in weights.values() if isinstance(t, Tensor)), "cpu"))

    @property
    def skipped_updates(self) -> int:
        """Updates of this run that were left out because their loss was not finite."""
        return self._skipped.total

    def forward(self, observation: Tensor) -> Tensor:
        """Return Q-values ``[B, A]``, float32, of observations ``[B, *observation_shape]``.

        Without gradients the network is in :meth:`acting_mode`.
        """
        if not self.training or torch.is_grad_enabled():
            q_values: Tensor = self.online(observation).q_values
            return q_values
        with self.acting_mode():
            return self.online(observation).q_values if self._acting is None else self._acting(observation)

    def acting_mode(self) -> AbstractContextManager[None]:
        """Return a context in which both networks are as they act and compute targets during training.

        Their layers are in evaluation mode, so the Q-values of an observation depend on no other observation, dropout
        is off and no statistics move. Layers that sample, such as :class:`~lightning_dqn.learner.noisy.NoisyLinear`,
        stay in training mode.
        """
        if self._layers is None:  # walking the modules costs more than setting their modes
            self._layers = layers_to_switch(self.online) + layers_to_switch(self.target)
        return evaluation_mode(self._layers) if self._layers else nullcontext()

    @torch.no_grad()
    def act(self, observation: Tensor | NDArray[Any], action_mask: Tensor | NDArray[np.bool_] | None = None) -> Tensor:
        """Greedy actions, ``[B]``, int64.

        A network with noise of its own is noisy in training mode; call ``eval()`` to act without.

        Args:
            observation: ``[B, *observation_shape]``, a tensor or an array.
            action_mask: True where an action is legal, ``[B, A]``; ``None`` if all are.
        """
        q_values: Tensor = self(torch.as_tensor(observation, device=self.device))
        if action_mask is not None:
            action_mask = torch.as_tensor(action_mask, dtype=torch.bool, device=self.device)
        return legal_values(q_values, action_mask).argmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer of the online network, and the learning-rate scheduler if there is one.

        A second fit of the same Trainer continues with the optimizer and the scheduler of the first.

        Raises:
            ValueError: If one of their arguments is out of range; names the field.
        """
        kept = self._optimizers_of_last_fit()
        if kept is not None:
            return kept
        optimizer = make_optimizer(self.optimizer_factory, self.online.parameters())
        if self.lr_scheduler_factory is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": make_lr_scheduler(self.lr_scheduler_factory, optimizer)}

    def _optimizers_of_last_fit(self) -> OptimizerLRScheduler:
        if self._trainer is None or not self._continues:
            return None
        strategy, own = self.trainer.strategy, {id(parameter) for parameter in self.online.parameters()}
        if len(strategy.optimizers) != 1:
            return None
        (optimizer,) = strategy.optimizers
        if {id(parameter) for group in optimizer.param_groups for parameter in group["params"]} != own:
            return None  # of another module that this Trainer has trained
        schedulers = strategy.lr_scheduler_configs
        if not schedulers:
            return optimizer
        kept = schedulers[0]
        scheduler = {
            "scheduler": kept.scheduler,
            "interval": kept.interval,
            "monitor": kept.monitor,
            "strict": kept.strict,
        }
        return cast("OptimizerLRScheduler", {"optimizer": optimizer, "lr_scheduler": scheduler})

    @property
    def _continues(self) -> bool:
        """Return True if this fit continues an earlier one of the same Trainer."""
        return self.trainer.ckpt_path is None and self.trainer.global_step > 0

    def configure_callbacks(self) -> list[Callback]:
        """Return the collector, the handler of signals and the claim on the run's folders, where the Trainer has none.

        Raises:
            ValueError: If another run is in a folder of this one; names the field.
        """
        # the learner side knows no data side until it runs
        from lightning_dqn.collector import ExperienceCollector
        from lightning_dqn.run_folder import RunFolders
        from lightning_dqn.signals import GracefulInterrupt

        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        wanted = (ExperienceCollector, GracefulInterrupt, RunFolders)
        added: list[Callback] = [kind() for kind in wanted if not any(isinstance(callback, kind) for callback in given)]
        # Lightning's first hook of a run: later ones come after its loggers have chosen their folders
        next(callback for callback in [*given, *added] if isinstance(callback, RunFolders)).claim(self.trainer)
        return added

    def setup(self, stage: str) -> None:
        """Refuses Trainer settings under which the updates would not be what they seem; gives ranks noise of their own.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.

        Raises:
            ValueError: Naming the setting.
        """
        if stage != "fit":
            return
        check_trainer(self.trainer)
        if not self._continues:
            separate_shared_random_state(self.trainer.global_rank)
        # every rank logs the value of all ranks
        ours = "val/|test/|env_steps|collect/|train/(loss|td_error|q_value|skipped_updates)"
        warnings.filterwarnings("ignore", message=rf".*self\.log\('({ours}).*sync_dist=True")

    def on_fit_start(self) -> None:
        """Takes no more CPU threads than the network is worth, and looks who watches the updates.

        Raises:
            ValueError: If an optimizer made elsewhere would also move the target network.
        """
        check_optimizers(self.trainer.optimizers, self.target)
        if self.trainer.ckpt_path is None and self.trainer.global_step == 0:  # perhaps not the first fit of this model
            self._skipped.reset()
        self._threads = limit_threads(self.online)
        self._watched = updates_are_watched(self, DQNLightningModule)
        self._ranks = self.trainer.world_size
        self._iteration = _Iteration()

    def on_fit_end(self) -> None:
        """Gives the threads back, and forgets what was compiled for this run."""
        self.leave_fit()

    def leave_fit(self) -> None:
        """What there is to do when a fit ends, in whatever way: Lightning tells its callbacks alone of an exception."""
        self._compiled = self._acting = None
        threads, self._threads = self._threads, None
        restore_threads(threads)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._compiled = self._acting = None
        self._layers = None
        self._weights = None  # moving to a device or another dtype may put new tensors in the place of the old
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call,no-any-return]

    def on_train_batch_start(self, batch: ReplayBatch, batch_idx: int) -> None:
        """Begins with the first minibatch; compiles the updates, if they are to be and are not yet."""
        self._iteration = _Iteration(batch)
        if self._compiled is not None:
            self._compiled = self._compiled.prepare(batch)

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Any]:
        """Loss of the next minibatch of the batch.

        Returns:
            ``loss``, and ``td_error``: the unweighted TD errors of the minibatches so far, each ``[B]``.
        """
        iteration, k = self._iteration, self._iteration.update
        transition = batch.transition.map(itemgetter(k))
        loss, td_error, q_values = (self._compiled or self.losses)(transition, batch.weight[k])
        # slices, not append(): an optimizer such as LBFGS runs the closure of one update several times
        iteration.td_errors[k:] = [td_error]
        iteration.losses[k:] = [loss.detach()]
        iteration.q_values[k:] = [q_values]
        if self._ranks > 1:  # what is not finite on one rank has to reach the gradients that all of them will have
            loss = loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        return {"loss": loss, "td_error": iteration.td_errors}

    def losses(self, transition: Transition[Tensor], weight: Tensor) -> Update:
        """What both networks, as they are, say of a minibatch.

        Args:
            transition: Fields ``[B, ...]``.
            weight: Importance weights, ``[B]``.
        """
        prediction = self.online(transition.observation).at(transition.action)
        with torch.no_grad(), self.acting_mode():
            target = self.target_rule(transition, self.online, self.target)
        losses = prediction.loss(target)
        loss = (weight * losses).mean()
        return Update(loss, prediction.td_error(target, losses), prediction.q_values.detach())

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Takes one gradient step per minibatch, by running the closure that often, as LBFGS does.

        The Trainer's per-batch work is so paid once for ``K`` updates, while clipping and precision see every one.
        Where nobody looks at single updates, all but the last leave out the Trainer's hooks, which would do nothing.
        """
        batch = self._iteration.batch
        assert batch is not None
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        unhooked = partial(self._gradients, batch, batch_idx, plain)
        for k in range(len(batch.weight)):
            self._iteration.update = k
            is_last = k == len(batch.weight) - 1
            if self._compiled is not None and optimizer_closure is not None:
                # the optimizer's step is a part of what is compiled; the Trainer wants the closure to have run
                if is_last:
                    optimizer_closure()
                else:
                    self.training_step(batch, batch_idx)
            elif is_last or self._watched:
                optimizer.step(closure=optimizer_closure)
            else:
                plain.step(unhooked)
            self.gradient_steps += 1
            if self.gradient_steps % self.target_update_period == 0:
                self.update_target()
        if self._compiled is not None:
            plain._opt_called = True  # type: ignore[attr-defined]  # else schedulers warn that it has not taken a step
            for loss in torch.stack(self._iteration.losses).tolist():
                self._skipped.note(loss, self.max_skipped_updates)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Goes back through the losses, unless that was a part of what is compiled."""
        if self._compiled is None:
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clips gradients, unless that was a part of what is compiled."""
        if self._compiled is None:
            super().configure_gradient_clipping(*args, **kwargs)

    def _gradients(self, batch: ReplayBatch, batch_idx: int, optimizer: Optimizer) -> float:
        """What the Trainer's closure does, less the hooks."""
        loss: Tensor = self.training_step(batch, batch_idx)["loss"]
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        self.on_after_backward()
        clip = self.trainer.gradient_clip_val
        if clip is not None:
            self.configure_gradient_clipping(optimizer, clip, self.trainer.gradient_clip_algorithm)
        return loss  # type: ignore[return-value]

    def on_after_backward(self) -> None:
        """Leaves out an update whose loss is not finite, so that it moves no weight, and counts it.

        Under several ranks it is their common gradient that has to be finite, so all leave out the same updates. On one
        rank nobody looks at gradients, which would take time in every update: one that is not finite though its loss
        is, as that of a square root at 0, does reach the weights.

        Raises:
            FloatingPointError: After ``max_skipped_updates`` in a row.
        """
        if self._compiled is not None:
            return
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        judged = self._iteration.losses[-1] if self._ranks == 1 or scaled else self._gradient_norm()
        if self._skipped.note(judged.item(), self.max_skipped_updates):
            return
        self._iteration.td_errors[-1] = torch.full_like(self._iteration.td_errors[-1], torch.nan)
        if not scaled:  # a scaler leaves such updates out itself
            for parameter in self.online.parameters():
                parameter.grad = None

    def _gradient_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.online.parameters() if parameter.grad is not None]
        norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
        return norm

    @torch.no_grad()
    def update_target(self) -> None:
        """Moves the target network towards the online network by ``target_update_rate``.

        A rate of 1 makes it an exact copy ("Human-level control through deep reinforcement learning", Mnih et al. 2015,
        algorithm 1); a smaller one averages ("Continuous control with deep reinforcement learning", Lillicrap et al.
        2016, algorithm 1). Buffers, such as batch-norm statistics, are always copied; those of a
        :class:`~lightning_dqn.learner.normalization.NormalizedTorso` are shared.
        """
        if self._weights is None:  # walking the modules costs more than moving the weights of a small network
            self._weights = _Weights(self.online, self.target)
        weights = self._weights
        if self.target_update_rate == 1:
            torch._foreach_copy_(weights.target, weights.online)
        else:
            torch._foreach_lerp_(weights.target, weights.online, self.target_update_rate)
        for stale, fresh in weights.buffers:
            stale.copy_(fresh)

    def on_train_batch_end(self, outputs: Any, batch: ReplayBatch, batch_idx: int) -> None:
        """Log means over the ``K`` updates where a logger writes a row: at every batch, logging would cost too much."""
        if self.trainer._logger_connector.should_update_logs:
            self._log_updates(logger=None)

    def on_train_epoch_end(self) -> None:
        """Log the means of the last iteration for callbacks that monitor them, without a row."""
        self._log_updates(logger=False)

    def on_validation_start(self) -> None:
        """Forgets the episodes of a validation that was broken off."""
        self.validation_metrics.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Plays a batch of :class:`~lightning_dqn.experience.evaluation.EvaluationEpisodes` greedily."""
        self._play(batch, self.validation_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/return``, ``val/return_iqm`` and ``val/episode_length``; also ``train/...``, for callbacks."""
        self._log_episodes("val", self.validation_metrics)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._log_updates(logger=False)

    def on_test_start(self) -> None:
        """Forgets the episodes of a test that was broken off."""
        self.test_metrics.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Plays a batch of :class:`~lightning_dqn.experience.evaluation.EvaluationEpisodes` greedily."""
        self._play(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/return``, ``test/return_iqm`` and ``test/episode_length``."""
        self._log_episodes("test", self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, float]]:
        """Plays a batch of episodes greedily.

        Returns:
            For each episode its ``seed``, ``return`` and ``length``.
        """
        played = batch.play(self._policy)
        return [
            {"seed": int(seed), "return": float(score), "length": int(length)}
            for seed, score, length in zip(played.seeds, played.returns, played.lengths, strict=True)
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counts of updates, on which the target network's moves depend, and the shared generators.

        Averages that a callback makes of the weights are saved in their place, also where weights alone are.
        """
        if self._trainer is not None:  # a strategy can save a module that no Trainer has
            keep_averages(self._trainer, self, checkpoint)
        checkpoint["gradient_steps"] = self.gradient_steps
        checkpoint["skipped_updates"] = self._skipped.state_dict()
        checkpoint["random_state"] = shared_random_state()
        if self._ranks > 1:  # one rank writes for all
            checkpoint["random_states"] = of_all_ranks(self.trainer, checkpoint["random_state"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts of updates; validate that this module can continue the run.

        Raises:
            ValueError: If the checkpoint is for other observations or actions, as from another environment; or if it
                has another network, or for a fit another class of optimizer, or if the Trainer has trained before.
        """
        for name in ("observation_shape", "num_actions"):
            saved, own = checkpoint["hyper_parameters"][name], self.hparams[name]
            if saved != own and list(np.atleast_1d(saved)) != list(np.atleast_1d(own)):
                raise ValueError(
                    f"ckpt_path: the checkpoint was made for {name} {saved}, this model has {own}; is it from another "
                    "environment (data.env_id)?"
                )
        if self._trainer is not None:
            if self.trainer.state.fn == "fit" and self.trainer.global_step > 0:  # Lightning would train nothing
                raise ValueError("ckpt_path: this Trainer has trained before. Make a new Trainer to resume.")
            check_network(checkpoint["state_dict"], self.state_dict())
            if self.trainer.state.fn == "fit":
                self._changed = changed_settings(checkpoint["hyper_parameters"], self.hparams)
        self.gradient_steps = checkpoint["gradient_steps"]
        self._skipped.load_state_dict(checkpoint.get("skipped_updates", {}))
        alone = [checkpoint["random_state"]] if "random_state" in checkpoint else []
        self._random_states = checkpoint.get("random_states", alone)

    def on_train_start(self) -> None:
        """Puts the shared generators back, as the last thing before training goes on, and makes ready to compile."""
        states, self._random_states = self._random_states, []
        own = self.trainer.global_rank
        if own < len(states) and self.trainer.ckpt_path is not None:
            restore_shared_random_state(states[own])
        self._use_changed_settings()
        if self.compile_updates:
            self._compiled, self._acting = self._compile(), CompiledForward(self.online)

    def _use_changed_settings(self) -> None:
        changed, self._changed = self._changed, []
        lines = [line for line in changed if line.startswith(("model.optimizer", "model.lr_scheduler"))]
        is_own = type(self).configure_optimizers is DQNLightningModule.configure_optimizers
        if not lines or not is_own or "configure_optimizers" in vars(self):
            return
        trainer, factory = self.trainer, self.lr_scheduler_factory
        optimizer, fresh = trainer.optimizers[0], make_optimizer(self.optimizer_factory, self.online.parameters())
        check_state(optimizer, self.optimizer_factory, lines)
        make = None if factory is None else lambda optimizer: make_lr_scheduler(factory, optimizer)["scheduler"]
        scheduler = use_new_settings(optimizer, fresh, make, trainer.global_step, lines)
        for config in trainer.lr_scheduler_configs:
            config.scheduler = config.scheduler if scheduler is None else scheduler

    def _compile(self) -> CompiledUpdate | None:
        trainer = self.trainer
        obstacle = why_not_compiled(self, DQNLightningModule)
        try:
            if obstacle is not None:
                raise ValueError(obstacle)
            return CompiledUpdate(
                self.online,
                self.target,
                self.losses,
                trainer.optimizers[0],
                trainer.gradient_clip_val,
                trainer.gradient_clip_algorithm or "norm",
                trainer.precision_plugin.train_step_context,
            )
        except ValueError as error:
            say_why(error, "updates go")
            return None

    def _play(self, episodes: Any, metrics: EpisodeMetrics) -> None:
        played = episodes.play(self._policy)
        metrics.update(torch.from_numpy(played.returns), torch.from_numpy(played.lengths))

    def _policy(self, observation: NDArray[Any], action_mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        return self.act(observation, action_mask).cpu().numpy()

    def _log_updates(self, logger: bool | None) -> None:
        logged = {
            "train/loss": self._iteration.losses,
            "train/td_error": self._iteration.td_errors,
            "train/q_value": self._iteration.q_values,
        }
        if not self._iteration.losses:  # a resumed run can end an epoch whose last iteration was before the checkpoint
            return
        means = torch.stack([torch.stack(values).mean() for values in logged.values()])
        means = self.trainer.strategy.reduce(means, reduce_op="mean")
        for name, mean in zip(logged, means, strict=True):
            self.log(name, mean, logger=logger)
        if self.skipped_updates or logger is False:
            self.log("train/skipped_updates", float(self.skipped_updates), logger=logger)

    def _log_episodes(self, stage: str, metrics: EpisodeMetrics) -> None:
        for name, value in metrics.compute().items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "return")
        metrics.reset()
