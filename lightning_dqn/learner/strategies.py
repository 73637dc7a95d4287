"""Under which strategies of the Trainer the updates are what they seem."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy


def check_strategy(strategy: Strategy) -> None:
    """Refuses a strategy under which the updates would not be what they seem.

    Args:
        strategy: Of the Trainer.

    Raises:
        ValueError: Naming the setting.
    """
    name = type(strategy).__name__
    supported = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if not supported or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"trainer.strategy: {name} is not supported; a Q-network is small and acting would gather its shards at "
            "every step. Use one device or ddp"
        )
    method = getattr(strategy, "_start_method", "popen")
    if method != "popen":
        raise ValueError(
            f"trainer.strategy: {name} by {method} is not supported; what such processes have collected is lost when "
            "they end. Use ddp, from a script"
        )
