"""Adam as a part of a graph: the state stays the optimizer's own, only the step is computed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from lightning_dqn.functional import adam_step

_PLAIN = ("amsgrad", "maximize", "differentiable", "capturable")


class AdamInGraph:
    """Steps the parameters of a :class:`torch.optim.Adam` or :class:`~torch.optim.AdamW` by tensor operations alone.

    Moments and step counts are the optimizer's own tensors, changed in place, so its checkpoints stay what they are.
    Learning rates are tensors too, read from the optimizer by :meth:`refresh`, so schedulers work as ever; every other
    setting is a constant of the graph.

    Args:
        optimizer: With its state restored, if there is any to restore.

    Attributes:
        parameters: What it moves.
        state: Every tensor it reads and writes beside them: learning rates first, then first moment, second moment and
            step count of each parameter.

    Raises:
        ValueError: If it is another optimizer, or has a variant of Adam switched on.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if type(optimizer) not in (Adam, AdamW):
            raise ValueError(f"{type(optimizer).__name__} is neither Adam nor AdamW")
        for name in _PLAIN:
            if any(group[name] for group in optimizer.param_groups):
                raise ValueError(f"{name} is on")
        self._groups = optimizer.param_groups
        self.parameters: list[Tensor] = [p for group in self._groups for p in group["params"] if p.requires_grad]
        moments = [tensor for parameter in self.parameters for tensor in _moments(optimizer, parameter)]
        device = self.parameters[0].device
        self._rates = [torch.tensor(float(group["lr"]), dtype=torch.float64, device=device) for group in self._groups]
        self._known = [float(group["lr"]) for group in self._groups]
        self.state: list[Tensor] = [*self._rates, *moments]

    def refresh(self) -> None:
        """Takes over learning rates that a scheduler has changed."""
        for number, group in enumerate(self._groups):
            if group["lr"] != self._known[number]:
                self._known[number] = float(group["lr"])
                self._rates[number].fill_(self._known[number])

    def step(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], state: Sequence[Tensor], apply: Tensor
    ) -> None:
        """One step, in place, on tensors that stand for those of the attributes.

        Args:
            parameters: In the order of the attribute.
            gradients: Of each of them.
            state: In the order of the attribute.
            apply: A boolean scalar: whether the step is taken, or everything stays as it is.
        """
        rates, moments = state[: len(self._rates)], iter(state[len(self._rates) :])
        pairs = iter(zip(parameters, gradients, strict=True))
        for rate, group in zip(rates, self._groups, strict=True):
            settings = _settings(group)
            for _ in range(sum(parameter.requires_grad for parameter in group["params"])):
                parameter, gradient = next(pairs)
                mean, square, step = next(moments), next(moments), next(moments)
                stale = (parameter, mean, square, step)
                for old, new in zip(stale, adam_step(*stale, gradient, rate, **settings), strict=True):
                    old.copy_(torch.where(apply, new, old))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "beta1": float(beta1),
        "beta2": float(beta2),
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "decoupled": group["decoupled_weight_decay"],
    }


def _moments(optimizer: Optimizer, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    state = optimizer.state[parameter]
    if not state:  # what torch makes at the first step
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    # torch leaves a step count that was restored where it was read, and the graph is of one device
    state["step"] = state["step"].to(parameter.device)
    return state["exp_avg"], state["exp_avg_sq"], state["step"]
