import hashlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from lightning_dqn.experience import segments
from lightning_dqn.experience.checkpoint import SnapshotError, is_snapshot_of, load_snapshot, save_snapshot
from lightning_dqn.experience.rows import HostRows
from lightning_dqn.experience.segments import SegmentStore

ARRAYS = {
    "observation": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "reward": np.array([0.1, np.inf, -0.0], np.float32),
    "action_mask": np.array([[True, False], [False, True], [True, True]]),
    "count": np.array(2, np.int64),
    "empty": np.zeros((0, 5), np.float64),
}
META = {"rngs": {"replay": np.random.default_rng(3).bit_generator.state}, "note": "häuser", "big": 2**127}


@pytest.fixture
def snapshot(tmp_path):
    save_snapshot(tmp_path / "replay" / "100", ARRAYS, META)
    return tmp_path / "replay" / "100"


def rewrite_manifest(snapshot, **changes):
    path = snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_saved_is_loaded(snapshot):
    arrays, meta = load_snapshot(snapshot)
    assert meta == META
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()


def test_arrays_that_are_views_are_saved_as_what_they_show(tmp_path):
    array = np.arange(20).reshape(4, 5)
    save_snapshot(tmp_path / "one", {"view": array[::2, 1:3].T}, {})
    assert load_snapshot(tmp_path / "one")[0]["view"].tolist() == [[1, 11], [2, 12]]


def test_nothing_but_the_snapshot_is_left_behind(snapshot):
    assert [path.name for path in snapshot.parent.iterdir()] == ["100"]
    assert {path.name for path in snapshot.iterdir()} == {"manifest.json", *(f"{name}.npy" for name in ARRAYS)}


def test_a_generator_goes_on_from_its_saved_state(snapshot):
    generator = np.random.default_rng(0)
    generator.bit_generator.state = load_snapshot(snapshot)[1]["rngs"]["replay"]
    assert (generator.integers(1000, size=50) == np.random.default_rng(3).integers(1000, size=50)).all()


