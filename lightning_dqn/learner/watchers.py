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
    nothing: full precision, and nobody who :func:`watches <watcher>`.

    Args:
        module: Attached to its Trainer.
        base: The class whose own hooks do not count.
    """
    return type(module.trainer.precision_plugin) is not Precision or watcher(module, base) is not None


def watcher(module: LightningModule, base: type[LightningModule]) -> str | None:
    """Who wants to see every gradient step: another strategy than one device, a profiler, a callback, a subclass.

    Args:
        module: Attached to its Trainer.
        base: The class whose own hooks do not count.

    Returns:
        What it is, as the beginning of a message; ``None`` if there is nobody.
    """
    trainer = module.trainer
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if type(trainer.strategy) is not SingleDeviceStrategy:
        return f"trainer.strategy ({type(trainer.strategy).__name__})"
    if not isinstance(trainer.profiler, PassThroughProfiler):  # type: ignore[attr-defined]
        return f"trainer.profiler ({type(trainer.profiler).__name__})"  # type: ignore[attr-defined]
    for callback in callbacks:
        if _overrides(callback, Callback, _CALLBACK_HOOKS):
            return f"trainer.callbacks ({type(callback).__name__})"
    return f"model ({type(module).__name__})" if _overrides(module, base, _MODULE_HOOKS) else None


def why_not_compiled(module: LightningModule, base: type[LightningModule]) -> str | None:
    """Why updates cannot be one compiled function; ``None`` if they can.

    Args:
        module: Attached to its Trainer.
        base: The class whose own hooks and training step do not count.
    """
    trainer = module.trainer
    if type(module).training_step is not base.training_step:
        who: str | None = f"model ({type(module).__name__}) has a training_step of its own and"
    elif getattr(trainer.precision_plugin, "scaler", None) is not None:
        who = f"trainer.precision ({trainer.precision})"
    elif trainer.world_size > 1:
        who = f"trainer.strategy ({type(trainer.strategy).__name__}) averages gradients over ranks and"
    else:
        who = watcher(module, base)
    return None if who is None else f"{who} wants to see every gradient step"


def _overrides(instance: object, base: type, hooks: tuple[str, ...]) -> bool:
    # asked of the instance, as LambdaCallback hangs its hooks there
    return any(getattr(getattr(instance, hook), "__func__", None) is not getattr(base, hook) for hook in hooks)
