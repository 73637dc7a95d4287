"""The sweep of Weights & Biases, run by W&B's own agent; only the answers of a server are made up."""

import multiprocessing
import re
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.apis.public import sweeps
from wandb.wandb_agent import Agent

from lightning_dqn.shipped import find_config
from tests.runs import QUIET, SMALL

PAGE = Path(__file__).parent.parent / "docs/search.md"
DRAWN = {"model.optimizer.init_args.lr": 3e-4, "model.target_update_period": 100, "data.n_step": 2}


def run(seed, **settings):
    """What a server answers to have a run started; its name is its seed."""
    values = {"seed_everything": seed, **DRAWN, **settings}
    return {"type": "run", "run_id": str(seed), "program": "", "args": {key: {"value": values[key]} for key in values}}


def written(name):
    """What a run has written of its checkpoints, and its configuration."""
    for path in Path("runs/cartpole").glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        if config["seed_everything"] == int(name):
            return {file.name for file in (path.parent / "checkpoints").glob("*.ckpt")}, config
    return set(), {}


@pytest.fixture
def start_agent(monkeypatch):
    """Starts an agent of the shipped sweep, with runs that are small, in the environment that the page gives it."""
    (variables,) = re.findall(r"^export (.+)\nwandb agent", PAGE.read_text(), re.MULTILINE)
    for name, value in (variable.split("=") for variable in variables.split()):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "Api", lambda: None)
    config = yaml.safe_load(Path(find_config("cartpole_sweep", "search")).read_text())
    config["command"][-1:-1] = [*SMALL, *QUIET, "--video=null", "--curve=null"]
    monkeypatch.setattr(sweeps, "_sweep_with_runs", lambda *_: {"config": yaml.safe_dump(config)})
    monkeypatch.setattr(sweeps, "_register_agent", lambda *_, **__: {"id": "agent"})

    def start(answer, runs):
        monkeypatch.setattr(sweeps, "_agent_heartbeat", lambda api, agent_id, metrics, running: answer(running))
        agent = Agent(None, multiprocessing.Queue(), sweep_id="sweep", count=runs)
        agent.run()
        return agent

    return start


@pytest.mark.slow
def test_an_agent_runs_what_is_drawn_and_goes_on_after_runs_that_the_sweep_stops(start_agent):
    # three that fail within a minute, or five of the first, and an agent leaves: a run that is stopped is one to it
    stopped = [run(seed, **{"trainer.max_epochs": 10**6}) for seed in range(6)]
    due = [*stopped, run(6)]

    def answer(running):
        if not running:
            return [due.pop(0)]
        return [{"type": "stop", "run_id": name} for name in running if "latest.ckpt" in written(name)[0] and due]

    agent = start_agent(answer, 7)
    assert (agent._finished, agent._failed) == (7, 6)
    for seed in range(7):
        checkpoints, config = written(seed)
        assert "latest.ckpt" in checkpoints
        assert config["model"]["optimizer"]["init_args"]["lr"] == DRAWN["model.optimizer.init_args.lr"]
        assert config["model"]["target_update_period"] == DRAWN["model.target_update_period"]
        assert config["data"]["n_step"] == DRAWN["data.n_step"]
        assert len(list(Path("runs/wandb").glob(f"offline-run-*-{seed}"))) == 1
