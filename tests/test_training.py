"""Whole runs of the shipped configurations, by their command."""

import pytest

from lightning_dqn.cli import DQNCLI
from lightning_dqn.shipped import find_config
from tests.presets import ALGORITHMS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("config", "solved"),
    # what a run reaches in its budget with its last weights; gymnasium's own threshold where it solves it
    [("cartpole", 475.0), ("acrobot", -100.0), ("tutorial", 150.0)],
)
def test_a_configuration_learns(config, solved):
    cli = DQNCLI(["fit", "--config=" + find_config(config), "--trainer.enable_progress_bar=false"])
    assert float(cli.trainer.callback_metrics["val/return"]) >= solved


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_solves_cartpole(algorithm):
    reached = (
        "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: "
        "{monitor: val/return, mode: max, stopping_threshold: 475.0, patience: 1000}}"
    )
    # the environment file's own budget of 50,000 steps, doubled, and its learning-rate schedule with it
    budget = ["--trainer.max_epochs=40", "--model.lr_scheduler.total_iters=6120"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    cli = DQNCLI(
        ["fit", "--config=cartpole", f"--config={algorithm}", f"--trainer.callbacks=[{reached}]", *budget, *quiet]
    )
    assert float(cli.trainer.callback_metrics["val/return"]) >= 475.0
    assert cli.datamodule.env_steps <= 100_000
