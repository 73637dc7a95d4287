"""Agents out of checkpoints."""

import importlib
import sys

import pytest

from lightning_dqn import DQNLightningModule, ExperienceDataModule
from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.loading import load
from lightning_dqn.apps.report import play


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "best.ckpt").write_bytes(b"nothing")
    with pytest.raises(Refusal, match=r"ckpt_path: .*best.ckpt cannot be loaded: "):
        load(tmp_path / "best.ckpt")
    with pytest.raises(Refusal, match=r"ckpt_path: .*none.ckpt cannot be loaded: "):
        play(tmp_path / "none.ckpt")


@pytest.mark.parametrize("lost", ["torso", "wrapper"])
def test_a_class_that_cannot_be_found_is_refused_with_the_cure(tmp_path, monkeypatch, make_trainer, make_model, lost):
    own = tmp_path / "room.py"
    own.write_text(
        "import gymnasium\nfrom lightning_dqn import MLPTorso\n"
        "class RoomTorso(MLPTorso): ...\nclass RoomWrapper(gymnasium.Wrapper): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    room = importlib.import_module("room")
    data = ExperienceDataModule("CartPole-v1", wrappers=[room.RoomWrapper] if lost == "wrapper" else [], seed=0)
    model = make_model(data, **({"torso": room.RoomTorso} if lost == "torso" else {}))
    trainer = make_trainer()
    trainer.validate(model, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    load(tmp_path / "best.ckpt", ["room"])
    with pytest.raises(Refusal, match=r'names room\.Room.*trust=\("room",\) in Python, --trust room on the command'):
        load(tmp_path / "best.ckpt")
    own.unlink()
    monkeypatch.delitem(sys.modules, "room")
    importlib.invalidate_caches()
    with pytest.raises(Refusal) as refused:
        load(tmp_path / "best.ckpt", ["room"])
    name, field = ("RoomTorso", "model.torso") if lost == "torso" else ("RoomWrapper", "data.wrappers[0]")
    assert str(refused.value) == (
        f"ckpt_path: {tmp_path}/best.ckpt names room.{name} for {field}, which cannot be imported: No module named "
        "'room'. Start in the folder that holds the module, or put that folder on PYTHONPATH."
    )


def test_an_error_without_words_is_named_by_its_kind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError

    monkeypatch.setattr(DQNLightningModule, "load_from_checkpoint", fail)
    with pytest.raises(Refusal, match=r"best.ckpt cannot be loaded: OSError$"):
        load(tmp_path / "best.ckpt")
