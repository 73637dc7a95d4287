"""A linear layer with learned noise in its weights: exploration by the network itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoisyLinear(nn.Module):
    """A linear layer whose weights are drawn anew at every forward in training mode, with factorised Gaussian noise.

    ``y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b`` with ``eps_w = f(eps_out) f(eps_in)^T``,
    ``eps_b = f(eps_out)`` and ``f(x) = sign(x) sqrt(|x|)``. One draw serves a whole batch, as in the paper; acting, the
    online and the target network each have their own, since each is a forward of its own. In evaluation mode the layer
    is ``mu_w x + mu_b``.

    "Noisy Networks for Exploration" (Fortunato et al. 2018), equations 9 to 11 and section 3.2.

    Args:
        in_features: Size of the input.
        out_features: Size of the output.
        sigma: ``sigma_0``: every ``sigma`` starts at ``sigma_0 / sqrt(in_features)``, at least 0. The paper has 0.5.

    Raises:
        ValueError: If ``sigma`` is negative or infinite.
    """

    samples_while_acting = True

    def __init__(self, in_features: int, out_features: int, sigma: float = 0.5) -> None:
        super().__init__()
        if not 0 <= sigma < math.inf:
            raise ValueError(f"model.head.layer.sigma must be at least 0 and finite, got {sigma}")
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_features, in_features), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_features,), sigma * bound))

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        if not self.training:
            return F.linear(features, self.weight, self.bias)
        out_features, in_features = self.weight.shape
        noise = torch.randn(out_features + in_features, device=self.weight.device, dtype=self.weight.dtype)
        noise = noise.sign() * noise.abs().sqrt()
        noise_out, noise_in = noise[:out_features], noise[out_features:]
        weight = torch.addcmul(self.weight, self.weight_sigma, torch.outer(noise_out, noise_in))
        return F.linear(features, weight, torch.addcmul(self.bias, self.bias_sigma, noise_out))