def test_a_save_that_dies_before_the_end_leaves_nothing_visible(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            save_snapshot(tmp_path / "replay" / "100", ARRAYS, META)
    assert not (tmp_path / "replay" / "100").exists()
    with pytest.raises(SnapshotError, match="no readable replay snapshot"):
        load_snapshot(tmp_path / "replay" / "100")
    # and the next save succeeds all the same
    save_snapshot(tmp_path / "replay" / "100", ARRAYS, META)
    assert load_snapshot(tmp_path / "replay" / "100")[1] == META


def test_everything_is_on_disk_before_the_snapshot_appears(tmp_path, monkeypatch):
    flushed, at_replace = [], []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def watched_replace(*args):
        at_replace.extend(flushed)
        replace(*args)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_snapshot(tmp_path / "100", ARRAYS, META)
    written = [tmp_path / "100", *(tmp_path / "100").iterdir()]
    assert len(written) == 2 + len(ARRAYS)
    assert {path.stat().st_ino for path in written} <= set(at_replace)
    assert flushed[-1] == tmp_path.stat().st_ino


@pytest.mark.parametrize("name", ["observation.npy", "reward.npy", "count.npy"])
@pytest.mark.parametrize("where", [0, 20, -1])
def test_a_flipped_byte_is_noticed(snapshot, name, where):
    content = bytearray((snapshot / name).read_bytes())
    content[where] ^= 1
    (snapshot / name).write_bytes(content)
    with pytest.raises(SnapshotError, match="damaged"):
        load_snapshot(snapshot)


@pytest.mark.parametrize("size", [0, 10, 130])
def test_a_file_cut_short_is_noticed(snapshot, size):
    content = (snapshot / "observation.npy").read_bytes()
    assert len(content) > size
    (snapshot / "observation.npy").write_bytes(content[:size])
    with pytest.raises(SnapshotError):
        load_snapshot(snapshot)


@pytest.mark.parametrize("name", ["observation.npy", "manifest.json"])
def test_a_missing_file_is_noticed(snapshot, name):
    (snapshot / name).unlink()
    with pytest.raises(SnapshotError):
        load_snapshot(snapshot)


def test_a_missing_directory_is_noticed(tmp_path):
    with pytest.raises(SnapshotError, match="no readable replay snapshot"):
        load_snapshot(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", '{"format_version": 2, "files": ["count.npy"], "rings": {}, "meta": {}}']
)
def test_a_manifest_that_is_none_is_noticed(snapshot, text):
    (snapshot / "manifest.json").write_text(text)
    with pytest.raises(SnapshotError):
        load_snapshot(snapshot)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_is_refused(snapshot, version):
    rewrite_manifest(snapshot, format_version=version)
    with pytest.raises(SnapshotError, match="format"):
        load_snapshot(snapshot)


@pytest.mark.parametrize("name", ["../x.npy", "/tmp/x.npy", "x.pkl", "sub/x.npy", "..", "", "manifest.json"])
def test_a_manifest_that_names_anything_but_arrays_of_its_own_is_refused(snapshot, name):
    (snapshot / "sub").mkdir()
    for target in (snapshot.parent / "x.npy", snapshot / "x.pkl", snapshot / "sub" / "x.npy"):
        np.save(target.open("wb"), np.zeros(3))
    rewrite_manifest(snapshot, files={name: "0" * 64})
    with pytest.raises(SnapshotError, match="which is no array of this snapshot"):
        load_snapshot(snapshot)


def test_arrays_of_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        save_snapshot(tmp_path / "100", {"objects": np.array([{}, None], dtype=object)}, {})
    assert not (tmp_path / "100").exists()


def test_arrays_of_objects_are_not_read_even_with_the_right_checksum(tmp_path, snapshot):
    executed = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (executed.touch, ())

    with (snapshot / "count.npy").open("wb") as file:
        np.save(file, np.array([Evil()], dtype=object), allow_pickle=True)
    checksums = json.loads((snapshot / "manifest.json").read_text())["files"]
    checksums["count.npy"] = hashlib.sha256((snapshot / "count.npy").read_bytes()).hexdigest()
    rewrite_manifest(snapshot, files=checksums)
    with pytest.raises(SnapshotError, match="cannot be read"):
        load_snapshot(snapshot)
    assert not executed.exists()


def test_an_existing_snapshot_stays_untouched(snapshot):
    before = {path.name: path.read_bytes() for path in snapshot.iterdir()}
    save_snapshot(snapshot, {"other": np.zeros(3)}, {})
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == before


@pytest.mark.parametrize(
    ("condition", "expected"),
    [("whole", True), ("another run", False), ("no run", False), ("stray", False), ("garbage", False), ("link", False)],
)
def test_is_snapshot_of_a_run_holds_for_what_the_run_saved_alone(tmp_path, condition, expected):
    runs = {"another run": "76543210", "no run": None}
    snapshot = tmp_path / "rank0"
    save_snapshot(snapshot, ARRAYS, META, run=runs.get(condition, "01234567"))
    if condition == "stray":
        (snapshot / "notes.txt").touch()
    elif condition == "garbage":
        (snapshot / "manifest.json").write_text("{")
    elif condition == "link":
        snapshot.rename(tmp_path / "elsewhere")
        snapshot.symlink_to(tmp_path / "elsewhere")
    assert is_snapshot_of(snapshot, "01234567") == expected


def test_is_snapshot_of_a_run_does_not_hold_for_a_file_or_nothing(tmp_path):
    (tmp_path / "file").touch()
    assert not is_snapshot_of(tmp_path / "file", "01234567")
    assert not is_snapshot_of(tmp_path / "nothing", "01234567")


# -- snapshots that are not ours ---------------------------------------------------------------------------------------


def put(snapshot, content, name="reward.npy"):
    """Replaces a file of a snapshot, with the right checksum."""
    (snapshot / name).write_bytes(content)
    files = json.loads((snapshot / "manifest.json").read_text())["files"]
    rewrite_manifest(snapshot, files=files | {name: hashlib.sha256(content).hexdigest()})


def npy(header, body=b"", version=1):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + body


def header(descr, shape):
    return str({"descr": descr, "fortran_order": False, "shape": shape})


@pytest.mark.parametrize(
    "content",
    [
        npy(header("<f4", (2**40,)), bytes(12)),
        npy(header("<f4", (2**62, 2**62)), bytes(12)),
        npy(header("<f4", (-3,)), bytes(12)),
        npy(header("<f4", (2,)), bytes(12)),
        npy(header("|O", (1,)), bytes(8)),
        npy(header([("a", "|O")], (1,)), bytes(8)),
        npy(header("<f4", (3,)), bytes(12), version=2)[:-1],
        npy(header("<f4", (3,)), bytes(12), version=3),
        npy(header("<f4", (3,)) + " " * 20_000, bytes(12)),
        npy("__import__('os').abort()"),
        npy("[" * 90),
        b"PK\x03\x04" + bytes(100),
        b"",
    ],
)
def test_arrays_whose_headers_lie_are_refused_before_anything_is_allocated(snapshot, content):
    put(snapshot, content)
    with pytest.raises(SnapshotError, match=r"reward\.npy cannot be read"):
        load_snapshot(snapshot)


def test_an_array_written_by_hand_is_read(snapshot):
    put(snapshot, npy(header("<f4", (3,)), bytes(12)))
    assert load_snapshot(snapshot)[0]["reward"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["reward.npy", "manifest.json"])
def test_links_and_pipes_are_not_followed(snapshot, name):
    elsewhere = snapshot.parent / "elsewhere"
    (snapshot / name).rename(elsewhere)
    (snapshot / name).symlink_to(elsewhere)
    with pytest.raises(SnapshotError):
        load_snapshot(snapshot)
    (snapshot / name).unlink()
    os.mkfifo(snapshot / name)
    with pytest.raises(SnapshotError):
        load_snapshot(snapshot)


def test_a_snapshot_is_known_by_its_checksum(tmp_path):
    first = save_snapshot(tmp_path / "1", {"x": np.zeros(3)}, {})
    second = save_snapshot(tmp_path / "2", {"x": np.ones(3)}, {})
    assert first != second
    assert save_snapshot(tmp_path / "1", {"x": np.ones(3)}, {}) == first  # there already
    load_snapshot(tmp_path / "1", first)
    with pytest.raises(SnapshotError, match="another checkpoint"):
        load_snapshot(tmp_path / "1", second)


def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**20))
    with pytest.raises(OSError, match=r"needed: 8\.0 MiB, free: 1\.0 MiB"):
        save_snapshot(tmp_path / "replay" / "1", {"x": np.zeros(2**20)}, {})
    assert list((tmp_path / "replay").iterdir()) == []


