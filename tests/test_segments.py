import hashlib

import numpy as np
import pytest

from lightning_dqn.experience import segments as module
from lightning_dqn.experience.rows import HostRows
from lightning_dqn.experience.segments import SegmentStore, layout, segment_files, segments, write_array


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_SEGMENT_BYTES", 24)  # three rows of eight bytes


class Ring:
    """A ring of numbers in the order in which they were put."""

    def __init__(self, slots):
        self.rows = HostRows(np.full(slots, -1))

    def put(self, count):
        self.rows.put(self.rows.count, np.arange(self.rows.count, self.rows.count + count))

    def segments(self):
        return list(segments({"x": self.rows}))


def final(ring):
    return [segment.file for segment in ring.segments() if segment.is_final(segment.stamp())]


@pytest.mark.parametrize(("count", "files"), [(0, 1), (1, 1), (3, 1), (4, 2), (9, 3), (10, 4), (11, 4), (27, 4)])
def test_what_is_there_is_cut_into_segments_of_a_fixed_number_of_rows(count, files):
    ring = Ring(11)
    for _ in range(count):
        ring.put(1)
    cut = ring.segments()
    assert [segment.file for segment in cut] == [f"x.{i}.npy" for i in range(files)]
    assert segment_files("x", layout(ring.rows)) == [segment.file for segment in cut]
    assert np.concatenate([segment.read() for segment in cut]).tolist() == ring.rows.numpy(0, min(count, 11)).tolist()
    assert sum(segment.num_bytes for segment in cut) == 8 * min(count, 11)


