"""What ``--ckpt_path`` means."""

import os

import pytest
import torch

from lightning_dqn.ckpt_path import resolve_ckpt_path


def make(path, seconds=0, **content):
    """A checkpoint of so late a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {}} | content, path)
    os.utime(path, (seconds, seconds))
    return str(path)


def config(path, save_dir="runs", name="cartpole", **more):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(save_dir), "name": name}}
    return {"ckpt_path": path, "trainer": {"logger": [logger, True]}} | more


@pytest.mark.parametrize("path", ["last", "last_if_any"])
def test_the_last_is_the_newest_of_the_runs_that_a_logger_keeps_together(tmp_path, path):
    make(tmp_path / "cartpole/version_1/checkpoints/latest.ckpt", 10)
    newest = make(tmp_path / "cartpole/version_0/checkpoints/latest.ckpt", 20)
    make(tmp_path / "acrobot/version_0/checkpoints/latest.ckpt", 30)
    make(tmp_path / "cartpole/version_1/checkpoints/best.ckpt", 40)
    assert resolve_ckpt_path(config(path, tmp_path), to_go_on=False) == (newest, None)


def test_a_folder_of_ones_own_comes_before_those_of_loggers(tmp_path):
    make(tmp_path / "cartpole/latest.ckpt", 20)
    own = make(tmp_path / "own/latest.ckpt", 10)
    asked = config("last", tmp_path, checkpoint_latest={"dirpath": str(tmp_path / "own")})
    assert resolve_ckpt_path(asked, to_go_on=False) == (own, None)


def test_without_a_logger_runs_are_where_the_trainer_puts_them(tmp_path):
    path = make(tmp_path / "deep/below/latest.ckpt")
    asked = {"ckpt_path": "last", "trainer": {"logger": False, "default_root_dir": str(tmp_path)}}
    assert resolve_ckpt_path(asked, to_go_on=False) == (path, None)


def test_where_there_is_none_a_run_begins_or_says_so(tmp_path):
    assert resolve_ckpt_path(config("last_if_any", tmp_path), to_go_on=True) == (None, None)
    with pytest.raises(ValueError, match=r"^ckpt_path: there is no latest.ckpt in .*cartpole .*last_if_any"):
        resolve_ckpt_path(config("last", tmp_path), to_go_on=True)
    with pytest.raises(ValueError, match=r"^ckpt_path: "):
        resolve_ckpt_path(config(str(tmp_path / "nowhere.ckpt")), to_go_on=False)


@pytest.mark.parametrize("path", [None, "", "best", "hpc", "registry"])
def test_what_lightning_knows_is_left_to_it(path):
    assert resolve_ckpt_path(config(path), to_go_on=True) == (path, None)


def test_weights_alone_can_be_played_with_and_not_gone_on_from(tmp_path):
    path = make(tmp_path / "best.ckpt")
    assert resolve_ckpt_path(config(path), to_go_on=False) == (path, None)
    with pytest.raises(ValueError, match=r"^ckpt_path: .*best.ckpt holds weights alone, .*; take latest.ckpt$"):
        resolve_ckpt_path(config(path), to_go_on=True)


def test_a_run_of_wandb_is_gone_on_with_by_a_fit_alone(tmp_path):
    path = make(tmp_path / "latest.ckpt", optimizer_states=[], callbacks={"WandbCharts": {"run_id": "abc123"}})
    assert resolve_ckpt_path(config(path), to_go_on=True) == (path, "abc123")
    assert resolve_ckpt_path(config(path), to_go_on=False) == (path, None)
