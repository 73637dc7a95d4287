"""What the Trainer must be like, that updates are what they seem."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.optim import Optimizer

from lightning_dqn.learner.strategies import check_strategy

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_trainer(trainer: Trainer) -> None:
    """Refuses settings under which the updates would not be what they seem.

    Args:
        trainer: About to fit.

    Raises:
        ValueError: Naming the setting.
    """
    scheduled = any(
        isinstance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches()
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )
    if trainer.accumulate_grad_batches != 1 or scheduled:
        raise ValueError(
            "trainer.accumulate_grad_batches must be 1: a batch already holds the minibatches of "
            "data.gradient_steps updates; choose a larger data.batch_size instead"
        )
    check_strategy(trainer.strategy)
    if str(trainer.precision) not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision: {trainer.precision} casts rewards and targets; use 32-true, bf16-mixed or 16-mixed"
        )


def check_optimizers(optimizers: Iterable[Optimizer], target: nn.Module) -> None:
    """Refuses optimizers, made elsewhere, that would also move the target network.

    Args:
        optimizers: Of the run.
        target: The target network.

    Raises:
        ValueError: Naming the setting.
    """
    optimized = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if any(id(parameter) in optimized for parameter in target.parameters()):
        raise ValueError(
            "model.optimizer: this run's optimizer holds the target network as well; choose it by model.optimizer "
            "and give LightningCLI auto_configure_optimizers=False"
        )