def test_what_was_loaded_can_be_written_to_and_leaves_the_file_alone(snapshot):
    arrays, _ = load_snapshot(snapshot)
    arrays["reward"][:] = 5
    assert load_snapshot(snapshot)[0]["reward"][0] == np.float32(0.1)


# -- rings -------------------------------------------------------------------------------------------------------------


def ring(count, slots=8):
    rows = HostRows(np.zeros((slots, 2), np.int32))
    for name in range(count):
        rows.put(name, np.full((1, 2), name))
    return rows


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 24)  # three rows


@pytest.fixture
def with_rings(tmp_path, small_segments):
    save_snapshot(tmp_path / "replay" / "100", ARRAYS, META, {"x": ring(11), "small": ring(2), "none": ring(0)})
    return tmp_path / "replay" / "100"


def test_rings_are_written_in_segments_and_loaded_as_they_were(with_rings):
    arrays, _ = load_snapshot(with_rings)
    for name, expected in (("x", ring(11)), ("small", ring(2)), ("none", ring(0))):
        plain = expected.numpy(0, len(expected))
        assert (arrays[name].shape, arrays[name].dtype, len(arrays[name])) == (plain.shape, plain.dtype, len(plain))
        assert (np.asarray(arrays[name]) == plain).all()
    assert sorted(path.name for path in with_rings.glob("*.*.npy")) == [
        *("none.0.npy", "small.0.npy", "x.0.npy", "x.1.npy", "x.2.npy")
    ]
    assert arrays["reward"].tobytes() == ARRAYS["reward"].tobytes()


def test_a_buffer_of_many_segments_is_read_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 8)
    rows = ring(300, slots=300)
    save_snapshot(tmp_path / "1", {}, {}, {"x": rows})
    before = len(list(Path("/proc/self/fd").iterdir()))
    arrays, _ = load_snapshot(tmp_path / "1")
    for i, piece in enumerate(arrays["x"]):
        assert piece.tolist() == [[i, i]]
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 10


@pytest.mark.parametrize("name", ["x.1.npy", "small.0.npy"])
def test_a_segment_that_is_damaged_or_missing_is_noticed(with_rings, name):
    content = (with_rings / name).read_bytes()
    (with_rings / name).write_bytes(content[:-1] + b"?")
    with pytest.raises(SnapshotError, match="damaged"):
        load_snapshot(with_rings)
    (with_rings / name).unlink()
    with pytest.raises(SnapshotError, match="cannot be read"):
        load_snapshot(with_rings)


