import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_dqn import ExperienceDataModule
from tests.environments import Chain


def make_data(env_kwargs):
    """Return the data of a run in which an environment takes 10 steps first, then 20 in an epoch."""
    return ExperienceDataModule(
        Chain,
        env_kwargs=env_kwargs,
        num_envs=2,
        batch_size=4,
        train_frequency=8,
        learning_starts=20,
        steps_per_epoch=40,
        eval_episodes=2,
        max_eval_steps=5,
        seed=0,
    )


def test_callbacks_that_monitor_the_return_wait_for_the_first_episode(make_trainer, make_model, tmp_path):
    data = make_data(env_kwargs={"limits": (None,), "length": 40})
    stop = EarlyStopping("collect/return", mode="max", patience=1)
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="collect/return", mode="max", save_top_k=-1)
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, log_every_n_steps=50, callbacks=[stop, best])
    with pytest.warns(UserWarning, match="monitors collect/return, but no training episode has ended") as warned:
        trainer.fit(make_model(data), data)
    assert sum("no training episode" in str(warning.message) for warning in warned) == 2  # once for each callback
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=1.ckpt", "epoch=2.ckpt"]
    assert stop.best_score == sum(range(1, 41))
    assert (stop.strict, best.save_top_k) == (True, -1)


def test_callbacks_that_waited_to_the_end_of_the_run_have_their_settings_back(make_trainer, make_model, tmp_path):
    data = make_data(env_kwargs={"limits": (None,), "length": 1000})
    stop, best = EarlyStopping("collect/return"), ModelCheckpoint(tmp_path, monitor="collect/episode_length")
    trainer = make_trainer(max_epochs=2, enable_checkpointing=True, callbacks=[stop, best])
    with pytest.warns(UserWarning, match="no training episode has ended"):
        trainer.fit(make_model(data), data)
    assert trainer.current_epoch == 2
    assert (stop.strict, best.save_top_k) == (True, 1)
