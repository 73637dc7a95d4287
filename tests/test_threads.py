import pytest
import torch
from torch import nn

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
