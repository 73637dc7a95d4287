from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import IterableDataset

from lightning_dqn import DQNLightningModule, MLPTorso, ReplayBatch, Transition
from lightning_dqn.learner.watchers import updates_are_watched
from lightning_dqn.watch import ProgressBar

K, BATCHES = 4, 5
HOOKS = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]


class Batches(IterableDataset):
    """The same few batches each time."""

    def __len__(self):
        return BATCHES

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(BATCHES):
            observation, following = torch.randn(2, K, 8, 3, generator=generator)
            action = torch.randint(2, (K, 8), generator=generator)
            reward = torch.randn(K, 8, generator=generator)
            transition = Transition(observation, action, reward, torch.full((K, 8), 0.9), following)
            yield ReplayBatch(transition, torch.zeros(K, 8, dtype=torch.int64), torch.ones(K, 8))


def fitted(tmp_path, kind=DQNLightningModule, callbacks=(), **arguments):
    torch.manual_seed(0)
    model = kind([3], 2, torso=partial(MLPTorso, hidden_sizes=(8,)), target_update_period=3, target_update_rate=1.0)
    arguments = {"logger": CSVLogger(tmp_path), "accelerator": "cpu", "limit_val_batches": 0} | arguments
    trainer = Trainer(max_epochs=1, callbacks=[ProgressBar(), *callbacks], **arguments)
    trainer.fit(model, train_dataloaders=Batches())
    return model


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_nobody_watches_an_ordinary_run(tmp_path):
    callbacks = [ModelCheckpoint(tmp_path), LearningRateMonitor()]
    assert not updates_are_watched(fitted(tmp_path, callbacks=callbacks), DQNLightningModule)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_wants_to_sees_every_update(tmp_path, hook):
    calls = []
    watching = type("Watching", (Callback,), {hook: lambda self, *_: calls.append(hook)})
    model = fitted(tmp_path, callbacks=[watching()])
    assert updates_are_watched(model, DQNLightningModule)
    assert len(calls) == K * BATCHES


def test_a_hook_hung_on_an_instance_is_noticed(tmp_path):
    calls = []
    fitted(tmp_path, callbacks=[LambdaCallback(on_before_optimizer_step=lambda *_: calls.append(1))])
    assert len(calls) == K * BATCHES


@pytest.mark.parametrize("hook", [*HOOKS, "optimizer_zero_grad", "configure_gradient_clipping"])
def test_a_subclass_that_wants_to_sees_every_update(tmp_path, hook):
    calls = []

    def watch(self, *arguments, **keywords):
        calls.append(hook)
        return getattr(DQNLightningModule, hook)(self, *arguments, **keywords)

    kind = type("Watching", (DQNLightningModule,), {hook: watch})
    fitted(tmp_path, kind)
    assert len(calls) == K * BATCHES


@pytest.mark.parametrize(
    "arguments", [{"precision": "bf16-mixed"}, {"profiler": "simple"}], ids=lambda arguments: next(iter(arguments))
)
def test_other_precision_and_profilers_see_every_update(tmp_path, arguments):
    assert updates_are_watched(fitted(tmp_path, **arguments), DQNLightningModule)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_watched_or_not_the_weights_are_the_same(tmp_path, clip, algorithm):
    arguments = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
    unwatched = fitted(tmp_path, **arguments)
    watching = type("Watching", (Callback,), {"on_after_backward": lambda self, *_: None})
    watched = fitted(tmp_path, callbacks=[watching()], **arguments)
    assert updates_are_watched(watched, DQNLightningModule)
    assert not updates_are_watched(unwatched, DQNLightningModule)
    assert torch.equal(weights(watched), weights(unwatched))
    assert watched.gradient_steps == unwatched.gradient_steps == K * BATCHES
