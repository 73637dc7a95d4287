import json
import os
import re
import time
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dqn import PrioritizedReplayBuffer, ReplayBuffer, SharedFrames
from lightning_dqn.experience import checkpoint, segments, write_behind
from lightning_dqn.experience.checkpoint import SnapshotError
from lightning_dqn.experience.rows import DeviceRows, HostRows, Place
from lightning_dqn.experience.snapshots import SnapshotKeeper
from lightning_dqn.files import unfinished
from tests.test_frames import Recorder


def save(keeper, home, env_steps, value=0, rank=0, progress=()):
    name = keeper.name(home, env_steps, progress)
    return keeper.save(home, name, rank, {"x": np.full(3, value)}, {"value": value})


def names(home):
    """Return the names of all that is in ``replay``, without the run ids."""
    return sorted(path.name.rpartition("-")[2] for path in (home / "replay").iterdir())


def folder_of(home, number):
    """Return the only folder of a number of steps."""
    (folder,) = (home / "replay").glob(f"*-{number}")
    return folder


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


def test_moments_of_equally_many_steps_have_snapshots_of_their_own(tmp_path):
    keeper = SnapshotKeeper()
    moments = [(10, 1), (10, 2), (10, 2), (11, 3), (20, 4)]
    saved = [save(keeper, tmp_path, steps, k, progress=(k,)) for steps, k in moments]
    assert [replay["name"] for replay in saved] == [f"replay/{keeper.run_id}-{i}" for i in (10, 11, 11, 12, 20)]
    for _ in range(2):
        again = SnapshotKeeper()
        assert again.load(save(again, tmp_path, 30, 1, progress=(5,)), tmp_path, 0)[1] == {"value": 1}
        # the one that was loaded is of a moment that nobody knows
        assert save(again, tmp_path, 30, 2, progress=(6,))["name"] == f"replay/{again.run_id}-31"


def resumed_keeper(keeper):
    """Return the keeper of a new process that resumes the same run."""
    again = SnapshotKeeper()
    again.resume_run(keeper.run_id)
    return again


def test_save_after_resume_from_an_earlier_checkpoint_replaces_the_runs_later_snapshot(tmp_path):
    keeper = SnapshotKeeper()
    old = save(keeper, tmp_path, 10, 1)
    new = save(resumed_keeper(keeper), tmp_path, 10, 2)
    assert new["name"] == old["name"]
    assert SnapshotKeeper().load(new, tmp_path, 0)[1] == {"value": 2}
    with pytest.raises(SnapshotError, match="another checkpoint"):
        SnapshotKeeper().load(old, tmp_path, 0)


def test_save_of_two_runs_in_turns_keeps_two_snapshots_of_each(tmp_path):
    keepers = [SnapshotKeeper(), SnapshotKeeper()]
    for step, keeper in product((10, 20, 30, 40), keepers):
        keeper.clean(tmp_path)
        keeper.written(save(keeper, tmp_path, step, keepers.index(keeper)))
    assert names(tmp_path) == ["30", "30", "40", "40"]
    for value, keeper in enumerate(keepers):
        for step in (30, 40):
            replay = {"name": f"replay/{keeper.run_id}-{step}", "home": str(tmp_path)}
            assert SnapshotKeeper().load(replay, tmp_path, 0)[1] == {"value": value}


def test_load_of_a_snapshot_without_run_id_restores_it_and_no_save_removes_it(tmp_path):
    checkpoint.save_snapshot(tmp_path / "replay" / "10" / "rank0", {"x": np.zeros(3)}, {"value": 5})
    keeper = SnapshotKeeper()
    assert keeper.load({"name": "replay/10", "home": str(tmp_path)}, tmp_path, 0)[1] == {"value": 5}
    keeper.resume_run(None)
    for step in (20, 30, 40):
        keeper.written(save(keeper, tmp_path, step))
    assert names(tmp_path) == ["10", "30", "40"]


@pytest.mark.parametrize("run_id", [None, 3, "", "../../x", "0123456", "ABCDEF01", "01234567\n"])
def test_resume_run_with_no_valid_id_makes_a_new_one(run_id):
    keeper = SnapshotKeeper()
    keeper.resume_run(run_id)
    assert re.fullmatch("[0-9a-f]{8}", keeper.run_id)
    assert keeper.run_id != run_id


