"""Settings of the learner that a resumed run may change, and those that it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_dqn.hparams import differences

_NETWORK = ("model.torso", "model.head")


def check_network(saved: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Validate that the weights in a checkpoint fit the network.

    Args:
        saved: The state dict in the checkpoint.
        own: The state dict of the module.

    Raises:
        ValueError: If a tensor is missing, superfluous or of another shape; names the first one.
    """
    for name in {**own, **saved}:
        here, there = (None if one is None else tuple(one.shape) for one in (own.get(name), saved.get(name)))
        if here != there:
            field = "model.torso" if ".torso." in name else "model.head"
            raise ValueError(
                f"ckpt_path: {field} is not the network in the checkpoint: {name} has shape {there} there and {here} "
                "here. Use model.torso and model.head of the checkpoint, or start a new run."
            )


def changed_settings(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the settings of the module that a resumed run has changed, in words.

    All of them are used by the resumed run; those that it could not use are refused.

    Args:
        saved: Hyper-parameters in the checkpoint.
        own: Hyper-parameters of this run.

    Raises:
        ValueError: If torso or head have changed, or the class of the optimizer.
    """
    changed = differences(saved, own, "model")
    for line in changed:
        setting = line.partition(" was ")[0]
        if setting.startswith(_NETWORK) or setting == "model.optimizer":
            raise ValueError(
                f"ckpt_path: {line}. A resumed run keeps it: use that of the checkpoint or start a new run."
            )
    return changed
