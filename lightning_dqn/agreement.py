"""Whether a network is made for the environment that it is to act in."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import nn

from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.learner.trying import check_dtype


def check_agreement(module: LightningModule, data: ExperienceDataModule) -> None:
    """Refuses a network for other observations or actions than the environment's.

    Args:
        module: Its hyper-parameters ``observation_shape`` and ``num_actions`` are compared, and the torso of its
            ``online`` network is tried, where it has them.
        data: Knows the environment.

    Raises:
        ValueError: Naming the field.
    """
    own = {"observation_shape": tuple(data.observation_shape), "num_actions": data.num_actions}
    for name, there in own.items():
        here = module.hparams.get(name)
        if name == "observation_shape" and here is not None:
            here = tuple(here)
        if here not in (None, there):
            raise ValueError(
                f"model.{name} is {here}, but that of data.env_id is {there}; give the model data.{name}, which the "
                "command line does by itself"
            )
    torso = getattr(getattr(module, "online", None), "torso", None)
    if isinstance(torso, nn.Module):
        check_dtype(torso, data.observation_shape, data.observation_dtype)
