from functools import partial

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.optim import Adam

from lightning_dqn.learner.requirements import check_optimizers, check_trainer

quiet = partial(Trainer, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)


@pytest.mark.parametrize(
    "arguments", [{}, {"precision": "bf16-mixed"}, {"strategy": "ddp", "devices": 2}, {"gradient_clip_val": 1.0}]
)
def test_what_leaves_updates_as_they_are_passes(arguments):
    check_trainer(quiet(**arguments))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"accumulate_grad_batches": 2}, r"^trainer\.accumulate_grad_batches must be 1"),
        (
            {"callbacks": [GradientAccumulationScheduler({0: 1, 4: 2})]},
            r"^trainer\.accumulate_grad_batches must be 1",
        ),
        ({"precision": "64-true"}, r"^trainer\.precision: 64-true casts"),
        ({"strategy": "ddp_spawn", "devices": 2}, r"^trainer\.strategy: "),
    ],
)
def test_what_does_not_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        check_trainer(quiet(**arguments))


def test_a_scheduler_that_never_accumulates_passes():
    check_trainer(quiet(callbacks=[GradientAccumulationScheduler({0: 1})]))


def test_an_optimizer_that_holds_the_target_network_is_refused():
    online, target = nn.Linear(1, 1), nn.Linear(1, 1)
    check_optimizers([Adam(online.parameters())], target)
    with pytest.raises(ValueError, match=r"^model\.optimizer: this run's optimizer holds the target network"):
        check_optimizers([Adam(online.parameters()), Adam([online.bias, target.bias])], target)
