from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_dqn import ExperienceCollector, ExperienceDataModule
from lightning_dqn.resume import RunState, data_of
from tests.environments import Chain


@pytest.mark.parametrize("own", [True, False])
def test_only_our_data_module_is_filled(own):
    data = ExperienceDataModule(Chain) if own else DataLoader([])
    assert data_of(SimpleNamespace(datamodule=data)) is (data if own else None)


def test_nothing_is_put_back_that_was_not_loaded():
    state = RunState()
    assert not state.is_loaded
    with pytest.raises(AssertionError, match="nothing was loaded"):
        state.put_back(ExperienceDataModule(Chain), None, None)


@pytest.mark.parametrize("save_replay", [True, False])
def test_the_replay_goes_where_the_full_checkpoints_go(make_trainer, make_model, tmp_path, save_replay):
    data = ExperienceDataModule(Chain, num_envs=2, learning_starts=8, batch_size=4, steps_per_epoch=16)
    weights = ModelCheckpoint(tmp_path / "weights", "best", monitor="val/return", save_weights_only=True)
    latest = ModelCheckpoint(tmp_path / "full", "latest", save_on_train_epoch_end=False)
    collector = ExperienceCollector(save_replay=save_replay)
    make_trainer(callbacks=[collector, weights, latest], enable_checkpointing=True).fit(make_model(data), data)
    assert (tmp_path / "full" / "latest.ckpt").is_file()
    assert not (tmp_path / "weights" / "replay").exists()
    assert (tmp_path / "full" / "replay").exists() == save_replay
