"""The mode in which a network acts while it trains: evaluation mode, except for layers that sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_PACKAGE = __name__.partition(".")[0]
_SAME_IN_BOTH_MODES = frozenset(
    (nn.AdaptiveMaxPool2d, nn.Conv2d, nn.Flatten, nn.LayerNorm, nn.Linear, nn.MaxPool2d, nn.ReLU, nn.Sequential)
)


def layers_to_switch(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a network that act in evaluation mode during training.

    Layers that are the same in both modes are left out, because switching modes takes time at every step of an
    environment: the layers of this package, whose statistics move with gradients alone, and common layers of torch.

    Args:
        network: Its layers that sample have the attribute ``samples_while_acting = True``, as noise layers do.
    """
    return [
        layer
        for layer in network.modules()
        if not getattr(layer, "samples_while_acting", False) and not _is_same_in_both_modes(layer)
    ]


def _is_same_in_both_modes(layer: nn.Module) -> bool:
    kind = type(layer)
    if kind.__module__.partition(".")[0] == _PACKAGE:
        return True
    # torch.nn.utils.spectral_norm gives a layer buffers that move in training mode, and leaves its type
    return kind in _SAME_IN_BOTH_MODES and next(layer.buffers(recurse=False), None) is None


@contextmanager
def evaluation_mode(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Set layers to evaluation mode for a while, and restore the mode of each.

    Args:
        layers: Without their children, which have modes of their own.
    """
    switched = [layer for layer in layers if layer.training]
    for layer in switched:
        layer.training = False
    try:
        yield
    finally:
        for layer in switched:
            layer.training = True
