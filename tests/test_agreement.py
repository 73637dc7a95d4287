"""A network for other observations or actions than the environment's is refused before anything is played."""

import numpy as np
import pytest
from gymnasium import spaces
from lightning.pytorch import LightningModule

from lightning_dqn import DQNLightningModule, ExperienceDataModule, NatureTorso
from lightning_dqn.agreement import check_agreement
from tests.environments import Pictures


class Scaled(Pictures):
    """Images of floats, which are not to be played."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0, 1, (4, 36, 36), np.float32)

    def reset(self, *, seed=None, options=None):
        raise AssertionError("reset")


@pytest.fixture(scope="module")
def cartpole():
    return ExperienceDataModule("CartPole-v1", num_envs=1, eval_episodes=1, eval_num_envs=1)


@pytest.mark.parametrize("shape", [(4,), [4]])
def test_a_network_for_this_environment_is_taken(cartpole, shape):
    check_agreement(DQNLightningModule(shape, 2), cartpole)


@pytest.mark.parametrize(
    ("shape", "num_actions", "said"),
    [
        ((3,), 2, r"^model\.observation_shape is \(3,\), but that of data\.env_id is \(4,\); give the model data\.obs"),
        ((4,), 3, r"^model\.num_actions is 3, but that of data\.env_id is 2; give the model data\.num_actions,"),
        ((4,), 1, r"^model\.num_actions is 1, but that of data\.env_id is 2"),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_another_network_is_refused_at_every_stage(cartpole, make_trainer, stage, shape, num_actions, said):
    model = DQNLightningModule(shape, num_actions)
    with pytest.raises(ValueError, match=said):
        getattr(make_trainer(), stage)(model, datamodule=cartpole)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_a_torso_for_other_numbers_is_refused_at_every_stage_before_anything_is_played(make_trainer, stage):
    data = ExperienceDataModule(Scaled, num_envs=1, eval_episodes=1, eval_num_envs=1)
    model = DQNLightningModule((4, 36, 36), 3, torso=NatureTorso)
    said = r"^model\.torso: NatureTorso scales uint8 images .*float32; the observations of data\.env_id are float32:"
    with pytest.raises(ValueError, match=said):
        getattr(make_trainer(), stage)(model, datamodule=data)


def test_a_torso_for_these_numbers_is_taken():
    check_agreement(DQNLightningModule((4, 36, 36), 3, torso=NatureTorso), ExperienceDataModule(Pictures))


def test_a_module_that_does_not_say_what_it_is_for_is_not_asked(cartpole):
    check_agreement(LightningModule(), cartpole)