def test_name_taken_by_what_the_run_did_not_save_is_left_for_the_next_number(tmp_path):
    keeper = SnapshotKeeper()
    folder, run = tmp_path / "replay", keeper.run_id
    (folder / f"{run}-10" / "rank0").mkdir(parents=True)
    (folder / f"{run}-11").symlink_to(tmp_path)
    (folder / f"{run}-12").write_text("mine")
    checkpoint.save_snapshot(folder / f"{run}-13" / "rank1", {}, {}, run="01234567")
    for number in (14, 15):
        checkpoint.save_snapshot(folder / f"{run}-{number}" / "rank0", {}, {}, run=run)
    (folder / f"{run}-14" / "rank0" / "mine.txt").touch()
    (folder / f"{run}-9").mkdir()
    assert keeper.name(tmp_path, 9) == f"{run}-15"
    for rank in (0, 1):
        with pytest.raises(FileExistsError, match=f"{run}-{10 + 3 * rank}"):
            keeper.save(tmp_path, f"{run}-{10 + 3 * rank}", rank, {}, {})


def test_written_leaves_a_users_file_in_a_snapshot_folder(tmp_path):
    keeper = SnapshotKeeper()
    for step in (10, 20, 30, 40):
        name = save(keeper, tmp_path, step)
        if step == 10:
            (tmp_path / name["name"] / "mine.txt").touch()
        if step == 20:
            (tmp_path / name["name"] / "rank0" / "mine.txt").touch()
        keeper.written(name)
    assert [path.name for path in folder_of(tmp_path, 10).iterdir()] == ["mine.txt"]
    assert (folder_of(tmp_path, 20) / "rank0" / "mine.txt").is_file()
    assert names(tmp_path) == ["10", "20", "30", "40"]


def test_after_loading_the_one_loaded_is_kept(tmp_path):
    first = SnapshotKeeper()
    for step in (10, 20):
        first.written(replay := save(first, tmp_path, step))
    keeper = resumed_keeper(first)
    keeper.load(replay, tmp_path, 0)
    keeper.release()
    keeper.written(save(keeper, tmp_path, 30))
    assert names(tmp_path) == ["20", "30"]


def test_every_process_has_its_own(tmp_path):
    keepers = [SnapshotKeeper(), SnapshotKeeper()]
    name = keepers[0].name(tmp_path, 10)
    replay, other = (keeper.save(tmp_path, name, rank, {}, {"value": rank}) for rank, keeper in enumerate(keepers))
    assert "sha256" not in other
    assert [SnapshotKeeper().load(replay, tmp_path, rank)[1]["value"] for rank in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../10"},
        {"name": "replay/../../10"},
        {"name": "/etc"},
        {"name": "replay/10\n"},
        {"name": "replay/xyz-10"},
        {"name": "replay/" + "9" * 5000},
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
        keeper.save(tmp_path, keeper.name(tmp_path, 10), 0, {"x": np.zeros(3)}, {"bad": object()})
    assert names(tmp_path) == []


def test_leftovers_of_killed_saves_are_cleaned_and_snapshots_stay(tmp_path):
    replay = save(SnapshotKeeper(), tmp_path, 10)
    saved = folder_of(tmp_path, 10)
    unfinished(tmp_path / "latest.ckpt").touch()
    unfinished(saved / "rank1").mkdir()
    unfinished(tmp_path / "replay" / "01234567-20" / "rank0").mkdir(parents=True)
    SnapshotKeeper.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["replay"]
    assert names(tmp_path) == ["10"]
    assert [path.name for path in saved.iterdir()] == ["rank0"]
    manifest = json.loads((saved / "rank0" / "manifest.json").read_text())
    assert manifest["meta"] == {"value": 0}
    assert SnapshotKeeper().load(replay, tmp_path, 0)


# -- what has not changed is not written again -------------------------------------------------------------------------


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 800)  # a hundred numbers
    monkeypatch.setattr(write_behind, "_PAUSE", 0.002)


class Run:
    """A ring of a thousand numbers in the order in which they were put, saved every so often."""

    def __init__(self, home, keeper=None):
        self.home, self.keeper = home, keeper or SnapshotKeeper()
        self.rows = HostRows(np.zeros(1000, np.int64))

    @property
    def rings(self):
        return {"x": self.rows}

    def begin(self, held=None):
        self.keeper.begin(self.home, 0, self.rings, held)

    def put(self, count):
        name = self.rows.count
        for start in range(name, name + count, 50):
            self.rows.put(start, np.arange(start, min(start + 50, name + count)))

    def catch_up(self):
        """Waits until the thread has nothing to do."""
        behind, until = self.keeper._behind, time.monotonic() + 10
        final = [segment for segment in segments.segments(self.rings) if segment.is_final(segment.stamp())]
        while not all(store.holds(segment) for store in behind._stores[: behind._filled] for segment in final):
            assert time.monotonic() < until
            time.sleep(0.002)

    def save(self, written=True):
        name = self.keeper.name(self.home, self.rows.count)
        replay = self.keeper.save(self.home, name, 0, {"y": np.zeros(3)}, {}, self.rings)
        if written:
            self.keeper.written(replay)
        arrays, _ = SnapshotKeeper().load(replay, self.home, 0)
        assert (np.asarray(arrays["x"]) == self.rows.numpy(0, len(self.rows))).all()
        return replay

    def inodes(self, replay):
        return {path.name: path.stat().st_ino for path in (self.home / replay["name"] / "rank0").iterdir()}


