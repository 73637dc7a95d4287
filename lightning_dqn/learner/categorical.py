"""The return as probabilities of fixed values: C51's distribution and head.

Shapes: ``B`` minibatch, ``F`` features, ``A`` actions, ``M`` atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from lightning_dqn.functional import bellman_backup, cross_entropy, project_categorical, take_action
from lightning_dqn.learner.distributions import ReturnDistribution, same_kind
from lightning_dqn.learner.heads import MOST, Head, LayerFactory, LinearStream, StreamFactory, check_at_least


@dataclass(frozen=True)
class CategoricalReturn(ReturnDistribution):
    """The return takes each of a set of values, its atoms, with some probability.

    A prediction has the atoms of its head's support; a backup or a mixture moves them, and only the loss projects them
    back, onto the support of the prediction it is compared with.

    Attributes:
        log_probabilities: Logarithms of the probabilities, ``[B, A, M]``, or ``[B, M]`` after :meth:`at`.
        atoms: The values, ``[M]`` or shaped like the probabilities.
    """

    log_probabilities: Tensor
    atoms: Tensor

    @property
    def q_values(self) -> Tensor:
        """The mean over the atoms."""
        return (self.log_probabilities.exp() * self.atoms).sum(dim=-1)

    def at(self, action: Tensor) -> Self:
        """The atoms of one action per row, ``[B, M]``."""
        atoms = self.atoms if self.atoms.dim() == 1 else take_action(self.atoms, action)
        return replace(self, log_probabilities=take_action(self.log_probabilities, action), atoms=atoms)

    def backup(self, reward: Tensor, discount: Tensor) -> Self:
        """The same probabilities on atoms ``reward + discount * atom``, not yet projected."""
        atoms = self.atoms.expand_as(self.log_probabilities)
        return replace(self, atoms=bellman_backup(atoms, reward, discount))

    def mixture(self, policy: Tensor, bonus: Tensor) -> Self:
        """The atoms of all actions side by side, ``[B, A * M]``, each with its action's probability and bonus."""
        log_probabilities = self.log_probabilities + policy.log().unsqueeze(-1)
        atoms = (self.atoms + bonus.unsqueeze(-1)).expand_as(log_probabilities)
        return replace(self, log_probabilities=log_probabilities.flatten(1), atoms=atoms.flatten(1))

    def loss(self, target: ReturnDistribution) -> Tensor:
        """Cross-entropy under the target projected onto these atoms, ``[B]``."""
        target = same_kind(self, target)
        atoms = target.atoms.expand_as(target.log_probabilities)
        projected = project_categorical(target.log_probabilities.exp(), atoms, self.atoms)
        return cross_entropy(projected, self.log_probabilities)


class CategoricalHead(Head):
    """Says with what probability the return takes each of a fixed set of values: the head of C51 and Rainbow.

    "A Distributional Perspective on Reinforcement Learning" (Bellemare, Dabney and Munos 2017).

    Args:
        num_features: ``F``.
        num_actions: ``A``.
        stream: Linear or dueling; a dueling stream aggregates the logits of each atom.
        layer: What the layers are made of.
        num_atoms: Values the return may take, ``M``, at least 2.
        v_min: The least of them. Discounted returns beyond are clamped, so the support must cover them.
        v_max: The largest.

    Raises:
        ValueError: If there are fewer than 2 atoms or ``v_min`` is not below ``v_max``; names the field.
    """

    support: Tensor

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        stream: StreamFactory = LinearStream,
        layer: LayerFactory = nn.Linear,
        num_atoms: int = 51,
        v_min: float = -10.0,
        v_max: float = 10.0,
    ) -> None:
        super().__init__()
        check_at_least(2, MOST, num_atoms=num_atoms)
        if not -torch.inf < v_min < v_max < torch.inf:
            raise ValueError(f"model.head.v_min ({v_min}) must be below model.head.v_max ({v_max}), both finite")
        self.stream = stream(num_features, num_actions, num_atoms, layer)
        # linspace would put 1e-7 where 0 belongs
        share = torch.arange(num_atoms, dtype=torch.float64)
        support = (v_min * share.flip(0) + v_max * share) / (num_atoms - 1)
        self.register_buffer("support", support.float(), persistent=False)

    def forward(self, features: Tensor) -> CategoricalReturn:
        """Probabilities of all actions' atoms, ``[B, A, M]``."""
        logits: Tensor = self.stream(features)
        return CategoricalReturn(torch.log_softmax(logits.float(), dim=-1), self.support)
