"""Callbacks that monitor a metric before it has a value."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

# the setting under which a callback skips a metric that is missing, where it would otherwise raise
_SKIPPING: dict[type[Callback], tuple[str, Any]] = {
    EarlyStopping: ("strict", False),
    ModelCheckpoint: ("save_top_k", 0),
}


class WaitingMonitors:
    """A switch that lets callbacks skip the metrics they monitor until these have a value.

    ``EarlyStopping`` and ``ModelCheckpoint`` would stop the run with an error. NaN in place of the missing value would
    be no better: ``EarlyStopping`` takes it for divergence and ends training.
    """

    def __init__(self) -> None:
        self._changed: list[tuple[Callback, str, Any]] = []  # callbacks, and the setting that each had

    def wait(self, trainer: Trainer, missing: Collection[str]) -> None:
        """Let the Trainer's callbacks skip some metrics; warn of it the first time.

        Args:
            trainer: The Trainer with the callbacks.
            missing: Names of metrics that have no value yet.
        """
        if self._changed:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            skipping = next((_SKIPPING[kind] for kind in _SKIPPING if isinstance(callback, kind)), None)
            if monitor not in missing or skipping is None:
                continue
            name, value = skipping
            self._changed.append((callback, name, getattr(callback, name)))
            setattr(callback, name, value)
            rank_zero_warn(
                f"{type(callback).__name__} monitors {monitor}, but no training episode has ended yet. It waits until "
                "one has; raise data.steps_per_epoch or data.learning_starts if it should have a value earlier."
            )

    def end(self) -> None:
        """Restore the callbacks' settings, because the metrics have values now or the run is over."""
        while self._changed:
            callback, name, value = self._changed.pop()
            setattr(callback, name, value)
