"""Functions of tensors, recorded once and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def compile_graph(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Records what a function does with tensors, and has Inductor compile it: to C++ on a CPU, to kernels on a GPU.

    Python runs once, on stand-ins that hold no numbers. What depends on anything but the inputs' shapes and types is
    fixed from then on, and what asks for a number fails. Random numbers come from the generators of torch, as many and
    the same as without. ``torch.compile`` would look at every call whether all is as it was, which costs more than a
    small network; here that is for the caller to see to.

    Args:
        function: Of tensors alone; may change inputs in place.
        inputs: An example of each; nothing is done to them.

    Returns:
        The same function, for inputs of the same shapes, types and devices.

    Raises:
        Exception: Of any kind, if the function cannot be recorded, or there is no compiler.
    """
    # the compiler takes a second to import, which nobody should wait for who does not use it
    from torch import _inductor
    from torch.fx.experimental.proxy_tensor import make_fx

    options: dict[str, Any] = {"fallback_random": True}
    if inputs[0].device.type == "cpu":
        options |= {"cpp_wrapper": True, "compile_threads": 1}
    with torch.no_grad(), torch.random.fork_rng(), _compiling():
        graph = make_fx(function, tracing_mode="fake")(*inputs)
        compiled: Callable[..., list[Tensor]] = _inductor.compile(graph, list(inputs), options)
    return compiled


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Makes :func:`torch.compiler.is_compiling` true, for layers that have no place for their hooks in a graph."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
