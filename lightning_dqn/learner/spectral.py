"""A convolution whose weight is divided by its largest singular value, which is followed once per update."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralConv2d(nn.Conv2d):
    """A convolution that keeps the size of its input, with ``W / sigma(W)`` as its weight.

    ``W`` is the weight as a matrix of ``out_channels`` rows, and ``sigma(W) = u^T W v`` its largest singular value
    between the two singular vectors, which are buffers and take one step of the power method per update:
    ``v = W^T u / |W^T u|`` after ``u = W v / |W v|``. Gradients flow through ``W / sigma``, the vectors held fixed.

    "Spectral Normalization for Generative Adversarial Networks" (Miyato et al. 2018), algorithm 1 and equation 12.

    The step is taken in the first forward in training mode that has gradients, and not again before a backward pass has
    been through the layer. So an update takes one step however many forwards it makes, while acting, evaluation and the
    target network take none, and nothing hangs on how often somebody looks. Every forward has the ``sigma`` of the
    weight it finds: a target network that is an average of weights has its own, along the vectors copied to it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel, odd.

    Raises:
        ValueError: If the kernel size is even; names the field.
    """

    u: Tensor
    v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"model.torso.residual_layer.kernel_size must be odd, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        rows, columns = self.weight.flatten(1).shape
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))
        self._due = True
        for _ in range(15):  # from vectors at random, one step would leave the first updates with any sigma at all
            self._follow()

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[B, in_channels, H, W]`` to ``[B, out_channels, H, W]``."""
        maps: Tensor = self._conv_forward(images, self.normalized_weight(), self.bias)
        return maps

    def normalized_weight(self) -> Tensor:
        """``W / sigma(W)``, shaped like ``weight``; in float32 under autocast too."""
        learning = self.training and torch.is_grad_enabled()
        # an update that is compiled whole has one such forward, and no place for hooks
        compiling = torch.compiler.is_compiling()
        with torch.autocast(self.weight.device.type, enabled=False):
            if learning and (self._due or compiling):
                self._follow()
            # copies: a backward pass may come after the next step, and wants the vectors it went forward with
            u, v = (self.u.clone(), self.v.clone()) if learning else (self.u, self.v)
            weight = self.weight / torch.dot(u, self.weight.flatten(1) @ v)
        if learning and not compiling:
            self._due = False
            if weight.requires_grad:
                # not the weight's version, which fused optimizers leave as it was
                weight.register_hook(self._learned)  # type: ignore[no-untyped-call]
        return weight

    @torch.no_grad()
    def _follow(self) -> None:
        matrix = self.weight.flatten(1)
        # in place, as whoever copies weights to a target network holds on to these tensors
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))
        self.v.copy_(F.normalize(self.u @ matrix, dim=0))

    def _learned(self, gradient: Tensor) -> None:
        self._due = True
