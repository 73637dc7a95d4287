"""The optimizer and the learning-rate scheduler that the Trainer is handed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
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


def check_state(optimizer: Optimizer, factory: Callable[[Iterable[Tensor]], Optimizer], changed: Sequence[str]) -> None:
    """Validate that the state of an optimizer in a checkpoint is the state that changed settings need.

    Args:
        optimizer: The restored optimizer.
        factory: Builds an optimizer with the changed settings.
        changed: The changed settings, in words.

    Raises:
        ValueError: If the new settings need another state; names them.
    """
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    probe = factory([parameter])
    try:
        probe.step()
    except TypeError:  # it needs a closure, as LBFGS does
        return
    found = next((set(state) for state in optimizer.state.values()), None)
    if found is not None and found != set(probe.state[parameter]):
        raise ValueError(
            f"ckpt_path: {'; '.join(changed)}. The optimizer in the checkpoint has no state for it: use the settings "
            "of the checkpoint or start a new run."
        )


def use_new_settings(
    optimizer: Optimizer,
    fresh: Optimizer,
    make_scheduler: Callable[[Optimizer], LRSchedulerTypeUnion] | None,
    steps: int,
    changed: Sequence[str] = (),
) -> LRSchedulerTypeUnion | None:
    """Give an optimizer that was restored from a checkpoint the settings of another; it keeps its moments.

    The learning rate becomes what it would be if the run had had these settings from its start.

    Args:
        optimizer: Changed where it is.
        fresh: An optimizer of the same class with the settings, made from the same parameters.
        make_scheduler: Builds the learning-rate scheduler, if there is one.
        steps: Iterations until now, after each of which the scheduler takes a step.
        changed: The changed settings, in words.

    Returns:
        The scheduler, which is where it would be after these iterations; ``None`` to keep the one that there is.

    Raises:
        ValueError: If the learning rate or its schedule has changed, and the schedule follows a metric.
    """
    new_groups = [dict(group) for group in fresh.param_groups]  # a scheduler changes the learning rate
    follows_a_metric = make_scheduler is not None and isinstance(make_scheduler(fresh), ReduceLROnPlateau)
    for line in changed:
        if follows_a_metric and line.startswith(("model.lr_scheduler", "model.optimizer.lr ")):
            raise ValueError(
                f"ckpt_path: {line}. A schedule that follows a metric cannot be resumed with other settings: use the "
                "settings of the checkpoint or start a new run."
            )
    kept = ("params", "lr", "initial_lr") if follows_a_metric else ("params",)
    for group, settings in zip(optimizer.param_groups, new_groups, strict=True):
        if not follows_a_metric:
            group.pop("initial_lr", None)
        group.update({name: value for name, value in settings.items() if name not in (*kept, "initial_lr")})
    if make_scheduler is None or follows_a_metric:
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
