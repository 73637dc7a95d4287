"""Every shipped configuration parses, and trains for a few steps."""

import csv
from pathlib import Path

import pytest
import yaml

from lightning_dqn.cli import DQNCLI, main
from lightning_dqn.shipped import find_config, shipped_configs
from tests.presets import ALGORITHMS

SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.learning_starts=64",
    "--data.batch_size=16",
    "--data.steps_per_epoch=128",
    "--data.eval_episodes=2",
    "--data.max_eval_steps=20",
]
# the replay of a million images would not fit into a test
SMALLER = {"atari": ["--data.buffer.capacity=500", "--data.train_frequency=2", "--data.eval_num_envs=2"]}
ENVIRONMENTS = [*sorted(name for name, path in shipped_configs().items() if path.parent.name == "env"), "tutorial"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_trains(name, tmp_path, request):
    if name == "lunarlander":
        pytest.importorskip("Box2D")
    # half a minute that test_compiled.py spends once: updates are recorded, and run as they were recorded
    recorded = request.getfixturevalue("compilations") if name == "minatar" else []
    main(["fit", f"--config={name}", *SMALL, *SMALLER.get(name, [])])
    (metrics,) = tmp_path.glob(f"runs/{name}/version_0/metrics.csv")
    rows = list(csv.DictReader(metrics.open()))
    assert any(row["train/loss"] for row in rows)
    assert bool(recorded) == (name == "minatar")
    assert any(row["val/return"] for row in rows)
    assert any(row.get("val/human_normalized") for row in rows) == (name == "atari")
    assert all(row["env_steps"] for row in rows)


def test_any_game_is_one_override_away(tmp_path):
    main(["fit", "--config=minatar", "--data.env_id=MinAtar/Seaquest-v0", "--model.compile_updates=false", *SMALL])
    assert (tmp_path / "runs/minatar/version_0/checkpoints/latest.ckpt").is_file()
    cli = DQNCLI(["--config=atari", "--data.env_id=ALE/MsPacman-v5", *SMALLER["atari"]], run=False)
    assert cli.model.online.head is not None
    assert (cli.datamodule.num_actions, cli.datamodule.reference_scores.human) == (9, 6951.6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_is_laid_over_an_environment(algorithm, tmp_path):
    main(["fit", "--config=cartpole", f"--config={algorithm}", *SMALL])
    assert (tmp_path / "runs/cartpole/version_0/checkpoints/latest.ckpt").is_file()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_weights_and_biases_and_csv_are_in_every_environment(name):
    config = yaml.safe_load(Path(find_config(name)).read_text())
    loggers = [logger["class_path"] for logger in config["trainer"]["logger"]]
    assert loggers == ["lightning.pytorch.loggers.CSVLogger", "lightning_dqn.watch.WandbLogger"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_learning_starts_within_the_budget_of_every_environment(name):
    config = yaml.safe_load(Path(find_config(name)).read_text())
    budget = config["trainer"]["max_epochs"] * config["data"]["steps_per_epoch"]
    assert config["data"]["learning_starts"] < budget / 10


def test_the_tutorial_is_the_textbook_set_up():
    cli = DQNCLI(["--config=tutorial"], run=False)
    sizes = [tuple(parameter.shape) for parameter in cli.model.online.parameters()]
    assert sizes == [(64, 4), (64,), (2, 64), (2,)]
    optimizer = cli.model.configure_optimizers()
    assert type(optimizer).__name__ == "Adam"
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert cli.datamodule.gamma == 0.99
    assert cli.datamodule.batch_size == 32
    assert cli.datamodule.buffer.capacity == 10_000
    assert cli.model.online.head.loss.__name__ == "squared_error"
    assert type(cli.model.target_rule).__name__ == "QLearning"
    epsilon = cli.config_init.collect.explorer.epsilon
    assert epsilon(0, 0) == 0.1
    assert epsilon(0, 1) == pytest.approx(0.1 * 0.995)
    assert epsilon(0, 10_000) == 0.01
    assert cli.datamodule.eval_episodes == 10
