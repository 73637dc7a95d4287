"""What Lightning users bring along works here as its documentation says."""

import copy
import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    RichProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from torch.utils.data import DataLoader

from lightning_dqn import DQNLightningModule, ExperienceDataModule, MLPTorso, ReplayBatch, Transition


def make_data(**kwargs):
    defaults = {
        "num_envs": 2,
        "batch_size": 8,
        "train_frequency": 4,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 40,
        "eval_episodes": 2,
        "eval_num_envs": 2,
        "seed": 0,
    }
    return ExperienceDataModule("CartPole-v1", **(defaults | kwargs))


def rows_of(folder):
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_learning_rate_is_logged_beside_the_clock(make_trainer, make_model, tmp_path):
    data = make_data()
    model = make_model(
        data,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    )
    logger = CSVLogger(tmp_path)
    callbacks = [LearningRateMonitor("step"), ThroughputMonitor(lambda batch: batch.index.numel(), window_size=5)]
    make_trainer(logger=logger, callbacks=callbacks, log_every_n_steps=1, limit_val_batches=0).fit(model, data)
    rates = [float(row["lr-Adam"]) for row in rows_of(tmp_path) if row["lr-Adam"]]
    # the schedule takes a step an iteration, not one for each of its gradient steps
    assert rates == pytest.approx([1e-2 * 0.5**i for i in range(10)])
    assert any(row["train/device/batches_per_sec"] for row in rows_of(tmp_path))


def test_early_stopping_ends_training_where_the_return_gets_no_better(make_trainer, make_model):
    data = make_data()
    stopping = EarlyStopping("val/return", mode="max", patience=0, min_delta=1e6)
    trainer = make_trainer(max_epochs=10, callbacks=[stopping])
    trainer.fit(make_model(data), data)
    assert trainer.current_epoch == 2
    assert stopping.stopped_epoch == 1


def test_a_timer_ends_training(make_trainer, make_model):
    data = make_data()
    trainer = make_trainer(max_epochs=10_000, callbacks=[Timer({"seconds": 1})])
    trainer.fit(make_model(data), data)
    assert 0 < trainer.current_epoch < 10_000


def test_statistics_of_the_device_are_logged(make_trainer, make_model, tmp_path):
    data = make_data()
    logger = CSVLogger(tmp_path)
    monitor = DeviceStatsMonitor(cpu_stats=True)
    make_trainer(logger=logger, callbacks=[monitor], log_every_n_steps=1).fit(make_model(data), data)
    assert any("DeviceStatsMonitor" in name and value for row in rows_of(tmp_path) for name, value in row.items())


def test_the_rich_progress_bar_shows_what_is_logged(make_trainer, make_model, capsys):
    pytest.importorskip("rich")
    data = make_data()
    trainer = make_trainer(enable_progress_bar=True, callbacks=[RichProgressBar(refresh_rate=1)], log_every_n_steps=1)
    trainer.fit(make_model(data), data)
    assert trainer.progress_bar_metrics.keys() >= {"collect/epsilon", "collect/env_steps_per_second"}
    assert "Epoch 0" in capsys.readouterr().out


class Learned(Callback):
    """The online network's weights before every epoch."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.weights.append(copy.deepcopy(pl_module.online.state_dict()))


def test_stochastic_weight_averaging_leaves_the_mean_over_its_epochs(make_trainer, make_model):
    data, learned = make_data(), Learned()
    averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=2, annealing_epochs=1)
    trainer = make_trainer(max_epochs=4, callbacks=[learned, averaging], limit_val_batches=0)
    model = make_model(data)
    trainer.fit(model, data)
    assert trainer.current_epoch == 4
    for name, value in model.online.state_dict().items():
        mean = torch.stack([weights[name] for weights in learned.weights[1:]]).mean(0)
        assert torch.allclose(value, mean, atol=1e-6), name


@pytest.mark.parametrize(
    ("profiler", "name"),
    [
        (SimpleProfiler, "[Callback]ExperienceCollector.on_train_batch_end"),
        (AdvancedProfiler, "optimizer_step"),
        (PyTorchProfiler, "[pl][profile]run_training_batch"),
    ],
)
def test_profilers_name_the_parts_of_an_iteration(make_trainer, make_model, tmp_path, profiler, name):
    data = make_data()
    used = profiler(dirpath=tmp_path, filename="profile")
    make_trainer(profiler=used, limit_val_batches=0).fit(make_model(data), data)
    (path,) = tmp_path.glob("*profile*.txt")
    assert name in path.read_text()


def test_tensorboard_has_every_metric_over_iterations(make_trainer, make_model, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = make_data()
    make_trainer(logger=TensorBoardLogger(tmp_path), log_every_n_steps=1).fit(make_model(data), data)
    (path,) = tmp_path.rglob("events.out.tfevents*")
    events = accumulator.EventAccumulator(str(path)).Reload()
    assert set(events.Tags()["scalars"]) >= {"train/loss", "collect/epsilon", "val/return", "env_steps"}
    clock = [event.value for event in events.Scalars("env_steps")]
    assert clock == sorted(clock)
    assert clock[-1] == 60


def test_mlflow_has_every_metric_and_the_settings(make_trainer, make_model, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    data = make_data()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # making its database takes twenty seconds
    logger = MLFlowLogger("dqn", tracking_uri=f"file:{tmp_path}/mlflow")
    make_trainer(logger=logger, log_every_n_steps=1).fit(make_model(data), data)
    run = mlflow.tracking.MlflowClient(f"file:{tmp_path}/mlflow").get_run(logger.run_id)
    assert run.data.metrics.keys() >= {"train/loss", "collect/epsilon", "val/return", "env_steps"}
    assert run.data.params["gamma"] == "0.99"


# -- a project of somebody else ----------------------------------------------------------------------------------------


class Recorded(LightningDataModule):
    """Batches that somebody recorded: which of two actions pays depends on the sign of the observation."""

    def train_dataloader(self):
        rng = np.random.default_rng(0)
        batches = []
        for _ in range(150):
            state = torch.from_numpy(rng.normal(size=(1, 64, 3)).astype(np.float32))
            action = torch.from_numpy(rng.integers(2, size=(1, 64)))
            reward = ((state[..., 0] > 0) == (action == 1)).float()
            transition = Transition(state, action, reward, torch.zeros(1, 64), state)
            batches.append(ReplayBatch(transition, torch.zeros(1, 64, dtype=torch.int64), torch.ones(1, 64)))
        return DataLoader(batches, batch_size=None)


def test_the_module_learns_in_a_project_that_knows_no_environments(tmp_path):
    losses = []

    class Note(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx > 0:  # callbacks come before the module, which logs
                losses.append(float(trainer.callback_metrics["train/loss"]))

    torch.manual_seed(0)
    model = DQNLightningModule(
        [3], 2, torso=lambda shape: MLPTorso(shape, (32,)), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2)
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[Note()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, datamodule=Recorded())
    state = torch.from_numpy(np.random.default_rng(1).normal(size=(500, 3)).astype(np.float32))
    assert (model.act(state) == (state[:, 0] > 0)).float().mean() > 0.95
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:20])
