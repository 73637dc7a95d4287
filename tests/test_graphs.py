"""What is recorded is what would have run."""

import pytest
import torch

from lightning_dqn.learner.graphs import compile_graph


def test_inputs_are_changed_in_place_when_it_runs_and_not_before(compilations):
    def double(number, other):
        number.mul_(2)
        return [number + other]

    one, other = torch.tensor([1.0]), torch.tensor([5.0])
    function = compile_graph(double, [one, other])
    assert one.item() == 1
    assert [function(one, other)[0].item(), function(one, other)[0].item()] == [7, 9]
    assert one.item() == 4


def test_random_numbers_are_those_it_would_have_drawn_and_none_for_recording(compilations):
    def draw(shape):
        return [torch.rand_like(shape)]

    torch.manual_seed(0)
    function = compile_graph(draw, [torch.zeros(3)])
    found = function(torch.zeros(3))[0]
    torch.manual_seed(0)
    assert torch.equal(found, torch.rand(3))
    assert compilations == [{"fallback_random": True, "cpp_wrapper": True, "compile_threads": 1}]


def test_layers_are_told_that_they_are_compiled_while_they_are(compilations):
    seen = []

    def note(number):
        seen.append(torch.compiler.is_compiling())
        return [number + 0]

    compile_graph(note, [torch.zeros(1)])
    assert seen == [True]
    assert not torch.compiler.is_compiling()


def test_what_asks_for_a_number_fails_and_leaves_nothing_behind(compilations):
    with pytest.raises(Exception, match="data-dependent"):
        compile_graph(lambda number: [number * (2 if number.item() > 0 else 1)], [torch.ones(1)])
    assert not torch.compiler.is_compiling()
    assert torch.is_grad_enabled()
