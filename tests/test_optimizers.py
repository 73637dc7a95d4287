from functools import partial

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from lightning_dqn.learner.optimizers import make_lr_scheduler, make_optimizer


def parameters():
    return nn.Linear(2, 1).parameters()


def test_the_optimizer_is_the_one_asked_for_over_the_parameters_given():
    layer = nn.Linear(2, 1)
    optimizer = make_optimizer(partial(SGD, lr=0.5, momentum=0.9), layer.parameters())
    assert type(optimizer) is SGD
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)
    assert [id(parameter) for parameter in group["params"]] == [id(layer.weight), id(layer.bias)]


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        (partial(Adam, lr=-1.0), r"^model\.optimizer \(lr\): Invalid learning rate"),
        (partial(Adam, eps=-1.0), r"^model\.optimizer \(eps\): "),
        (partial(Adam, betas=(2.0, 0.9)), r"^model\.optimizer \(betas\): "),
        (partial(Adam, lr=float("inf")), r"^model\.optimizer: lr must be finite, got inf$"),
        (partial(SGD, lr=0.1, momentum=float("inf")), r"^model\.optimizer: momentum must be finite, got inf$"),
        (partial(Adam, rate=0.1), r"^model\.optimizer: .*rate"),
    ],
)
def test_what_an_optimizer_does_not_take_is_named(factory, said):
    with pytest.raises(ValueError, match=said):
        make_optimizer(factory, parameters())


def test_a_scheduler_steps_once_per_iteration():
    optimizer = make_optimizer(Adam, parameters())
    made = make_lr_scheduler(partial(StepLR, step_size=3), optimizer)
    assert isinstance(made["scheduler"], StepLR)
    assert made["scheduler"].optimizer is optimizer
    assert made["interval"] == "step"


@pytest.mark.parametrize(
    ("factory", "monitor"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "val/return"),
        (partial(ReduceLROnPlateau, monitor="val/episode_length"), "val/episode_length"),
    ],
)
def test_a_scheduler_that_waits_for_a_score_steps_with_the_validations(factory, monitor):
    made = make_lr_scheduler(factory, make_optimizer(Adam, parameters()))
    assert (made["interval"], made["monitor"], made["strict"]) == ("epoch", monitor, False)


def test_what_a_scheduler_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"^model\.lr_scheduler: .*steps"):
        make_lr_scheduler(partial(StepLR, steps=3), make_optimizer(Adam, parameters()))
