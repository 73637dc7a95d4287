from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dqn.experience.pieces import Pieces
from lightning_dqn.experience.rows import DeviceRows, FieldRows, HostRows, Place, make_rows

MEMORY = Place()


def places(tmp_path):
    return {"memory": MEMORY, "disk": Place(tmp_path / "replay")}


@pytest.fixture(params=["memory", "disk", "device"])
def make(request, tmp_path):
    """Makes rows somewhere; a tensor on the CPU stands in for one on an accelerator."""

    def make(count, shape, dtype):
        if request.param == "device":
            return DeviceRows(torch.empty((count, *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype))
        return make_rows(count, shape, np.dtype(dtype), places(tmp_path)[request.param])

    return make


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32", "int64"])
def test_rows_are_taken_as_they_were_put(make, dtype):
    rows = make(7, (2, 3), dtype)
    assert (rows.shape, rows.dtype) == ((7, 2, 3), np.dtype(dtype))
    kept = np.zeros((7, 2, 3), dtype)
    rows.put(0, kept)
    rng = np.random.default_rng(0)
    name = 0
    for count in (3, 0, 7, 5, 1, 6):  # twice around the ring and more
        new = rng.integers(2, size=(count, 2, 3)).astype(dtype)
        rows.put(name, new)
        for i in range(count):
            kept[(name + i) % 7] = new[i]
        name += count
    slot = rng.integers(7, size=(4, 5))
    taken = rows.take(slot)
    assert taken.dtype == torch.from_numpy(kept).dtype
    assert (taken.numpy() == kept[slot]).all()
    assert (rows.numpy(0, 5) == kept[:5]).all()


def test_rows_are_counted_when_they_are_written_and_begun_before(make):
    rows = make(4, (2,), "uint8")
    assert (rows.count, len(rows)) == (0, 0)
    rows.put(0, np.ones((3, 2), np.uint8))
    assert (rows.count, len(rows)) == (3, 3)
    seen = []

    class Slow:
        """What is written looks at the count when it is asked for."""

        def __len__(self):
            return 2

        def __array__(self, dtype=None, copy=None):
            seen.append((rows.count, rows.begun))
            return np.ones((2, 2), np.uint8)

        def __getitem__(self, index):
            seen.append((rows.count, rows.begun))
            return np.ones((2, 2), np.uint8)[index]

    rows.put(3, Slow())
    assert set(seen) == {(3, 5)}
    assert (rows.count, rows.begun, len(rows)) == (5, 5, 4)


def test_rows_that_were_saved_are_taken_over_with_their_count(make):
    saved = np.arange(8, dtype=np.uint8).reshape(4, 2)
    pieces = Pieces(saved.shape, saved.dtype, [lambda: saved[:3], lambda: saved[3:]])
    for source in (saved, pieces):
        rows = make(4, (2,), "uint8")
        rows.restore(source, 11)
        assert (rows.count, rows.begun, len(rows)) == (11, 11, 4)
        assert (rows.numpy(0, 4) == saved).all()
        rows.put(11, np.full((1, 2), 99, np.uint8))
        assert rows.numpy(3, 4).tolist() == [[99, 99]]


def test_a_field_of_rows_is_seen_where_it_lies_and_counts_as_they_do():
    rows = HostRows(np.zeros(3, [("a", np.int64), ("b", np.float32)]))
    field = FieldRows(rows, "b")
    new = np.zeros(2, rows.dtype)
    new["b"] = 5, 6
    rows.put(2, new)
    assert field.numpy(0, 3).tolist() == [6, 0, 5]
    assert (field.count, field.begun, len(field), field.row_bytes) == (4, 4, 3, 4)
    field.restore(np.array([7, 8], np.float32), 2)
    assert rows.array["b"][:2].tolist() == [7, 8]
    assert rows.count == field.count == rows.begun == field.begun == 2


def test_what_was_taken_is_a_copy(make):
    rows = make(3, (2,), "uint8")
    rows.put(0, np.ones((3, 2), np.uint8))
    taken = rows.take(np.array([0, 1]))
    rows.put(0, np.zeros((3, 2), np.uint8))
    assert taken.tolist() == [[1, 1], [1, 1]]


def test_rows_in_memory_are_seen_without_a_copy():
    rows = make_rows(3, (2,), np.dtype("uint8"), MEMORY)
    rows.numpy(0, 3)[:] = 5
    assert rows.take(np.array([2])).tolist() == [[5, 5]]


def test_a_file_is_as_large_as_its_rows_and_leaves_nothing_behind(tmp_path):
    rows = make_rows(1000, (7, 9), np.dtype("uint8"), Place(tmp_path / "a" / "b"))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(mapped) == 1
    assert mapped[0].endswith("(deleted)"), "a killed process would leave the file"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    assert isinstance(rows, HostRows)
    assert rows.array.nbytes == 63_000


def test_a_full_disk_is_noticed_before_the_file_is_made(tmp_path):
    Place(tmp_path / "not" / "there").check_fits(1, 0, "data.buffer.capacity")
    with pytest.raises(MemoryError, match=r"^data\.buffer\.capacity: .*data\.storage_dir.*needed: 9\d+\.\d+ GiB, free"):
        Place(tmp_path / "not" / "there").check_fits(10**18, 0, "data.buffer.capacity")
    assert not (tmp_path / "not").exists()


def test_memory_is_not_asked_for_what_lies_on_disk(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("lightning_dqn.experience.rows.check_fits", lambda num_bytes, name: asked.append(num_bytes))
    Place(tmp_path).check_fits(100, 7, "data.buffer.capacity")
    MEMORY.check_fits(100, 7, "data.buffer.capacity")
    assert asked == [7, 107]


def test_an_accelerator_is_asked_for_what_will_lie_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 200))
    place = Place(device=torch.device("cuda"))
    place.check_fits(100, 7, "data.buffer.capacity")
    with pytest.raises(MemoryError, match=r"^data\.buffer\.capacity: .* on cuda; .*data\.storage_device"):
        place.check_fits(101, 7, "data.buffer.capacity")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_lie_on_the_accelerator():
    rows = make_rows(5, (2,), np.dtype("uint8"), Place(device=torch.device("cuda")))
    rows.put(0, np.arange(10, dtype=np.uint8).reshape(5, 2))
    taken = rows.take(np.array([[4], [0]]))
    assert taken.device.type == "cuda"
    assert taken.tolist() == [[[8, 9]], [[0, 1]]]
