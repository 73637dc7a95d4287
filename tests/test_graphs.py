"""What is recorded is what would have run."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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
    assert compilations == [
        {"fallback_random": True, "cpp_wrapper": True, "compile_threads": 1, "realize_opcount_threshold": 8}
    ]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_a_row_are_sums_and_those_of_several_are_products(compilations, rows, bias):
    seen = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    weight, offset = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, 8.0]]), torch.tensor([10.0, 20.0])
    inputs = torch.arange(rows * 3.0).reshape(rows, 3)
    function = compile_graph(lambda x, w, b: [F.linear(x, w, b if bias else None)], [inputs, weight, offset])
    with Watched():
        found = function(inputs, weight, offset)[0]
    assert found[0].tolist() == ([20.0, 36.5] if bias else [10.0, 16.5])  # 0 + 2 + 8 and 0 + 0.5 + 16
    assert torch.allclose(found, F.linear(inputs, weight, offset if bias else None))
    assert any("mm" in name for name in seen) == (rows > 1)


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
