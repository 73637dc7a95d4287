"""A callback that sends the process a signal, for runs from the command line."""

import signal

from lightning.pytorch import Callback


class Raise(Callback):
    """Raises a signal in the middle of an iteration, counted over the whole run."""

    def __init__(self, iteration: int, name: str) -> None:
        self.iteration, self.name = iteration, name

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.iteration and pl_module._iteration.update == 0:
            signal.raise_signal(signal.Signals[self.name])
