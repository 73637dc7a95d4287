"""Kills, damage and full disks while checkpoints are written: what is left can always be gone on from."""

import os
import resource
import signal
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import ExperienceDataModule
from lightning_dqn.checkpoint_file import generations, previous_of, read_checkpoint
from lightning_dqn.checkpoint_io import CrashSafeCheckpointIO
from lightning_dqn.experience import segments, write_behind
from lightning_dqn.experience.checkpoint import SnapshotError, load_snapshot, save_snapshot
from lightning_dqn.experience.rows import HostRows
from lightning_dqn.experience.snapshots import SnapshotKeeper
from tests.runs import snapshot


def counts(short, slow):
    """The same test twice: a few times in CI, and often enough to mean something."""
    return pytest.mark.parametrize("count", [short, pytest.param(slow, marks=pytest.mark.slow)])


class Run:
    """Checkpoints with their replays, without the training between them: a ring of numbers in the order of putting."""

    def __init__(self, home, size):
        self.home, self.size, self.path = home, size, home / "latest.ckpt"
        self.keeper = SnapshotKeeper()
        self.io = CrashSafeCheckpointIO(self.accept, lambda checkpoint: self.keeper.written(checkpoint["replay"]))
        self.rows = HostRows(np.zeros(size, np.int64))

    def accept(self, checkpoint, path):
        self.keeper.resume_run(checkpoint["run"])
        try:
            arrays, meta = self.keeper.load(checkpoint["replay"], path.parent, 0)
        except SnapshotError as error:
            return str(error)
        assert (arrays["reward"] == checkpoint["epoch"]).all()
        assert meta["value"] == checkpoint["epoch"]
        self.rows.restore(arrays["ring"], meta["count"])
        names = np.arange(max(0, meta["count"] - self.size), meta["count"])
        assert len(arrays["ring"]) == len(names)
        assert (self.rows.array[names % self.size] == names).all()
        return None

    def start(self):
        """Cleans and loads, as a run that goes on does; returns the checkpoint and what was said."""
        self.keeper.clean(self.home)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            checkpoint = self.io.load_checkpoint(self.path)
        assert self.accept(checkpoint, self.path) is None
        assert (checkpoint["state_dict"]["w"] == checkpoint["epoch"]).all()
        return checkpoint["epoch"], [str(one.message) for one in said]

    def begin(self):
        """Writes behind from now on."""
        self.keeper.begin(self.home, 0, {"ring": self.rows}, self.keeper.release())

    def put(self, count):
        """Adds to the ring."""
        for _ in range(count):
            self.rows.put(self.rows.count, np.array([self.rows.count]))

    def save(self, value):
        arrays = {"reward": np.full(self.size, value, np.float32)}
        meta, rings = {"value": value, "count": self.rows.count}, {"ring": self.rows}
        name = self.keeper.name(self.home, value)
        checkpoint = {
            "epoch": value,
            "state_dict": {"w": torch.full((self.size,), float(value))},
            "run": self.keeper.run_id,
            "replay": self.keeper.save(self.home, name, 0, arrays, meta, rings),
        }
        self.io.save_checkpoint(checkpoint, self.path)


