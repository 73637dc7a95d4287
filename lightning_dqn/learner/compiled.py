"""An update as one compiled function: losses, gradients, clipping and optimizer, no Python between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from itertools import chain, islice
from operator import itemgetter
from typing import Any, NamedTuple, Self

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from lightning_dqn.learner.adam import AdamInGraph
from lightning_dqn.learner.graphs import compile_graph
from lightning_dqn.learner.networks import QValues
from lightning_dqn.transition import ReplayBatch, Transition


class Update(NamedTuple):
    """What an update says of a minibatch.

    Attributes:
        loss: Mean of the weighted losses, a scalar.
        td_error: Unweighted TD errors, ``[B]``.
        q_values: Of the actions taken, ``[B]``.
    """

    loss: Tensor
    td_error: Tensor
    q_values: Tensor


Losses = Callable[[Transition[Tensor], Tensor], Update]
"""Maps a minibatch (fields ``[B, ...]``) and its importance weights ``[B]`` to what is learned from it."""


class _Networks(nn.Module):
    """Both networks as one module, so that the tensors of all can be replaced while the losses are computed."""

    def __init__(self, online: nn.Module, target: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.online, self.target = online, target
        self._losses = losses

    def forward(self, transition: Transition[Tensor], weight: Tensor) -> Update:
        return self._losses(transition, weight)


class CompiledUpdate:
    """Learns from a minibatch by one call of compiled code, with the results of an update that is not compiled.

    The update is traced once for the shapes at hand and compiled (:func:`~lightning_dqn.learner.graphs.compile_graph`).
    Tracing follows the very code that runs otherwise, whatever head and target rule there are, and
    random numbers come from the same generators. Where the loss is not finite, weights and optimizer stay as they were
    and the TD errors are NaN; the host is not asked.

    Args:
        online: The network to train.
        target: Its slowly moving copy.
        losses: Computes the losses from both networks.
        optimizer: See :class:`~lightning_dqn.learner.adam.AdamInGraph`.
        clip: Largest norm, or size of every component, of the gradient; ``None`` for no clipping.
        clip_by: ``norm`` or ``value``.
        precision: Makes the context to compute losses in, such as autocast.

    Raises:
        ValueError: If the optimizer cannot be compiled.
    """

    def __init__(
        self,
        online: nn.Module,
        target: nn.Module,
        losses: Losses,
        optimizer: Optimizer,
        clip: float | None = None,
        clip_by: str = "norm",
        precision: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._networks = _Networks(online, target, losses)
        self._adam = AdamInGraph(optimizer)
        self._clip, self._clip_by, self._precision = clip, clip_by, precision
        learned = {id(parameter) for parameter in self._adam.parameters}
        tensors = _tensors_of(self._networks)
        names = {id(tensor): name for name, tensor in tensors.items()}
        self._learned = [names[id(parameter)] for parameter in self._adam.parameters]
        self._fixed = [name for name, tensor in tensors.items() if id(tensor) not in learned]
        self._tensors = [*(tensors[name].detach() for name in (*self._learned, *self._fixed)), *self._adam.state]
        self._compiled: dict[Any, Callable[..., list[Tensor]]] = {}

    def prepare(self, batch: ReplayBatch) -> Self | None:
        """Compiles for the shapes of a batch, unless that was done already, and takes over learning rates.

        Returns:
            Itself; ``None``, after a warning with the reason, if it cannot be compiled.
        """
        self._adam.refresh()
        kind = tuple(None if field is None else (field.shape, field.dtype) for field in batch.transition)
        if kind not in self._compiled:
            start = time.monotonic()
            try:
                self._compiled[kind] = self._compile(batch.transition.map(itemgetter(0)), batch.weight[0])
            except Exception as error:  # no compiler, a layer that cannot be traced: whatever it is, updates go on
                say_why(error, "updates go")
                return None
            rank_zero_info(f"Compiled the update in {time.monotonic() - start:.1f} s (model.compile_updates).")
        self._update = self._compiled[kind]
        return self

    @torch.no_grad()
    def __call__(self, transition: Transition[Tensor], weight: Tensor) -> Update:
        """Takes one gradient step; :meth:`prepare` comes first.

        Args:
            transition: Fields ``[B, ...]``.
            weight: Importance weights, ``[B]``.
        """
        return Update(*self._update(*self._tensors, *(field for field in transition if field is not None), weight))

    @torch.no_grad()
    def _compile(self, transition: Transition[Tensor], weight: Tensor) -> Callable[..., list[Tensor]]:
        inputs: list[Any] = [*self._tensors, *(field for field in transition if field is not None), weight]

        def update(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            learned = dict(zip(self._learned, islice(given, len(self._learned)), strict=True))
            fixed = dict(zip(self._fixed, islice(given, len(self._fixed)), strict=True))
            state = list(islice(given, len(self._adam.state)))
            *fields, weight = given
            minibatch = iter(fields)
            return self._learn(learned, fixed, state, transition.map(lambda _: next(minibatch)), weight)

        return compile_graph(update, inputs, len(self._tensors))

    def _learn(
        self,
        learned: dict[str, Tensor],
        fixed: dict[str, Tensor],
        state: list[Tensor],
        transition: Transition[Tensor],
        weight: Tensor,
    ) -> list[Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in learned.items()}
        with torch.enable_grad(), self._precision():
            found: Update = _call(self._networks, {**leaves, **fixed}, (transition, weight))
        gradients = torch.autograd.grad(found.loss, list(leaves.values()))
        mean_loss, td_error, q_values = (tensor.detach() for tensor in found)
        finite = mean_loss.isfinite()
        self._adam.step(list(learned.values()), self._clipped(list(gradients)), state, finite)
        return [mean_loss, torch.where(finite, td_error, torch.nan), q_values]

    def _clipped(self, gradients: list[Tensor]) -> list[Tensor]:
        if self._clip is None:
            return gradients
        if self._clip_by == "value":
            return [gradient.clamp(-self._clip, self._clip) for gradient in gradients]
        scale = (self._clip / (get_total_norm(gradients, foreach=False) + 1e-6)).clamp(max=1.0)
        return [gradient * scale for gradient in gradients]


class CompiledForward:
    """Q-values by one call of compiled code, for observations like the first; others take the usual way.

    Args:
        online: The network, in the mode in which it acts during training when it is called first.
    """

    def __init__(self, online: nn.Module) -> None:
        self._network = QValues(online)
        tensors = _tensors_of(self._network)
        self._names, self._tensors = list(tensors), [tensor.detach() for tensor in tensors.values()]
        self._kind: tuple[torch.Size, torch.dtype] | None = None
        self._forward: Callable[..., list[Tensor]] | None = None

    def __call__(self, observation: Tensor) -> Tensor:
        """Q-values ``[B, A]``, without gradients, of observations ``[B, *observation_shape]``."""
        if self._kind is None:
            self._kind = observation.shape, observation.dtype
            try:
                self._forward = self._compile(observation)
            except Exception as error:  # see CompiledUpdate.prepare
                say_why(error, "acting goes")
        if self._forward is None or (observation.shape, observation.dtype) != self._kind:
            q_values: Tensor = self._network(observation)
            return q_values
        return self._forward(*self._tensors, observation)[0]

    def _compile(self, observation: Tensor) -> Callable[..., list[Tensor]]:
        def forward(*tensors: Tensor) -> list[Tensor]:
            named = dict(zip(self._names, tensors, strict=False))
            return [_call(self._network, named, (tensors[-1],))]

        return compile_graph(forward, [*self._tensors, observation], len(self._tensors))


def say_why(error: Exception, what: str) -> None:
    """Warns that something is not compiled.

    Args:
        error: Why; its first line is said.
        what: What happens all the same, as in ``updates go``.
    """
    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    rank_zero_warn(f"model.compile_updates: {what} on without being compiled: {reason}")


def _call(module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """Call a module with other tensors in the place of its own, which are named as by :func:`_tensors_of`.

    Each submodule gets its tensors once, also one with two names: ``functional_call`` would set them by both names, and
    not restore them. Tensors with two names are therefore tied here.
    """
    names = {id(tensor): name for name, tensor in _tensors_of(module).items()}
    named: dict[str, Tensor] = {}
    for prefix, layer in module.named_modules():
        own = (layer.named_parameters(prefix, False, False), layer.named_buffers(prefix, False, False))
        named |= {name: tensors[names[id(tensor)]] for name, tensor in chain(*own)}
    return functional_call(module, named, inputs, tie_weights=False)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