@pytest.fixture
def run(tmp_path, small_segments):
    one = Run(tmp_path)
    yield one
    one.keeper.close()


def shared(*inodes):
    """Files that two snapshots share."""
    return sorted(set(inodes[0].items()) & set(inodes[1].items()))


def test_a_snapshot_shares_unchanged_segments_with_the_one_before_the_last_and_nothing_with_the_last(run):
    run.put(950)
    run.begin()
    kept = []
    for _ in range(6):
        kept.append(run.inodes(run.save()))
        run.put(110)
    assert all(shared(one, other) == [] for one, other in pairwise(kept))
    for one, other in zip(kept, kept[2:], strict=False):
        # 220 numbers are in three or four of the ten segments
        assert 6 <= len(shared(one, other)) <= 7


def test_what_the_thread_has_written_is_not_written_by_the_save(run, monkeypatch):
    counted, real = [], segments.write_array

    def write_array(path, array):
        counted.append(path.name)
        return real(path, array)

    run.put(1050)
    run.begin()
    run.catch_up()
    for module in (checkpoint, segments):
        monkeypatch.setattr(module, "write_array", write_array)
    run.save()
    # the thread goes on with the other store
    assert counted[:2] == ["x.0.npy", "y.npy"]
    run.put(100)
    run.catch_up()
    counted.clear()
    run.save()
    assert counted[:2] == ["x.1.npy", "y.npy"]


def test_without_a_beginning_every_save_writes_everything_and_no_thread_is_there(run):
    run.put(950)
    first = run.inodes(run.save())
    second = run.inodes(run.save())
    assert second == first, "one moment has one snapshot"
    run.put(1)
    assert shared(first, run.inodes(run.save())) == []
    assert run.keeper._behind is None
    assert names(run.home) == ["950", "951"]


def test_a_run_that_goes_on_takes_over_the_files_of_the_snapshot_it_came_from(run, small_segments):
    run.put(1250)
    run.begin()
    replay = run.save()
    run.keeper.close()
    again = Run(run.home)
    again.rows.restore(again.keeper.load(replay, run.home, 0)[0]["x"], 1250)
    held = again.keeper.release()
    assert held == run.home / replay["name"] / "rank0"
    again.put(10)  # into the segment that was open
    again.begin(held)
    first = again.inodes(again.save())
    assert shared(run.inodes(replay), first) == []
    before = run.inodes(replay)
    again.put(10)
    assert len(shared(before, again.inodes(again.save()))) == 9
    again.keeper.close()


def resumed(run, replay):
    """A new process that goes on from a snapshot, with ten numbers more."""
    again = Run(run.home)
    arrays, _ = again.keeper.load(replay, run.home, 0)
    again.rows.restore(arrays["x"], int(replay["name"].rpartition("-")[2]))
    again.put(10)
    again.begin(again.keeper.release())
    again.keeper._behind.stop()  # what it would write now is not there yet
    return again


def saved_twice(run):
    run.put(1250)
    run.begin()
    kept = []
    for _ in range(2):
        kept.append(run.save())
        run.put(10)
    run.keeper.close()
    return kept


def test_a_save_right_after_going_on_takes_the_files_of_the_one_before(run):
    before, held = saved_twice(run)
    inodes = run.inodes(before), run.inodes(held)
    again = resumed(run, held)
    first = again.inodes(again.save())
    assert shared(inodes[1], first) == []
    # all but the segment that was put into
    assert len(shared(inodes[0], first)) == 9
    again.put(10)
    second = again.inodes(again.save())
    assert shared(first, second) == []
    assert len(shared(inodes[1], second)) == 9
    again.keeper.close()


