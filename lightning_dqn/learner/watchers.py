"""Whether anyone looks at single gradient steps, or whether the Trainer's hooks around them can be left out."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy

_CALLBACK_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
_MODULE_HOOKS = (*_CALLBACK_HOOKS, "optimizer_zero_grad", "backward", "configure_gradient_clipping")


def updates_are_watched(module: LightningModule, base: type[LightningModule]) -> bool:
    """Whether a gradient step must go through all of the Trainer's hooks.

    The hooks of one step cost an eighth of a small network's whole update, so they are left out where they would do
    nothing: full precision on one device, no profiler, and neither a callback nor a subclass of the module that
    overrides one of them.

    Args:
        module: Attached to its Trainer.
        base: The class whose own hooks do not count.
    """
    trainer = module.trainer
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return (
        type(trainer.strategy) is not SingleDeviceStrategy
        or type(trainer.precision_plugin) is not Precision
        or not isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        or any(_overrides(callback, Callback, _CALLBACK_HOOKS) for callback in callbacks)
        or _overrides(module, base, _MODULE_HOOKS)
    )


def _overrides(instance: object, base: type, hooks: tuple[str, ...]) -> bool:
    # asked of the instance, as LambdaCallback hangs its hooks there
    return any(getattr(getattr(instance, hook), "__func__", None) is not getattr(base, hook) for hook in hooks)
