"""Checkpoints of runs whose weights a callback averages."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from tests.test_interop import make_data


class Notes(Callback):
    """The weights after every iteration, and those that every validation was played with."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(copy.deepcopy(pl_module.online.state_dict()))

    def on_validation_batch_end(self, trainer, pl_module, *args):
        self.validated.append(copy.deepcopy(pl_module.online.state_dict()))


def average(trained, decay):
    """What the callback does, by hand."""
    expected = trained[0]
    for weights in trained[1:]:
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
    return expected


def same(weights, expected):
    return all(torch.allclose(weights[name], value, atol=1e-7) for name, value in expected.items())


@pytest.mark.parametrize("weights_only", [True, False])
def test_what_was_validated_is_what_is_kept(make_trainer, make_model, tmp_path, weights_only):
    data, notes = make_data(), Notes()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/return", mode="max", save_weights_only=weights_only)
    trainer = make_trainer(enable_checkpointing=True, callbacks=[notes, EMAWeightAveraging(decay=0.5), best])
    trainer.fit(make_model(data), data)
    expected = average(notes.trained, 0.5)
    assert len(notes.trained) == 10
    assert not same(notes.trained[-1], expected)
    assert same(notes.validated[-1], expected)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert same({name.removeprefix("online."): value for name, value in kept["state_dict"].items()}, expected)
    assert ("optimizer_states" in kept) == ("averaging_state" in kept) == (not weights_only)


def test_without_averages_weights_are_kept_as_they_are(make_trainer, make_model, tmp_path):
    data, notes = make_data(), Notes()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/return", mode="max", save_weights_only=True)
    make_trainer(enable_checkpointing=True, callbacks=[notes, best]).fit(make_model(data), data)
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert same({name.removeprefix("online."): value for name, value in kept["state_dict"].items()}, notes.trained[-1])
