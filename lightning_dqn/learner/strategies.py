"""Under which strategies of the Trainer the updates are what they seem."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy


def why_not(strategy: Strategy) -> str | None:
    """Why a strategy is refused; ``None`` if it is not.

    Args:
        strategy: Of the Trainer.
    """
    name = type(strategy).__name__
    supported = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not supported or isinstance(strategy, DeepSpeedStrategy):
        return (
            f"{name} is not supported; a Q-network is small and acting would gather its shards at every step. Use one "
            "device or ddp"
        )
    method = getattr(strategy, "_start_method", "popen")
    if method != "popen":
        return (
            f"{name} by {method} is not supported; what such processes have collected is lost when they end. Use ddp, "
            "from a script"
        )
    return None
