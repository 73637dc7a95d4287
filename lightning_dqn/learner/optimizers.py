"""The optimizer and the learning-rate scheduler that the Trainer is handed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.types import LRSchedulerConfigType, LRSchedulerTypeUnion
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

# what torch calls arguments of its optimizers in its errors, and what they are called
_CALLED = {"learning rate": "lr", "epsilon": "eps", "beta parameter": "betas"}


def make_optimizer(factory: Callable[[Iterable[Tensor]], Optimizer], parameters: Iterable[Tensor]) -> Optimizer:
    """An optimizer all of whose numbers are finite.

    Args:
        factory: Builds it from the parameters.
        parameters: What it moves.

    Raises:
        ValueError: If a number of it is out of range; names the field.
    """
    with _naming("model.optimizer"):
        optimizer = factory(parameters)
        for name, value in ((name, value) for group in optimizer.param_groups for name, value in group.items()):
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
    # a fused optimizer otherwise refuses gradient clipping under mixed precision; the scaler unscales as for any
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def make_lr_scheduler(
    factory: Callable[[Optimizer], LRSchedulerTypeUnion], optimizer: Optimizer
) -> LRSchedulerConfigType:
    """A scheduler as the Trainer takes it: stepped once per iteration, or after a validation if it waits for a score.

    Args:
        factory: Builds it from the optimizer.
        optimizer: Whose learning rate it sets.

    Raises:
        ValueError: If an argument of it is out of range; names the field.
    """
    with _naming("model.lr_scheduler"):
        scheduler = factory(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        monitor = getattr(scheduler, "monitor", "val/return")
        return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor, "strict": False}
    return {"scheduler": scheduler, "interval": "step"}


def use_new_settings(
    optimizer: Optimizer,
    fresh: Optimizer,
    make_scheduler: Callable[[Optimizer], LRSchedulerTypeUnion] | None,
    steps: int,
) -> LRSchedulerTypeUnion | None:
    """Give an optimizer that was restored from a checkpoint the settings of another; it keeps its moments.

    The learning rate becomes what it would be if the run had had these settings from its start.

    Args:
        optimizer: Changed where it is.
        fresh: An optimizer of the same class with the settings, made from the same parameters.
        make_scheduler: Builds the learning-rate scheduler, if there is one.
        steps: Iterations until now, after each of which the scheduler takes a step.

    Returns:
        The scheduler, which is where it would be after these iterations; ``None`` if there is none.
    """
    for group, settings in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.pop("initial_lr", None)
        group.update({name: value for name, value in settings.items() if name != "params"})
    if make_scheduler is None:
        return None
    scheduler = make_scheduler(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no step between those of the scheduler
        for _ in range(steps):
            scheduler.step()
    return scheduler


@contextmanager
def _naming(field: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        called = next((f" ({name})" for words, name in _CALLED.items() if words in str(error)), "")
        raise ValueError(f"{field}{called}: {error}") from error