@counts(5, 200)
def test_killed_while_saving_everything_is_whole_and_nothing_is_left_over(tmp_path, monkeypatch, count):
    if Path("/dev/shm").is_dir():  # another file system than that of the checkpoints, where there is one
        monkeypatch.setenv("TMPDIR", "/dev/shm")
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 50_000)
    monkeypatch.setattr(write_behind, "_PAUSE", 0.001)
    size = 100_000
    Run(tmp_path, size).save(1)
    rng, saves, inside, behind, last = np.random.default_rng(), 0, 0, 0, 1
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                run = Run(tmp_path, size)
                value, _ = run.start()
                run.begin()
                while True:
                    value += 1
                    run.put(int(rng.integers(30_000)))
                    run.save(value)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        time.sleep(rng.uniform(0.01, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the child failed by itself"
        left = [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
        behind += any(path.parent.name == "replay" for path in left)
        inside += any(path.parent.name != "replay" for path in left)
        for path in generations(tmp_path / "latest.ckpt"):
            read_checkpoint(path)
        value, said = Run(tmp_path, size).start()
        assert not said
        assert value >= last
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
        saves, last = saves + value - last, value
    run = Run(tmp_path, size)
    value, _ = run.start()
    run.begin()
    run.save(value + 1)
    run.keeper.close()
    # killed between two system calls, a save or a removal can leave an empty folder, which is never removed
    assert len([path for path in (tmp_path / "replay").iterdir() if any(path.iterdir())]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        "latest.ckpt",
        "latest.ckpt.sha256",
        "latest.previous.ckpt",
        "replay",
    }
    print(
        f"\n{count} kills, {behind} of them while segments were written, {inside} inside a save, {saves} saves: "
        "0 unreadable, 0 leftovers"
    )


@counts(40, 1000)
def test_any_damage_is_noticed_and_the_checkpoint_before_is_taken(tmp_path, monkeypatch, count):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 80)
    first = Run(tmp_path, 100)
    first.put(95)
    first.begin()
    for value in range(1, 5):
        first.save(value)
        first.put(3)
    first.keeper.close()
    rng, cut = np.random.default_rng(), 0
    files = [tmp_path / "latest.ckpt", *snapshot(tmp_path, 4).iterdir()]
    assert len(files) == 3 + 10
    for _ in range(count):
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        where = int(rng.integers(len(content)))
        # in place: what shares the file is damaged with it
        if rng.random() < 0.25:
            cut += 1
            os.truncate(path, where)
        else:
            flipped = bytes([content[where] ^ int(rng.integers(1, 256))])
            path.write_bytes(content[:where] + flipped + content[where + 1 :])
        value, said = Run(tmp_path, 100).start()
        path.write_bytes(content)
        assert value == 3, (path, where)
        assert len(said) == 1
        assert "Taking the one before" in said[0]
    assert Run(tmp_path, 100).start() == (4, [])
    print(f"\n{count} damaged files, {cut} of them cut short: {count} noticed, {count} times the one before taken")


def test_what_is_damaged_is_not_handed_on_to_the_next_but_one(tmp_path, monkeypatch):
    """A run that goes on from the one before writes what was damaged anew."""
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 80)
    run = Run(tmp_path, 100)
    run.put(95)
    run.begin()
    for value in (1, 2, 3):
        run.save(value)
    run.keeper.close()
    os.truncate(snapshot(tmp_path, 3) / "ring.2.npy", 100)
    run = Run(tmp_path, 100)
    assert run.start()[0] == 2
    run.begin()
    for value in (4, 5, 6):
        run.put(1)
        run.save(value)
        run.keeper.load({"name": f"replay/{run.keeper.run_id}-{value}", "home": str(tmp_path)}, tmp_path, 0)
    run.keeper.close()


class FillDisk(Callback):
    """From the second validation on, no file can grow beyond a size."""

    def __init__(self, num_bytes):
        self.num_bytes = num_bytes

    def on_validation_end(self, trainer, pl_module):
        if trainer.current_epoch >= 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@counts(5, 20)
def test_on_a_full_disk_training_goes_on_and_the_old_checkpoint_stays(make_trainer, make_model, tmp_path, count):
    rng = np.random.default_rng()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for i in range(count):
        data = ExperienceDataModule(
            "CartPole-v1", num_envs=1, learning_starts=100, batch_size=8, steps_per_epoch=32, eval_episodes=1
        )
        folder = tmp_path / str(i)
        latest = ModelCheckpoint(folder, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
        room = int(rng.integers(12_000))
        trainer = make_trainer(max_epochs=4, callbacks=[FillDisk(room), latest], enable_checkpointing=True)
        try:
            with pytest.warns(UserWarning, match="could not be saved"):
                trainer.fit(make_model(data), data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert trainer.current_epoch == 4
        checkpoint = read_checkpoint(folder / "latest.ckpt")
        assert checkpoint["epoch"] == 0
        assert load_snapshot(folder / checkpoint["replay"]["name"] / "rank0", checkpoint["replay"]["sha256"])
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    print(f"\n{count} disks that filled up: {count} runs went on, {count} old checkpoints with replay readable")


def memory(of):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(of))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_neither_saving_nor_loading_takes_the_memory_of_a_second_buffer(tmp_path, count):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the kernel does not measure the peak")
    rows = np.ones(count * 2**20 // 16, [("reward", np.float64), ("discount", np.float32), ("action", np.int32)])
    whole = np.ones(count * 2**20 // 4, np.float32)
    arrays = {"whole": whole} | {name: rows[name] for name in rows.dtype.names}
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    begin = time.monotonic()
    save_snapshot(tmp_path / "one", arrays, {})
    saving, saved = memory("VmHWM") - before, time.monotonic() - begin
    before = memory("RssAnon")
    begin = time.monotonic()
    loaded, _ = load_snapshot(tmp_path / "one")
    for name, array in arrays.items():
        array[:] = 0
        array[:] = loaded[name]
        assert array.all()
    loading, taken = memory("RssAnon") - before, time.monotonic() - begin
    print(
        f"\n{size:.0f} MiB of replay: saving took {saving:.0f} MiB more and {saved:.1f} s, "
        f"loading {loading:.0f} MiB and {taken:.1f} s"
    )
    assert saving < 60
    assert loading < 10


def test_the_one_before_is_where_it_is_said_to_be(tmp_path):
    run = Run(tmp_path, 10)
    for value in (1, 2, 3):
        run.save(value)
    assert [read_checkpoint(path)["epoch"] for path in generations(run.path)] == [3, 2]
    assert Run(tmp_path, 10).accept(read_checkpoint(previous_of(run.path)), run.path) is None
