"""Who sends the process a signal: a callback and an environment, for runs from the command line."""

import shutil
import signal
import time

import gymnasium as gym
from lightning.pytorch import Callback


class Raise(Callback):
    """Raises a signal in the middle of an iteration, counted over the whole run."""

    raised = 0.0  # when the last one was

    def __init__(self, iteration: int, name: str) -> None:
        self.iteration, self.name = iteration, name

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.iteration and pl_module._iteration.update == 0:
            Raise.raised = time.time()
            signal.raise_signal(signal.Signals[self.name])


class CopyFolder(Callback):
    """Copies a folder when an epoch starts, so that what the epoch before has saved is kept."""

    def __init__(self, epoch: int, source: str, target: str) -> None:
        self.epoch, self.source, self.target = epoch, source, target

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            shutil.copytree(self.source, self.target)


class RaiseInStep(gym.Wrapper):
    """Raises a signal in the middle of a step, counted over all environments and episodes."""

    taken = 0

    def __init__(self, env, step: int, name: str) -> None:
        super().__init__(env)
        self.number, self.name = step, name

    def step(self, action):
        RaiseInStep.taken += 1
        if RaiseInStep.taken == self.number:
            signal.raise_signal(signal.Signals[self.name])
        return self.env.step(action)
