import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from lightning_dqn.learner.strategies import why_not


class OfACluster(DDPStrategy):
    """As Ray has one: launched by somebody else."""


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, DDPStrategy, OfACluster])
def test_one_device_and_ddp_are_taken(strategy):
    assert why_not(strategy()) is None


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_a_strategy_that_shards_is_refused_with_the_reason(kind):
    said = why_not(kind.__new__(kind))
    assert said.startswith(f"{kind.__name__} is not supported; a Q-network is small and acting would gather its shards")
    assert "\n" not in said


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_that_take_their_experience_with_them_are_refused(method):
    said = why_not(DDPStrategy(start_method=method))
    assert said.startswith(f"DDPStrategy by {method} is not supported; what such processes have collected is lost")
    assert "Use ddp" in said
