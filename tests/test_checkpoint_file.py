import json

import pytest
import torch

from lightning_dqn.checkpoint_file import (
    CheckpointError,
    checksums_of,
    digest,
    find_checkpoint,
    generations,
    is_address,
    known_checksums,
    previous_of,
    read_checkpoint,
)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "latest.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3)}, "epoch": 4}, path)
    return path


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .* does not exist"):
        find_checkpoint(tmp_path / "x.ckpt")


def test_one_that_is_gone_is_found_by_the_one_before(path):
    previous = previous_of(path)
    assert previous.name == "latest.previous.ckpt"
    assert generations(path) == [path]
    path.rename(previous)
    assert generations(path) == [previous]
    assert find_checkpoint(path) == path


def test_a_link_is_followed(path):
    link = path.with_name("last.ckpt")
    link.symlink_to(path.name)
    assert find_checkpoint(link) == path.resolve()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("s3://bucket/a.ckpt", True), ("simplecache::http://x/a", True), ("runs/a.ckpt", False), ("C:/a.ckpt", False)],
)
def test_addresses_are_told_from_paths(path, expected):
    assert is_address(path) is expected


def test_checksums_are_of_the_file_and_of_the_one_before(path):
    assert known_checksums(path) is None
    checksums_of(path).write_text(json.dumps({"format_version": 1, "sha256": ["a", "b"]}))
    assert known_checksums(path) == known_checksums(previous_of(path)) == ["a", "b"]


def test_checksums_of_a_slurm_checkpoint_do_not_look_like_one(tmp_path):
    assert checksums_of(tmp_path / "hpc_ckpt_3.ckpt").name == "hpc_3.ckpt.sha256"


def test_what_is_not_what_was_saved_is_not_read(path):
    assert read_checkpoint(path)["epoch"] == 4
    checksums_of(path).write_text(json.dumps({"format_version": 1, "sha256": [digest(path)]}))
    assert read_checkpoint(path)["epoch"] == 4
    torch.save({"state_dict": {}, "epoch": 5}, path)
    with pytest.raises(CheckpointError, match=r"^ckpt_path: .* cannot be loaded: it is not what was saved, by latest"):
        read_checkpoint(path)
