import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from lightning_dqn.learner.strategies import check_strategy


class OfACluster(DDPStrategy):
    """As Ray has one: launched by somebody else."""


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, DDPStrategy, OfACluster])
def test_one_device_and_ddp_are_taken(strategy):
    check_strategy(strategy())


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_a_strategy_that_shards_is_refused_with_the_reason(kind):
    with pytest.raises(ValueError, match=f"^trainer.strategy: {kind.__name__} is not supported; a Q-network .*one dev"):
        check_strategy(kind.__new__(kind))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_that_take_their_experience_with_them_are_refused(method):
    with pytest.raises(ValueError, match=f"^trainer.strategy: DDPStrategy by {method} is not supported; .* Use ddp"):
        check_strategy(DDPStrategy(start_method=method))
