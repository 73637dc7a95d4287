"""The optimizer and the learning-rate scheduler that the Trainer is handed."""

from __future__ import annotations

import math
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


@contextmanager
def _naming(field: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        called = next((f" ({name})" for words, name in _CALLED.items() if words in str(error)), "")
        raise ValueError(f"{field}{called}: {error}") from error