def test_rows_larger_than_a_segment_have_one_each():
    rows = HostRows(np.zeros((2, 100)))
    rows.put(0, np.ones((2, 100)))
    assert [(segment.start, segment.stop) for segment in segments({"x": rows})] == [(0, 1), (1, 2)]


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_stamp_changes_exactly_when_the_segment_does(step):
    ring, before = Ring(11), {}
    for _ in range(60 // step):
        ring.put(step)
        for segment in ring.segments():
            now = segment.read().tolist()
            stamp, rows = before.get(segment.file, (None, None))
            assert (stamp == segment.stamp()) == (rows == now)
            assert segment.stamp() == segment.stamp(ring.rows.count)
            before[segment.file] = segment.stamp(), now


def test_a_segment_is_final_from_when_the_cursor_leaves_it_to_when_it_comes_back():
    ring, seen = Ring(8), []
    assert final(ring) == [], "nothing is there yet"
    for _ in range(12):
        ring.put(1)
        seen.append([int(file[2]) for file in final(ring)])
    assert seen == [[], [], [0], [0], [0], [0, 1], [0, 1], [0, 1, 2], [1, 2], [1, 2], [0, 1, 2], [0, 2]]


def test_a_final_segment_is_stored_and_linked_as_long_as_it_is_what_it_was(tmp_path):
    ring, store = Ring(8), SegmentStore(tmp_path / "store")
    ring.put(4)
    first, second = ring.segments()
    for segment in (first, second):
        store.add(segment)
    assert (store.holds(first), store.holds(second)) == (True, False)
    assert [path.name for path in store.folder.iterdir()] == ["x.0.npy"]
    (tmp_path / "a").mkdir()
    assert store.link(first, tmp_path / "a") == hashlib.sha256((tmp_path / "a" / "x.0.npy").read_bytes()).hexdigest()
    assert store.link(second, tmp_path / "a") is None
    assert np.load(tmp_path / "a" / "x.0.npy").tolist() == [0, 1, 2]
    assert (tmp_path / "a" / "x.0.npy").stat().st_nlink == 2
    ring.put(5)
    assert not store.holds(first)
    (tmp_path / "b").mkdir()
    assert store.link(first, tmp_path / "b") is None
    ring.put(2)
    store.add(first)
    assert np.load(store.folder / "x.0.npy").tolist() == [8, 9, 10]
    assert np.load(tmp_path / "a" / "x.0.npy").tolist() == [0, 1, 2], "what was linked stays as it was"


@pytest.mark.parametrize("how_far", ["begun", "done"])
def test_a_segment_that_is_overtaken_while_it_is_read_is_not_stored(tmp_path, how_far):
    ring, store = Ring(6), SegmentStore(tmp_path / "store")
    ring.put(6)
    read = ring.rows.numpy

    def overtaken(start, stop):
        rows = read(start, stop)
        if how_far == "done":
            ring.put(1)  # into the first segment
        ring.rows._begun = 7
        return rows

    ring.rows.numpy = overtaken
    first, second = ring.segments()
    store.add(first)
    assert not store.holds(first)
    assert list(store.folder.iterdir()) == []
    store.add(second)  # while the cursor is elsewhere
    assert store.holds(second)


@pytest.mark.parametrize("round_", [0, 1])
def test_a_segment_whose_last_rows_are_being_written_is_not_stored(tmp_path, round_):
    ring, store = Ring(6), SegmentStore(tmp_path / "store")
    ring.put(6 * round_ + 2)

    class Slow:
        """What another thread would see between the count and the rows."""

        def __len__(self):
            return 1

        def __getitem__(self, index):
            for segment in ring.segments():
                store.add(segment)
            return np.array([99])[index]

    ring.rows.put(ring.rows.count, Slow())
    first, *others = ring.segments()
    assert not store.holds(first)
    assert all(store.holds(segment) for segment in others)
    store.add(first)
    assert np.load(store.folder / first.file)[-1] == 99


def test_a_segment_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    ring, store = Ring(6), SegmentStore(tmp_path / "store")
    ring.put(3)
    (first,) = ring.segments()
    monkeypatch.setattr(np, "save", lambda file, *args, **kwargs: file.write(b"half") and file.fail())
    with pytest.raises(AttributeError):
        store.add(first)
    assert not store.holds(first)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_cut_short_or_gone_is_not_linked(tmp_path, damage):
    ring, store = Ring(6), SegmentStore(tmp_path / "store")
    ring.put(3)
    (first,) = ring.segments()
    store.add(first)
    path = store.folder / first.file
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    (tmp_path / "a").mkdir()
    assert store.link(first, tmp_path / "a") is None
    assert list((tmp_path / "a").iterdir()) == []


def snapshot(folder, ring):
    """All segments in a folder, and their checksums."""
    folder.mkdir()
    return {segment.file: write_array(folder / segment.file, segment.read()) for segment in ring.segments()}


def test_what_a_snapshot_holds_of_the_same_ring_is_adopted(tmp_path):
    ring, store = Ring(8), SegmentStore(tmp_path / "store")
    ring.put(10)
    files, cuts = snapshot(tmp_path / "old", ring), {"x": layout(ring.rows)}
    ring.put(2)  # it has gone on since, in the first segment and the second
    store.adopt(tmp_path / "old", files, cuts, {"x": ring.rows})
    assert [store.holds(segment) for segment in ring.segments()] == [False, False, True]
    assert (store.folder / "x.2.npy").stat().st_ino == (tmp_path / "old" / "x.2.npy").stat().st_ino
    (tmp_path / "a").mkdir()
    assert store.link(ring.segments()[2], tmp_path / "a") == files["x.2.npy"]


@pytest.mark.parametrize("change", [{"slots": 9}, {"segment": 2}])
def test_what_is_cut_otherwise_is_not_adopted(tmp_path, change):
    ring, store = Ring(8), SegmentStore(tmp_path / "store")
    ring.put(8)
    files = snapshot(tmp_path / "old", ring)
    store.adopt(tmp_path / "old", files, {"x": layout(ring.rows) | change}, {"x": ring.rows})
    store.adopt(tmp_path / "old", files, {}, {"x": ring.rows})
    assert not any(store.holds(segment) for segment in ring.segments())