def test_of_the_one_before_only_what_is_the_same_and_whole_is_taken(run):
    before, held = saved_twice(run)
    inodes, folder = run.inodes(before), run.home / before["name"] / "rank0"
    os.truncate(folder / "x.0.npy", 100)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["x.1.npy"] = "0" * 64  # as another run's of the same length would be
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = resumed(run, held)
    assert [name for name, _ in shared(inodes, again.inodes(again.save()))] == [f"x.{i}.npy" for i in range(3, 10)]
    again.keeper.close()


def test_nothing_is_taken_from_a_newer_one_which_was_not_gone_on_from_for_a_reason(run):
    before, damaged = saved_twice(run)
    inodes = run.inodes(damaged)
    again = resumed(run, before)
    again.put(10)
    assert shared(inodes, again.inodes(again.save())) == []
    again.keeper.close()


def test_in_a_hurry_nothing_is_written_that_is_there_and_the_next_run_shares_nothing_more(run, monkeypatch):
    monkeypatch.setattr(write_behind.WriteBehind, "start", lambda self: None)  # so there is one copy only
    run.put(1250)
    first = run.save()
    run.begin(run.home / first["name"] / "rank0")
    run.put(10)
    name = run.keeper.name(run.home, 1260)
    second = run.keeper.save(run.home, name, 0, {"y": np.zeros(3)}, {}, run.rings, hurry=True)
    run.keeper.written(second)
    common = shared(run.inodes(first), run.inodes(second))
    assert len(common) == 9
    run.keeper.close()
    again = resumed(run, second)
    assert shared(run.inodes(second), again.inodes(again.save())) == []
    again.keeper.close()


def test_what_was_saved_before_the_beginning_can_be_taken_over_as_well(run):
    run.put(1250)
    replay = run.keeper.save(run.home, run.keeper.name(run.home, 1250), 0, {}, {}, run.rings)
    run.begin(run.home / replay["name"] / "rank0")
    run.keeper.written(replay)
    first = run.inodes(replay)
    run.put(10)
    assert shared(first, run.inodes(run.save())) == []
    run.put(10)
    assert len(shared(first, run.inodes(run.save()))) == 9


@pytest.mark.parametrize("held", ["nowhere", "damaged"])
def test_a_snapshot_that_cannot_be_taken_over_is_left(run, held):
    run.put(300)
    (run.home / "damaged").mkdir()
    (run.home / "damaged" / "manifest.json").write_text("{")
    run.begin(run.home / held)
    run.save()


def test_a_snapshot_whose_checkpoint_failed_shares_nothing_with_the_one_that_stays(run):
    run.put(950)
    run.begin()
    stays = run.inodes(run.save())
    run.put(1)
    run.save(written=False)
    run.put(1)
    following = run.inodes(run.save())
    assert shared(stays, following) == []
    run.keeper.close()
    assert names(run.home) == ["950", "952"]


def test_other_processes_take_turns_with_every_save(run):
    run.put(950)
    run.keeper.begin(run.home, 1, run.rings, None)
    kept = []
    for _ in range(3):
        replay = run.keeper.save(run.home, run.keeper.name(run.home, run.rows.count), 1, {}, {}, run.rings)
        folder = run.home / replay["name"] / "rank1"
        kept.append({path.name: path.stat().st_ino for path in folder.iterdir()})
        run.put(1)
    assert shared(kept[0], kept[1]) == shared(kept[1], kept[2]) == []
    assert len(shared(kept[0], kept[2])) == 9


def test_a_thread_that_fails_costs_nothing_but_time(run, monkeypatch):
    real = segments.write_array

    def full(path, array):
        if ".tmp/0/" in str(path) or ".tmp/1/" in str(path):
            raise OSError(28, "No space left on device")
        return real(path, array)

    monkeypatch.setattr(segments, "write_array", full)
    monkeypatch.setattr(checkpoint, "write_array", real)
    run.put(950)
    run.begin()
    run.keeper._behind._thread.join(10)
    for _ in range(3):
        run.save()
        run.put(10)


def test_saving_goes_on_after_a_save_that_failed(run, monkeypatch):
    run.put(950)
    run.begin()
    kept = [run.inodes(run.save())]
    run.put(1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "check_space", lambda *args: Path("/nowhere").stat())
        with pytest.raises(OSError, match="nowhere"):
            run.save()
    kept.append(run.inodes(run.save()))
    run.put(1)
    kept.append(run.inodes(run.save()))
    assert shared(kept[0], kept[1]) == []
    assert len(shared(kept[0], kept[2])) == 9
    run.keeper.close()
    assert names(run.home) == ["951", "952"]


