"""Whole runs of the shipped configurations, by their command."""

import sys

import pytest

from lightning_dqn.cli import DQNCLI, find_config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-dqn"])
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.parametrize(
    ("config", "solved"),
    # what a run reaches in its budget with its last weights; gymnasium's own threshold where it solves it
    [("cartpole", 475.0), ("acrobot", -100.0), ("tutorial", 150.0)],
)
def test_a_configuration_learns(config, solved):
    cli = DQNCLI(["fit", "--config=" + find_config(config), "--trainer.enable_progress_bar=false"])
    assert float(cli.trainer.callback_metrics["val/return"]) >= solved
