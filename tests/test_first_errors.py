"""The messages of ``docs/first-errors.md`` are those that people get."""

import re
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from lightning.pytorch import Trainer
from torch import nn

from lightning_dqn import DQNLightningModule, ExperienceDataModule, MLPTorso, NatureTorso, ReplayBuffer, Torso
from lightning_dqn.cli import main
from lightning_dqn.trust import CheckpointBuilder

PAGE = (Path(__file__).parent.parent / "docs" / "first-errors.md").read_text()
QUOTED = [row.strip("` ") for row in re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)]


class Room(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self):
        return np.zeros(2, np.float32), {}


class WrongRoom(Room):
    def reset(self, *, seed=None, options=None):
        super(Room, self).reset(seed=seed)
        return np.zeros(3, np.float32), {}


class RoomTorso(Torso):
    def __init__(self, observation_shape):
        super().__init__()

    def forward(self, observation):
        return observation


class WideTorso(Torso):
    def __init__(self, observation_shape):
        super().__init__()
        self.num_features = 64
        self.layer = nn.Linear(4, 128)

    def forward(self, observation):
        return self.layer(observation)


def make_torso(observation_shape):
    return MLPTorso(observation_shape)


def fit(env_id="CartPole-v1", shape=(4,), num_actions=2, trainer=Trainer, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = trainer(fast_dev_run=True, accelerator="cpu", **quiet, **settings)
    trainer.fit(DQNLightningModule(shape, num_actions), datamodule=ExperienceDataModule(env_id))


def fit_by_the_other_package():
    fit(trainer=pytest.importorskip("pytorch_lightning").Trainer)


def a_lambda():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DQNLightningModule((4,), 2, torso=lambda shape: MLPTorso(shape))


def a_function():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DQNLightningModule((4,), 2, torso=make_torso)


def command(words):
    return lambda: main(words.split())


PROVOKED = {
    "versioned environments": lambda: ExperienceDataModule("CartPole-v9"),
    "neither registered": lambda: ExperienceDataModule("room.Room"),
    "needs a Discrete": lambda: ExperienceDataModule("Pendulum-v1").num_actions,
    "has shape (3,)": lambda: fit(WrongRoom, (2,)),
    "keyword argument 'seed'": lambda: fit(Room, (2,)),
    "got (4,)": lambda: DQNLightningModule((4,), 2, torso=NatureTorso),
    "transposes": lambda: DQNLightningModule((84, 84, 3), 2, torso=NatureTorso),
    "is (3,), but": lambda: fit(shape=(3,)),
    "is 3, but": lambda: fit(num_actions=3),
    "how many features": lambda: DQNLightningModule((4,), 2, torso=RoomTorso),
    "but its forward gives": lambda: DQNLightningModule((4,), 2, torso=WideTorso),
    "mat1 and mat2": lambda: DQNLightningModule((3,), 2, torso=WideTorso),
    "gives a Tensor": lambda: DQNLightningModule((4,), 2, head=nn.Linear),
    "a lambda": a_lambda,
    "write `->": a_function,
    "OptimizedModule": fit_by_the_other_package,
    "accumulate_grad_batches": lambda: fit(accumulate_grad_batches=2),
    "16-true": lambda: fit(precision="16-true"),
    "larger than the replay": lambda: ExperienceDataModule("CartPole-v1", batch_size=64, buffer=ReplayBuffer(32)),
    "are required": command("fit"),
    "neither a file": command("fit --config cartpol"),
    "unrecognized": command("fit --config cartpole --data.nstep 3"),
    "is not accepted": command("fit --config cartpole --model.torso.hidden_size [64]"),
    "No module named 'room'. Got": command("fit --config cartpole --model.torso room.RoomTorso"),
    "last_if_any": command("fit --config cartpole --ckpt_path last"),
    "names room.RoomTorso": lambda: CheckpointBuilder("best.ckpt").arguments(
        DQNLightningModule, {"torso": "room.RoomTorso"}, "model"
    ),
    "no folder of a run": command("test runs/nothing"),
}


def plain(message):
    """Without what a table cannot show, a list's end, and the name of a lambda, which says where it stands."""
    message = re.sub(r"\S*<lambda>\S*", "a lambda", message).replace(f"{__name__}.", "room.")
    return re.sub(r"atari, .*", "atari, ...", message).replace("`", "'").strip("' \n")


def test_every_message_of_the_page_is_provoked_here():
    assert len(QUOTED) == len(PROVOKED)
    for quoted in QUOTED:
        assert len([words for words in PROVOKED if words in quoted]) == 1, quoted


@pytest.mark.parametrize("words", PROVOKED)
def test_it_is_word_for_word_what_is_said(words, monkeypatch, capsys):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (quoted,) = [message for message in QUOTED if words in message]
    with pytest.raises((Exception, SystemExit)) as raised:
        PROVOKED[words]()
    said = capsys.readouterr().err if str(raised.value) == "2" else str(raised.value)
    assert plain(said).removeprefix("error: ") == plain(quoted)
