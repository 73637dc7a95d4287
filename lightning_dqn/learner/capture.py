"""Launches of a function's kernels, recorded once on a GPU and sent together from then on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

Function = Callable[..., list[Tensor]]
_WARM_UPS = 3  # what libraries set up, and kernels that choose a form, have done so by then


class Recorder(Protocol):
    """Records what a function does with certain tensors."""

    def record(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Runs a function once; its results are where those of :meth:`replay` will be."""

    def replay(self) -> None:
        """Does it again, with what the tensors hold now."""


class CudaRecorder:
    """Records as a CUDA graph, see :class:`torch.cuda.CUDAGraph`.

    "Accelerating PyTorch with CUDA Graphs" (Nguyen et al. 2021). Random numbers go on with every replay.
    """

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, run: Callable[[], list[Tensor]]) -> list[Tensor]:
        """See :class:`Recorder`."""
        with torch.cuda.graph(self._graph):
            return run()

    def replay(self) -> None:
        """See :class:`Recorder`."""
        self._graph.replay()


class Captured:
    """A function whose kernels are launched together: a GPU is done with a small one before Python has sent the next.

    Args:
        function: Of tensors, without a question to the host; may change the first ``num_fixed`` inputs in place.
        inputs: An example of each. What it takes to record the function leaves no trace in them, nor in the generators,
            nor does an attempt that fails.
        num_fixed: How many of the inputs are the same tensors in every call, such as weights; the others are copied
            to where the recording reads them.
        recorder: Records it.

    Raises:
        RuntimeError: If the function cannot be recorded.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], num_fixed: int, recorder: Recorder) -> None:
        self._num_fixed = num_fixed
        self._recorder = recorder
        fixed = list(inputs[:num_fixed])
        self._inputs = [tensor.clone() for tensor in inputs[num_fixed:]]
        before = [tensor.clone() for tensor in fixed]
        devices = sorted({tensor.device.index for tensor in inputs if tensor.device.type == "cuda"})
        with torch.no_grad(), torch.random.fork_rng(devices):
            try:
                with _beside(devices):
                    for _ in range(_WARM_UPS):
                        function(*fixed, *self._inputs)
                self._outputs = recorder.record(lambda: function(*fixed, *self._inputs))
            finally:
                for tensor, held in zip(fixed, before, strict=True):
                    tensor.copy_(held)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The function's results, copied from where the next call will write its own."""
        torch._foreach_copy_(self._inputs, list(tensors[self._num_fixed :]))
        self._recorder.replay()
        return [output.clone() for output in self._outputs]


@contextlib.contextmanager
def _beside(devices: Sequence[int]) -> Iterator[None]:
    """On a stream of its own, as what is to be recorded has to run first."""
    if not devices:
        yield
        return
    stream, present = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        yield
    present.wait_stream(stream)
