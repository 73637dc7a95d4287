import fcntl
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_dqn.experience import segments as segments_module
from lightning_dqn.experience import write_behind as module
from lightning_dqn.experience.rows import HostRows
from lightning_dqn.experience.segments import segments
from lightning_dqn.experience.write_behind import WriteBehind
from lightning_dqn.files import clean_leftovers


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch):
    monkeypatch.setattr(segments_module, "_SEGMENT_BYTES", 32)
    monkeypatch.setattr(module, "_PAUSE", 0.005)


@pytest.fixture
def rows():
    ring = HostRows(np.zeros(20, np.int64))
    ring.put(0, np.arange(9))
    return ring


@pytest.fixture
def behind(tmp_path, rows):
    writing = WriteBehind(tmp_path / "rank0", {"x": rows})
    yield writing
    writing.close()


def wait(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def held(behind, rows):
    return [segment.file for segment in segments({"x": rows}) if behind.store.holds(segment)]


def test_segments_are_written_as_they_become_final(behind, rows):
    behind.start()
    wait(lambda: held(behind, rows) == ["x.0.npy", "x.1.npy"])
    rows.put(9, np.arange(9, 14))
    wait(lambda: held(behind, rows) == ["x.0.npy", "x.1.npy", "x.2.npy"])
    rows.put(14, np.arange(14, 25))  # around, past the first and into the second
    wait(lambda: held(behind, rows) == ["x.0.npy", "x.2.npy", "x.3.npy", "x.4.npy"])
    behind.stop()
    for segment in segments({"x": rows}):
        if behind.store.holds(segment):
            assert (np.load(behind.store.folder / segment.file) == segment.read()).all()


def test_nothing_is_written_before_the_start_and_after_the_stop(behind, rows):
    assert held(behind, rows) == []
    behind.start()
    wait(lambda: len(held(behind, rows)) == 2)
    behind.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "replay"]
    rows.put(9, np.arange(9, 14))
    time.sleep(0.05)
    assert len(held(behind, rows)) == 2
    behind.stop()  # again does nothing


def test_the_two_stores_share_no_file(behind, rows):
    inodes = []
    for _ in range(2):
        behind.start()
        wait(lambda: len(held(behind, rows)) == 2)
        behind.stop()
        inodes += [path.stat().st_ino for path in behind.store.folder.iterdir()]
        behind.switch()
    assert len(set(inodes)) == 4
    assert held(behind, rows) == ["x.0.npy", "x.1.npy"], "the first again, as it was"


def test_both_stores_are_filled_until_the_first_turn_then_one(behind, rows):
    behind.start()
    wait(lambda: all(store.holds(segment) for store in behind._stores for segment in list(segments({"x": rows}))[:2]))
    behind.stop()
    behind.switch()
    behind.start()
    rows.put(9, np.arange(9, 14))
    wait(lambda: len(held(behind, rows)) == 3)
    time.sleep(0.05)
    behind.stop()
    behind.switch()
    assert len(held(behind, rows)) == 2


def test_a_disk_that_fails_ends_it_until_the_next_start(behind, rows, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(segments_module, "write_array", full)
        behind.start()
        wait(lambda: not behind._thread.is_alive())
    assert held(behind, rows) == []
    behind.stop()
    behind.start()
    wait(lambda: len(held(behind, rows)) == 2)


def test_a_disk_is_not_filled_to_the_last_byte(behind, rows, monkeypatch):
    monkeypatch.setattr(module, "_RESERVE", 2**60)
    behind.start()
    wait(lambda: not behind._thread.is_alive())
    assert held(behind, rows) == []


def test_it_leaves_nothing_and_is_no_leftover_while_it_lives(tmp_path, behind, rows):
    behind.start()
    assert clean_leftovers(tmp_path) == []
    wait(lambda: len(held(behind, rows)) == 2)
    behind.close()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_leaves_a_folder_that_is_cleaned(tmp_path, rows):
    child = os.fork()
    if child == 0:
        WriteBehind(tmp_path / "rank0", {"x": rows}).start()
        time.sleep(0.05)
        os._exit(1)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert list((left / "0").iterdir())
    assert clean_leftovers(tmp_path) == [left]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["locks", "links"])
def test_where_a_disk_has_no_locks_or_links_it_is_refused_and_leaves_nothing(tmp_path, rows, monkeypatch, what):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(*((fcntl, "flock") if what == "locks" else (Path, "hardlink_to")), refuse)
    with pytest.raises(OSError, match=r"."):
        WriteBehind(tmp_path / "rank0", {"x": rows})
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_while_the_ring_is_filled_is_what_was_in_it(behind, rows):
    """A ring that is filled as quickly as it goes: no file holds rows of two rounds."""
    behind.start()
    name, until, checked = 9, time.monotonic() + 1.0, 0
    while time.monotonic() < until:
        count = 1 + name % 7
        rows.put(name, np.arange(name, name + count))
        name += count
        if name % 50 < 7:
            behind.stop()
            for segment in segments({"x": rows}):
                if behind.store.holds(segment):
                    assert (np.load(behind.store.folder / segment.file) == segment.read()).all()
                    checked += 1
            for path in behind.store.folder.iterdir():
                first, *others = np.load(path).tolist()
                assert others == [first + 1, first + 2, first + 3]
            behind.start()
    assert checked > 10
