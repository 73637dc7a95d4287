import json

import numpy as np
import pytest

from lightning_dqn.experience.checkpoint import SnapshotError
from lightning_dqn.experience.snapshots import SnapshotKeeper


def save(keeper, home, env_steps, value=0, rank=0):
    return keeper.save(home, env_steps, rank, {"x": np.full(3, value)}, {"value": value})


def names(home):
    return sorted(path.name for path in (home / "replay").iterdir())


def test_what_is_saved_is_found_beside_the_checkpoint_and_where_it_was_written(tmp_path):
    replay = save(SnapshotKeeper(), tmp_path / "here", 10, 7)
    arrays, meta = SnapshotKeeper().load(replay, tmp_path / "elsewhere", 0)
    assert (arrays["x"].tolist(), meta) == ([7, 7, 7], {"value": 7})
    (tmp_path / "here").rename(tmp_path / "there")
    assert SnapshotKeeper().load(replay, tmp_path / "there", 0)[1] == {"value": 7}
    with pytest.raises(SnapshotError):
        SnapshotKeeper().load(replay, tmp_path / "elsewhere", 0)


def test_those_of_the_last_two_checkpoints_stay(tmp_path):
    keeper = SnapshotKeeper()
    for step in (10, 20, 30):
        keeper.written(save(keeper, tmp_path, step))
    assert names(tmp_path) == ["20", "30"]


def test_a_snapshot_whose_checkpoint_failed_takes_the_place_of_none(tmp_path):
    keeper = SnapshotKeeper()
    for step in (10, 20):
        keeper.written(save(keeper, tmp_path, step))
    save(keeper, tmp_path, 30)
    save(keeper, tmp_path, 40)
    assert names(tmp_path) == ["10", "20", "40"]
    keeper.written(save(keeper, tmp_path, 50))
    assert names(tmp_path) == ["20", "50"]


def test_one_moment_has_one_snapshot(tmp_path):
    keeper = SnapshotKeeper()
    first = save(keeper, tmp_path, 10, 1)
    assert save(keeper, tmp_path, 10, 2) == first
    assert SnapshotKeeper().load(first, tmp_path, 0)[1] == {"value": 1}


def test_another_runs_snapshot_of_the_same_name_is_replaced_and_its_checkpoint_notices(tmp_path):
    old = save(SnapshotKeeper(), tmp_path, 10, 1)
    new = save(SnapshotKeeper(), tmp_path, 10, 2)
    assert SnapshotKeeper().load(new, tmp_path, 0)[1] == {"value": 2}
    with pytest.raises(SnapshotError, match="another checkpoint"):
        SnapshotKeeper().load(old, tmp_path, 0)


def test_after_loading_the_one_loaded_is_kept(tmp_path):
    first, keeper = SnapshotKeeper(), SnapshotKeeper()
    for step in (10, 20):
        first.written(save(first, tmp_path, step))
    keeper.load({"name": "replay/20", "home": str(tmp_path)}, tmp_path, 0)
    keeper.release()
    keeper.written(save(keeper, tmp_path, 30))
    assert names(tmp_path) == ["20", "30"]


def test_every_process_has_its_own(tmp_path):
    keepers = [SnapshotKeeper(), SnapshotKeeper()]
    replay, other = (save(keeper, tmp_path, 10, rank, rank) for rank, keeper in enumerate(keepers))
    assert "sha256" not in other
    assert [SnapshotKeeper().load(replay, tmp_path, rank)[1]["value"] for rank in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../10"},
        {"name": "replay/../../10"},
        {"name": "/etc"},
        {"name": "replay/10\n"},
        {"name": 3},
        {"home": None},
    ],
)
def test_what_a_checkpoint_names_must_be_a_snapshot(tmp_path, change):
    replay = save(SnapshotKeeper(), tmp_path, 10) | change
    with pytest.raises(SnapshotError, match="no replay snapshot"):
        SnapshotKeeper().load(replay, tmp_path, 0)


@pytest.mark.parametrize("replay", ["replay/10", [], 3])
def test_what_a_checkpoint_says_must_be_understood(tmp_path, replay):
    with pytest.raises(SnapshotError, match="no replay snapshot"):
        SnapshotKeeper().load(replay, tmp_path, 0)


def test_a_save_that_fails_leaves_nothing(tmp_path):
    keeper = SnapshotKeeper()
    with pytest.raises(TypeError):
        keeper.save(tmp_path, 10, 0, {"x": np.zeros(3)}, {"bad": object()})
    keeper.clean(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_of_killed_saves_are_cleaned_and_snapshots_stay(tmp_path):
    replay = save(SnapshotKeeper(), tmp_path, 10)
    (tmp_path / ".latest.ckpt.01234567.tmp").touch()
    (tmp_path / "replay" / "10" / ".rank1.01234567.tmp").mkdir()
    (tmp_path / "replay" / "20" / ".rank0.01234567.tmp").mkdir(parents=True)
    SnapshotKeeper.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert names(tmp_path) == ["10"]
    assert [path.name for path in (tmp_path / "replay" / "10").iterdir()] == ["rank0"]
    manifest = json.loads((tmp_path / "replay" / "10" / "rank0" / "manifest.json").read_text())
    assert manifest["meta"] == {"value": 0}
    assert SnapshotKeeper().load(replay, tmp_path, 0)