@pytest.mark.parametrize(
    "cut",
    [
        None,
        [],
        {},
        {"slots": 8, "segment": 3},
        {"slots": 8, "segment": 3, "count": 11, "more": 1},
        {"slots": 8, "segment": 0, "count": 11},
        {"slots": 0, "segment": 3, "count": 11},
        {"slots": 8, "segment": 3, "count": -1},
        {"slots": 8, "segment": 3.0, "count": 11},
        {"slots": True, "segment": 3, "count": 11},
        {"slots": 2**62, "segment": 1, "count": 2**62},
        {"slots": 2**62, "segment": 3, "count": 11},  # eleven rows then, and there are eight
        {"slots": 8, "segment": 4, "count": 11},
        {"slots": 8, "segment": 3, "count": 7},
    ],
)
def test_rings_that_are_not_what_the_manifest_says_are_refused(with_rings, cut):
    rewrite_manifest(with_rings, rings={"x": cut})
    with pytest.raises(SnapshotError):
        load_snapshot(with_rings)


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 2), np.int64), np.zeros((3, 3), np.int32), np.zeros((2, 2), np.int32), np.zeros((), np.int32)],
)
@pytest.mark.parametrize("name", ["x.0.npy", "x.1.npy"])
def test_a_segment_that_does_not_fit_its_ring_is_refused(with_rings, name, array):
    np.save(with_rings / name, array)
    put(with_rings, (with_rings / name).read_bytes(), name)
    with pytest.raises(SnapshotError, match="is no part of x"):
        load_snapshot(with_rings)


@pytest.mark.parametrize("rings", [[], {"../x": {"slots": 8, "segment": 3, "count": 11}}, "x", None])
def test_rings_that_are_none_are_refused(with_rings, rings):
    rewrite_manifest(with_rings, rings=rings)
    if rings == []:  # which is a dictionary as well as another
        rewrite_manifest(with_rings, rings=[1])
    with pytest.raises(SnapshotError):
        load_snapshot(with_rings)


def test_final_segments_are_linked_and_the_others_written(tmp_path, small_segments):
    store, rows = SegmentStore(tmp_path / "store"), ring(8)
    contents, inodes = [], []
    for i in range(3):
        save_snapshot(tmp_path / str(i), {"y": np.zeros(3)}, {}, {"x": rows}, store)
        contents.append(rows.numpy(0, 8).tolist())
        inodes.append([(tmp_path / str(i) / f"x.{j}.npy").stat().st_ino for j in range(3)])
        rows.put(8 + i, np.full((1, 2), 8 + i))
    assert [len(set(column)) for column in zip(*inodes, strict=True)] == [3, 1, 1]
    assert [np.asarray(load_snapshot(tmp_path / str(i))[0]["x"]).tolist() for i in range(3)] == contents
    assert (tmp_path / "2" / "x.2.npy").stat().st_nlink == 4
    assert (tmp_path / "2" / "y.npy").stat().st_nlink == 1


@pytest.mark.parametrize("what", ["links", "store"])
def test_where_nothing_can_be_linked_everything_is_written(tmp_path, small_segments, monkeypatch, what):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    store, rows = SegmentStore(tmp_path / "store"), ring(8)
    save_snapshot(tmp_path / "1", {}, {}, {"x": rows}, store)
    if what == "links":
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    else:
        shutil.rmtree(store.folder)
    save_snapshot(tmp_path / "2", {}, {}, {"x": rows}, store)
    assert np.asarray(load_snapshot(tmp_path / "2")[0]["x"]).tolist() == rows.array.tolist()
    assert (tmp_path / "2" / "x.2.npy").stat().st_nlink == 1


def test_space_is_asked_for_what_is_not_stored_already(tmp_path, small_segments, monkeypatch):
    store, rows, asked = SegmentStore(tmp_path / "store"), ring(8), []
    monkeypatch.setattr("lightning_dqn.experience.checkpoint.check_space", lambda _, num_bytes: asked.append(num_bytes))
    for i in range(2):
        save_snapshot(tmp_path / str(i), {"y": np.zeros(3)}, {}, {"x": rows}, store)
    save_snapshot(tmp_path / "2", {"y": np.zeros(3)}, {}, {"x": rows})
    assert asked == [64 + 24 + 40_000, 24 + 10_000, 64 + 24 + 40_000]
