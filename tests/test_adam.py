"""Adam as a part of a graph: step for step what torch's own does, with the optimizer's own state."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_dqn.learner.adam import AdamInGraph

VARIANTS = [
    partial(torch.optim.Adam, lr=0.01),
    partial(torch.optim.Adam, lr=0.01, weight_decay=0.1, betas=(0.5, 0.9), eps=1e-3),
    partial(torch.optim.Adam, lr=0.01, fused=True),
    partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
]
YES, NO = torch.tensor(True), torch.tensor(False)


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters]


def make(optimizer):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return network, optimizer(network.parameters())


@torch.no_grad()
def step(adam, found, apply=YES):
    adam.refresh()
    adam.step([parameter.detach() for parameter in adam.parameters], found, adam.state, apply)


def step_both(adam, other, optimizer, seed):
    """The same gradients for ours and for another network with torch's own."""
    found = gradients(adam.parameters, seed)
    step(adam, found)
    for parameter, gradient in zip(other.parameters(), found, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def assert_close(network, other):
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("optimizer", VARIANTS)
def test_it_takes_the_steps_of_the_optimizer_and_keeps_its_state(optimizer):
    network, own = make(optimizer)
    other, torchs = make(optimizer)
    adam = AdamInGraph(own)
    for seed in range(20):
        for rate in (own.param_groups[0], torchs.param_groups[0]):
            rate["lr"] = 0.01 / (seed + 1)
        step_both(adam, other, torchs, seed)
    assert_close(network, other)
    mine, theirs = own.state_dict(), torchs.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(mine["state"], theirs["state"], rtol=1e-6, atol=1e-7)


def test_the_first_step_by_hand():
    weight = nn.Parameter(torch.tensor([1.0]))
    adam = AdamInGraph(torch.optim.Adam([weight], lr=0.1, eps=0.5))
    step(adam, [torch.tensor([2.0])])
    # both moments corrected are the gradient and its square, so the step is 0.1 * 2 / (2 + 0.5)
    assert weight.item() == pytest.approx(1 - 0.08)
    assert [tensor.item() for tensor in adam.state] == pytest.approx([0.1, 0.2, 0.004, 1.0])


def test_a_step_that_is_not_applied_changes_nothing():
    adam = AdamInGraph(make(VARIANTS[0])[1])
    step(adam, gradients(adam.parameters, 0))
    before = [tensor.clone() for tensor in (*adam.parameters, *adam.state)]
    step(adam, [torch.full_like(parameter, torch.nan) for parameter in adam.parameters], NO)
    assert all(torch.equal(one, two) for one, two in zip(before, (*adam.parameters, *adam.state), strict=True))


def test_it_goes_on_from_a_state_that_was_restored():
    network, optimizer = make(VARIANTS[0])
    whole = AdamInGraph(optimizer)
    step(whole, gradients(whole.parameters, 0))
    other = copy.deepcopy(network)
    again = VARIANTS[0](other.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed = AdamInGraph(again)
    for adam in (whole, resumed):
        step(adam, gradients(adam.parameters, 1))
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters, resumed.parameters, strict=True))


def test_a_restored_step_count_goes_where_the_parameters_are():
    parameter = torch.nn.Parameter(torch.empty(2, device="meta"))
    optimizer = torch.optim.Adam([parameter])
    moment = torch.zeros(2, device="meta")
    optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    assert {tensor.device.type for tensor in AdamInGraph(optimizer).state} == {"meta"}
    assert optimizer.state[parameter]["step"].device.type == "meta"


def test_groups_have_settings_and_rates_of_their_own():
    def build(parameters):
        first, *others = parameters
        return torch.optim.Adam([{"params": [first], "lr": 0.5, "betas": (0.1, 0.2)}, {"params": others}], lr=0.01)

    network, own = make(build)
    other, torchs = make(build)
    adam = AdamInGraph(own)
    for seed in range(3):
        own.param_groups[1]["lr"] = torchs.param_groups[1]["lr"] = 0.1 * seed
        step_both(adam, other, torchs, seed)
    assert_close(network, other)


def test_frozen_parameters_are_none_of_its_business():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    adam = AdamInGraph(torch.optim.Adam(network.parameters()))
    assert [id(parameter) for parameter in adam.parameters] == [id(parameter) for parameter in network[1].parameters()]
    step(adam, gradients(adam.parameters, 0))


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (torch.optim.SGD, "SGD is neither"),
        (torch.optim.NAdam, "NAdam is neither"),
        (partial(torch.optim.Adam, amsgrad=True), "amsgrad is on"),
        (partial(torch.optim.AdamW, maximize=True), "maximize is on"),
    ],
)
def test_what_it_cannot_do_is_refused(optimizer, reason):
    with pytest.raises(ValueError, match=reason):
        AdamInGraph(make(optimizer)[1])
