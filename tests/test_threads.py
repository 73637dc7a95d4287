import contextlib

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_dqn import ExperienceCollector, ExperienceDataModule
from lightning_dqn.learner.threads import limit_threads, restore_threads


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_small_network_gets_one_thread_and_gives_the_others_back():
    before = limit_threads(nn.Linear(256, 256))
    assert torch.get_num_threads() == 1
    restore_threads(before)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("network", [nn.Linear(1000, 1000), nn.Conv2d(4, 16, 3)], ids=["large", "convolution"])
def test_a_network_with_work_for_more_keeps_them(network):
    assert limit_threads(network) is None
    assert torch.get_num_threads() == 2


def test_the_environment_variable_overrules(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert limit_threads(nn.Linear(2, 2)) is None
    restore_threads(None)
    assert torch.get_num_threads() == 2


class Stop(Callback):
    """Ends a fit in its first iteration, in one way or another; notes how many threads it had."""

    def __init__(self, error):
        self.error, self.threads = error, None

    def on_train_batch_start(self, *args):
        self.threads = torch.get_num_threads()
        raise self.error


@pytest.mark.parametrize("error", [FloatingPointError("diverged"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_a_fit_that_is_broken_off_gives_them_back_for_the_next_to_take(make_trainer, make_model, error):
    data = ExperienceDataModule("CartPole-v1", learning_starts=32, steps_per_epoch=64, seed=0)
    for _ in range(2):
        stop = Stop(error)
        with contextlib.suppress(FloatingPointError, SystemExit):
            make_trainer(callbacks=[stop]).fit(make_model(data), data)
        assert (stop.threads, torch.get_num_threads()) == (1, 2)


class Other(LightningModule):
    """Of somebody else, and broken."""

    def configure_optimizers(self):
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))])

    def training_step(self, batch, batch_idx):
        raise FloatingPointError("diverged")


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_error_of_a_module_that_has_taken_none_is_told_as_it_is(make_trainer):
    with pytest.raises(FloatingPointError, match="diverged"):
        make_trainer(callbacks=[ExperienceCollector()]).fit(Other(), DataLoader([torch.zeros(1)]))
