"""What the tests share: small trainers and networks, and a process left as it was found."""

import contextlib
import multiprocessing
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_dqn import DQNLightningModule, MLPTorso

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: the cores are taken
# processes that tests start in other folders import this checkout
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.getenv("PYTHONPATH")]))
if "forkserver" in multiprocessing.get_all_start_methods():
    # imported once in the server, not in every worker that it forks
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lightning_dqn"])

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _process_left_as_it_was():
    variables, handlers = dict(os.environ), [signal.getsignal(number) for number in _SIGNALS]
    yield
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        signal.signal(number, handler)
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    for name, value in variables.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@pytest.fixture(scope="session", autouse=True)
def _session_folder(tmp_path_factory):
    """Run the fixtures of modules in an empty folder, because they are made before a test has its own."""
    with contextlib.chdir(tmp_path_factory.mktemp("session")):
        yield


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    """Run every test in its empty ``tmp_path``, without arguments of pytest's on the command line and without W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-dqn"])
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def make_trainer(tmp_path):
    """Makes a quiet Trainer on the CPU that writes nothing unless told to."""

    def make(**kwargs):
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(defaults | kwargs))

    return make


@pytest.fixture
def make_model():
    """Makes a very small network for a data module, always with the same weights."""

    def make(data, **kwargs):
        torch.manual_seed(0)
        return DQNLightningModule(
            **(
                {
                    "observation_shape": data.observation_shape,
                    "num_actions": data.num_actions,
                    "torso": partial(MLPTorso, hidden_sizes=(8,)),
                }
                | kwargs
            )
        )

    return make


@pytest.fixture
def compilations(monkeypatch):
    """Runs what was recorded as it is; notes what the compiler would have been told, each time."""
    # slow to import, and few tests need it
    from torch._inductor import compile_fx

    told = []

    def compile_with(graph, inputs, inner_compile, config_patches):
        told.append(config_patches)
        inner_compile(graph, inputs)

    def keep(graph, inputs):
        return SimpleNamespace(current_callable=lambda given: graph(*given))

    monkeypatch.setattr(compile_fx, "compile_fx", compile_with)
    monkeypatch.setattr(compile_fx, "compile_fx_inner", keep)
    return told
