"""Functions of tensors, recorded once and compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_dqn.learner.capture import Captured, CudaRecorder


def compile_graph(
    function: Callable[..., list[Tensor]], inputs: Sequence[Tensor], num_fixed: int = 0
) -> Callable[..., list[Tensor]]:
    """Records what a function does with tensors, and has Inductor compile it: to C++ on a CPU, to kernels on a GPU.

    Python runs once, on stand-ins that hold no numbers. What depends on anything but the inputs' shapes and types is
    fixed from then on, and what asks for a number fails. Random numbers come from the generators of torch, as many and
    the same as without. ``torch.compile`` would look at every call whether all is as it was, which costs more than a
    small network; here that is for the caller to see to.

    Args:
        function: Of tensors alone; may change inputs in place.
        inputs: An example of each; nothing is done to them.
        num_fixed: How many of them, from the first on, are the same tensors in every call, such as weights.

    Returns:
        The same function, for inputs of the same shapes, types and devices. On a GPU its kernels are launched together
        (:class:`~lightning_dqn.learner.capture.Captured`).

    Raises:
        Exception: Of any kind, if the function cannot be recorded, or there is no compiler.
    """
    # the compiler takes a second to import, which nobody should wait for who does not use it
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch.fx.experimental.proxy_tensor import make_fx

    options: dict[str, Any] = {"fallback_random": True}
    if inputs[0].device.type == "cpu":
        # what took several operations is kept, rather than computed anew wherever it is read: noise of a layer would be
        # for every weight. From 8 on updates of a Rainbow take a fifth less; at 4, sines of an IQN lose all of it
        options |= {"cpp_wrapper": True, "compile_threads": 1, "realize_opcount_threshold": 8}
    row_products: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.mm.default: _row_product,
        torch.ops.aten.addmm.default: _row_product_plus,
    }
    compiled: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        compiled.append(compile_fx_inner(*args, **kwargs))
        return compiled[0]

    # what comes out is wrapped in layers for gradients, aliases and profilers, a quarter of the time of a small
    # network's update: the code itself is taken out of them, hence no cache that keeps both together
    with torch.no_grad(), torch.random.fork_rng(), _compiling(), config.patch(enable_autograd_cache=False):
        graph = make_fx(function, row_products, tracing_mode="fake")(*inputs)
        compile_fx(graph, list(inputs), inner_compile=keep, config_patches=options)
    (graph_code,) = compiled
    call = graph_code.current_callable

    def run(*tensors: Tensor) -> list[Tensor]:
        return call(list(tensors))  # type: ignore[no-any-return]

    return Captured(run, inputs, num_fixed, CudaRecorder()) if inputs[0].device.type == "cuda" else run


def _row_product(left: Tensor, right: Tensor) -> Tensor:
    """A single row times a matrix as a sum, which is compiled into one loop with what surrounds it.

    A library's product takes longer to be called than to compute something this small.
    """
    if len(left) > 1 or left.device.type != "cpu":
        return NotImplemented  # type: ignore[no-any-return]  # as make_fx has it: leave it as it is
    return (left * right.t()).sum(-1, keepdim=True).t()


def _row_product_plus(bias: Tensor, left: Tensor, right: Tensor, **scales: Any) -> Tensor:
    product = NotImplemented if scales else _row_product(left, right)
    return product if product is NotImplemented else product + bias


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Makes :func:`torch.compiler.is_compiling` true, for layers that have no place for their hooks in a graph."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before