def test_the_folder_of_segments_is_gone_at_the_end_and_spared_before(run):
    run.put(950)
    run.begin()
    run.begin()  # again does nothing
    run.save()
    run.keeper.clean(run.home)
    (folder,) = (path for path in (run.home / "replay").iterdir() if path.name.startswith("."))
    assert len(list(folder.iterdir())) == 4
    run.keeper.close()
    assert names(run.home) == ["950"]


@pytest.mark.parametrize("written", [True, False])
def test_killed_while_segments_are_written_nothing_is_left_over(tmp_path, small_segments, written):
    child = os.fork()
    if child == 0:
        one = Run(tmp_path)
        one.put(950)
        one.begin()
        one.catch_up()
        if written:
            one.save()
        os._exit(1)
    os.waitpid(child, 0)
    assert [path for path in (tmp_path / "replay").iterdir() if path.name.endswith(".tmp")]
    SnapshotKeeper.clean(tmp_path)
    assert names(tmp_path) == ["950"] * written


# -- against a plain copy ----------------------------------------------------------------------------------------------

BUFFERS = {"uniform": ReplayBuffer, "prioritized": PrioritizedReplayBuffer}
OBSERVATIONS = {"whole": lambda: None, "frames": lambda: SharedFrames(4, spare_frames=40)}


def make_buffer(kind, observations, where, folder):
    buffer = BUFFERS[kind](capacity=60, observations=OBSERVATIONS[observations]())
    buffer.allocate((4, 3, 5), np.dtype("uint8"), place=Place(folder) if where == "disk" else Place())
    if where == "device":  # a tensor on the CPU stands in for one on an accelerator
        for name in ("frames",) if observations == "frames" else ("before", "after"):
            rows = getattr(buffer.observations, name)
            setattr(buffer.observations, name, DeviceRows(torch.from_numpy(rows.array)))
    return buffer


@pytest.mark.parametrize(
    ("kind", "observations", "where", "num_envs"),
    [(*what, 1 + 2 * (i % 2)) for i, what in enumerate(product(BUFFERS, OBSERVATIONS, ("memory", "disk", "device")))],
)
def test_snapshots_are_plain_copies_whatever_is_linked(tmp_path, monkeypatch, kind, observations, where, num_envs):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 150)  # ten frames
    monkeypatch.setattr(write_behind, "_PAUSE", 0.001)
    rng, linked = np.random.default_rng(0), 0
    recorder = Recorder(ReplayBuffer(60), num_envs, 3)
    buffer = recorder.buffer = make_buffer(kind, observations, where, tmp_path / "ring")
    recorder.reference = buffer.remember(recorder.observation)
    keeper, saved, step = SnapshotKeeper(), {}, 0
    keeper.begin(tmp_path, 0, buffer.rings(), None)
    for moment in range(14):
        for _ in range(int(rng.integers(1, 40)) if moment else 1):
            recorder.step()
            step += num_envs
        if len(buffer):
            batch = buffer.sample(1, 16, rng)
            buffer.update_priorities(batch.index, torch.from_numpy(rng.random((1, 16))))
        replay = keeper.save(tmp_path, keeper.name(tmp_path, step), 0, buffer.loose_arrays(), {}, buffer.rings())
        saved[step] = {name: array.copy() for name, array in buffer.state_arrays().items()}
        if rng.random() < 0.8:
            keeper.written(replay)
        for folder in (tmp_path / "replay").glob("[0-9a-f]*-*"):
            arrays, _ = SnapshotKeeper().load(replay | {"name": f"replay/{folder.name}", "sha256": None}, tmp_path, 0)
            at = saved[int(folder.name.rpartition("-")[2])]
            assert arrays.keys() == at.keys()
            for name, expected in at.items():
                array = np.asarray(arrays[name])
                assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
                assert array.tobytes() == expected.tobytes(), (folder.name, name)
        linked += sum(path.stat().st_nlink > 1 for path in (tmp_path / replay["name"] / "rank0").iterdir())
        if moment % 5 == 4:  # a new process goes on from here
            keeper.close()
            keeper = resumed_keeper(keeper)
            buffer = recorder.buffer = make_buffer(kind, observations, where, tmp_path / "ring")
            buffer.load_state_arrays(keeper.load(replay, tmp_path, 0)[0])
            for name, expected in saved[step].items():
                assert buffer.state_arrays()[name].tobytes() == expected.tobytes()
            recorder.reference = buffer.remember(recorder.observation, np.zeros(num_envs, np.bool_))
            keeper.begin(tmp_path, 0, buffer.rings(), keeper.release())
    keeper.close()
    assert linked > 20
    assert not list(Path(tmp_path / "replay").glob(".*"))
