import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lightning_dqn.ranks import end_other_ranks, exit_code, of_all_ranks, of_first_rank, over_ranks

ALONE = SimpleNamespace(world_size=1)


def test_a_run_of_one_process_asks_nobody():
    assert over_ranks(ALONE, [3.0, 2**53], "sum") == [3.0, 2**53]
    assert of_all_ranks(ALONE, "mine") == ["mine"]
    assert of_first_rank(ALONE, "mine") == "mine"


@pytest.mark.parametrize("how", ["sum", "max"])
def test_values_go_out_in_one_message_and_exactly(how):
    sent = []

    def reduce(tensor, reduce_op):
        sent.append(reduce_op)
        return tensor + 1

    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce)
    asked = SimpleNamespace(world_size=2, strategy=strategy)
    assert over_ranks(asked, [0.5, 2**24], how) == [1.5, 2**24 + 1]
    assert sent == [how]


@pytest.mark.parametrize(
    ("environment", "local_rank", "code"),
    [
        (LightningEnvironment, 0, 143),
        (LightningEnvironment, 1, 0),
        (TorchElasticEnvironment, 1, 143),
        (SLURMEnvironment, 1, 143),
    ],
)
def test_only_a_rank_that_lightning_started_hides_its_exit_code(environment, local_rank, code):
    connector = SimpleNamespace(cluster_environment=environment.__new__(environment))
    assert exit_code(SimpleNamespace(_accelerator_connector=connector, local_rank=local_rank), 143) == code


@pytest.mark.parametrize("launched", [True, False])
def test_end_other_ranks_ends_only_those_that_lightning_started(launched):
    sent = []
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1) if launched else None
    if launcher is not None:
        launcher.procs = [SimpleNamespace(pid=1, send_signal=sent.append)]
    end_other_ranks(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    assert sent == [signal.SIGTERM] * launched
