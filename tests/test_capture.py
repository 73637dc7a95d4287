"""What is recorded leaves no trace, and a replay does with new inputs what the function would have done."""

import pytest
import torch

from lightning_dqn.learner.capture import Captured, CudaRecorder


class Again:
    """Records by keeping the function: a replay writes into the results of the first run, as that of a GPU does."""

    def record(self, run):
        self.run, self.outputs = run, run()
        return self.outputs

    def replay(self):
        torch._foreach_copy_(self.outputs, self.run())


RECORDERS = [
    pytest.param(Again, "cpu", id="host"),
    pytest.param(
        CudaRecorder,
        "cuda",
        id="gpu",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    ),
]


def step(weight, count, number):
    """One update of a weight, and how often there was one."""
    weight.add_(number.float())
    count.add_(1)
    return [weight * 2, number + 1]


@pytest.mark.parametrize(("recorder", "device"), RECORDERS)
def test_recording_changes_neither_weights_nor_counters(recorder, device):
    weight, count = torch.tensor([1.0, 2.0], device=device), torch.tensor(7, device=device)
    example = torch.tensor([10, 20], device=device)
    Captured(step, [weight, count, example], 2, recorder())

    assert (weight.tolist(), count.item(), example.tolist()) == ([1.0, 2.0], 7, [10, 20])


@pytest.mark.parametrize(("recorder", "device"), RECORDERS)
def test_a_replay_reads_new_inputs_and_the_weights_that_were_given(recorder, device):
    weight, count = torch.tensor([1.0, 2.0], device=device), torch.tensor(0, device=device)
    function = Captured(step, [weight, count, torch.tensor([10, 20], device=device)], 2, recorder())

    first = function(weight, count, torch.tensor([1, 1], device=device))
    second = function(weight, count, torch.tensor([3, 4], device=device))
    assert [result.tolist() for result in first] == [[4.0, 6.0], [2, 2]]  # not overwritten by the second
    assert [result.tolist() for result in second] == [[10.0, 14.0], [4, 5]]
    assert (weight.tolist(), count.item()) == ([5.0, 7.0], 2)

    weight.fill_(100.0)  # as loading a checkpoint does
    assert function(weight, count, torch.tensor([0, 1], device=device))[0].tolist() == [200.0, 202.0]


@pytest.mark.parametrize(("recorder", "device"), RECORDERS)
def test_random_numbers_are_not_used_up_by_recording_and_go_on(recorder, device):
    def draw(shape):
        return [torch.rand_like(shape)]

    shape = torch.zeros(4, device=device)
    torch.manual_seed(3)
    function = Captured(draw, [shape], 0, recorder())
    found = [function(shape)[0].tolist() for _ in range(3)]
    torch.manual_seed(3)
    assert found == [draw(shape)[0].tolist() for _ in range(3)]


def test_an_attempt_to_record_that_fails_leaves_no_trace():
    class Refuses(Again):
        def record(self, run):
            run()
            raise RuntimeError("not while recording")

    weight, count = torch.tensor([1.0, 2.0]), torch.tensor(7)
    with pytest.raises(RuntimeError, match="not while recording"):
        Captured(step, [weight, count, torch.tensor([10, 20])], 2, Refuses())
    assert (weight.tolist(), count.item()) == ([1.0, 2.0], 7)


def test_what_cannot_be_run_cannot_be_recorded():
    def fail(number):
        raise RuntimeError("no kernel for this")

    with pytest.raises(RuntimeError, match="no kernel for this"):
        Captured(fail, [torch.ones(1)], 0, Again())
