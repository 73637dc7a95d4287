from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import EpochCheckpoint, ExperienceCollector, ExperienceDataModule
from lightning_dqn.cli import main
from tests.environments import Chain
from tests.runs import QUIET, SMALL

NEVER = "--trainer.limit_val_batches=0"
RUN = Path("runs/cartpole/version_0/checkpoints")


class Saves(Callback):
    """Notes in which epoch a checkpoint was saved, and whether a validation of the epoch came before it."""

    def __init__(self):
        self.saves, self.validated = [], False

    def on_train_epoch_start(self, trainer, pl_module):
        self.validated = False

    def on_validation_start(self, trainer, pl_module):
        self.validated = True

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saves.append((trainer.current_epoch, self.validated))


def fit(make_trainer, make_model, *savers, **kwargs):
    """Fit four epochs; return the saves and the Trainer."""
    data = ExperienceDataModule(
        Chain, num_envs=2, learning_starts=8, batch_size=4, steps_per_epoch=16, train_frequency=4, eval_episodes=2
    )
    noted = Saves()
    callbacks = [ExperienceCollector(save_replay=False), noted, *savers]
    trainer = make_trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True, **kwargs)
    trainer.fit(make_model(data), data)
    return noted.saves, trainer


@pytest.mark.parametrize("save_on_train_epoch_end", [False, True, None])
@pytest.mark.parametrize(
    ("kwargs", "validated"),
    [
        ({}, [True, True, True, True]),
        ({"check_val_every_n_epoch": 2}, [False, True, False, True]),
        ({"check_val_every_n_epoch": 3}, [False, False, True, True]),  # the last epoch always has a validation
        ({"limit_val_batches": 0}, [False, False, False, False]),
        ({"limit_val_batches": 0, "check_val_every_n_epoch": 2}, [False, False, False, False]),
    ],
)
def test_epoch_checkpoint_saves_every_epoch_once_after_its_validation(
    make_trainer, make_model, tmp_path, kwargs, validated, save_on_train_epoch_end
):
    saver = EpochCheckpoint(tmp_path, "latest", save_on_train_epoch_end=save_on_train_epoch_end)
    saves, trainer = fit(make_trainer, make_model, saver, **kwargs)
    assert saves == list(enumerate(validated))
    assert torch.load(saver.best_model_path, weights_only=True)["global_step"] == trainer.global_step


def test_epoch_checkpoint_saves_after_validations_within_an_epoch_too(make_trainer, make_model, tmp_path):
    saver = EpochCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False)
    saves, _ = fit(make_trainer, make_model, saver, val_check_interval=2, limit_train_batches=3)
    assert saves == [(epoch, True) for epoch in range(4) for _ in range(2)]


def test_epoch_checkpoint_skips_epochs_as_told(make_trainer, make_model, tmp_path):
    saver = EpochCheckpoint(tmp_path, "latest", every_n_epochs=2, save_on_train_epoch_end=False)
    saves, _ = fit(make_trainer, make_model, saver, limit_val_batches=0)
    assert saves == [(1, False), (3, False)]


def test_fast_dev_run_saves_nothing(make_trainer, make_model, tmp_path):
    saver = EpochCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False)
    saves, _ = fit(make_trainer, make_model, saver, fast_dev_run=2)
    assert saves == []


def test_default_checkpoint_of_a_plain_trainer_saves_without_validation(make_trainer, make_model, tmp_path):
    saves, trainer = fit(make_trainer, make_model, limit_val_batches=0)
    assert type(trainer.checkpoint_callback) is ModelCheckpoint
    assert saves == [(epoch, False) for epoch in range(4)]


def test_fit_without_validation_keeps_latest_and_reports_that_best_is_missing(capsys):
    main(["fit", "--config=cartpole", *SMALL, *QUIET, NEVER, "--video=null"])
    said = capsys.readouterr().out
    assert said.count("no best.ckpt: it needs val/return, and no validation of this run has logged val/return") == 1
    assert f"go on with --ckpt_path {RUN}/latest.ckpt" in said
    assert torch.load(RUN / "latest.ckpt", weights_only=True)["ExperienceDataModule"]["env_steps"] == 192
    assert not (RUN / "best.ckpt").exists()


def test_fit_with_validation_reports_no_missing_checkpoint(capsys):
    main(["fit", "--config=cartpole", *SMALL, *QUIET, "--video=null"])
    assert "no best.ckpt" not in capsys.readouterr().out


@pytest.mark.parametrize("more", ["--trainer.fast_dev_run=true", "--trainer.enable_checkpointing=false"])
def test_fit_without_checkpoints_reports_no_missing_checkpoint(capsys, more):
    main(["fit", "--config=cartpole", *SMALL, *QUIET, NEVER, "--video=null", more])
    assert "no best.ckpt" not in capsys.readouterr().out
    assert not list(Path().rglob("*.ckpt"))
