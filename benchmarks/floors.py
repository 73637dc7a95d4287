"""The least time and memory that an update can take on a device: what it must do, counted, at rates measured there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lightning_dqn import DQNLightningModule, ReplayBatch

BACKWARD_AND_ADAM = 32  # bytes a weight: its gradient written; weight, gradient, two moments read; all but it written
ONLINE_TARGET_GRADIENT_AND_MOMENTS = 20  # bytes a weight


class Rates(NamedTuple):
    """What a device can do: floating-point operations and bytes a second."""

    flops: float
    bytes: float


class Work(NamedTuple):
    """What one update has to do.

    Attributes:
        flops: Floating-point operations of convolutions and matrix products.
        moved: Bytes that must be moved.
        kept: Bytes that must be there at once.
    """

    flops: float
    moved: float
    kept: float

    def seconds(self, rates: Rates) -> float:
        """The least time it can take: it counts and moves at the same time."""
        return max(self.flops / rates.flops, self.moved / rates.bytes)


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rate of a large matrix product and of a large copy: the best of several."""
    size, elements = (8_192, 2**28) if device.type == "cuda" else (1_024, 2**24)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(elements, device=device)
    target = torch.empty_like(source)
    product = _best_of(lambda: left @ right, device)
    copy = _best_of(lambda: target.copy_(source), device)
    return Rates(2 * size**3 / product, 2 * source.nbytes / copy)


def count_work(model: DQNLightningModule, batch: ReplayBatch, dtype: torch.dtype) -> Work:
    """Counts what one update does, by making one without taking the step.

    Moved are at least the weights of a layer and what it puts out, written and read, at every forward; three times more
    of that in a backward pass (read again, and its gradient written and read); gradients, and what Adam reads and
    writes. Kept are the weights of both networks, gradients, moments, the minibatches, and what autograd saves.

    Args:
        model: On its device.
        batch: Minibatches on the same; the first is learned from.
        dtype: Of the layers of the network.
    """
    parameters = list(model.online.parameters())
    weights = sum(parameter.numel() for parameter in parameters)
    known = {p.untyped_storage().data_ptr() for p in [*parameters, *model.target.parameters()]}
    moved, saved = 0, dict[int, int]()

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal moved
        if isinstance(output, Tensor):
            moved += sum(p.nbytes for p in layer.parameters()) + (5 if output.requires_grad else 2) * output.nbytes

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if not list(layer.children())]
    autocast = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)
    model.on_train_batch_start(batch, 0)
    with FlopCounterMode(display=False) as counter:
        with autocast, saved_tensors_hooks(save, lambda tensor: tensor):
            loss = model.training_step(batch, 0)["loss"]
        loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    stored = sum(tensor.nbytes for tensor in [*batch.transition, *batch[1:]] if tensor is not None)
    return Work(
        flops=counter.get_total_flops(),
        moved=moved + BACKWARD_AND_ADAM * weights,
        kept=ONLINE_TARGET_GRADIENT_AND_MOMENTS * weights + stored + sum(saved.values()),
    )


def _best_of(call: Callable[[], object], device: torch.device, repetitions: int = 20) -> float:
    times = []
    for _ in range(repetitions):
        start = now(device)
        call()
        times.append(now(device) - start)
    return min(times[1:])
