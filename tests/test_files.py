import fcntl
import hashlib
import io
import os
import shutil
from collections import namedtuple

import pytest

from lightning_dqn.files import (
    HashedFile,
    NewFile,
    check_space,
    clean_leftovers,
    flush_directory,
    free_space,
    new_directory,
    open_regular,
    sha256,
    unfinished,
)


def test_a_new_file_replaces_the_old_one_when_it_is_complete(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with NewFile(path) as file:
        file.write(b"new ")
        assert path.read_bytes() == b"old"
        file.write(memoryview(b"content"))
    assert path.read_bytes() == b"new content"
    assert file.sha256 == hashlib.sha256(b"new content").hexdigest()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "full")])
def test_a_file_that_is_not_finished_leaves_the_old_one_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def write():
        with NewFile(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises((KeyboardInterrupt, OSError)):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_at_the_very_end_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"), NewFile(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_error_of_writing_is_remembered(tmp_path):
    error = OSError(28, "No space left on device")

    class Full(io.BytesIO):
        def write(self, chunk):
            raise error

    file = HashedFile(tmp_path / "x")
    file._file = Full()
    with pytest.raises(OSError, match="No space"):
        file.write(b"x")
    assert file.error is error


def test_a_hashed_file_replaces_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError), HashedFile(tmp_path / "x"):
        pass


def test_a_directory_appears_when_it_is_complete(tmp_path):
    with new_directory(tmp_path / "d") as temporary:
        (temporary / "x").write_bytes(b"1")
        assert not (tmp_path / "d").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "x").read_bytes() == b"1"


def test_a_directory_that_is_not_finished_never_appears(tmp_path):
    def write():
        with new_directory(tmp_path / "d") as temporary:
            (temporary / "x").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").touch()
    folder = tmp_path / "folder"
    (folder / "100").mkdir(parents=True)
    keep = [
        "latest.ckpt",
        ".hidden",
        "x.tmp",
        ".latest.ckpt.0123.tmp",
        ".x.0123456g.tmp",
        ".x.01234567.tmp",
        ".x.0123456789abcdef.tmp",
    ]
    for name in keep:
        (folder / name).touch()
    left = [unfinished(folder / "latest.ckpt"), unfinished(folder / "100")]
    left[0].touch()
    left[1].mkdir()
    (left[1] / "reward.npy").touch()
    link = unfinished(folder / "link")
    link.symlink_to(outside)
    assert sorted(clean_leftovers(folder)) == sorted(left)
    assert {path.name for path in folder.iterdir()} == {*keep, "100", link.name}
    assert (outside / "x").exists()


def test_where_nothing_is_nothing_is_cleaned(tmp_path):
    assert clean_leftovers(tmp_path / "nowhere") == []


def test_what_is_still_being_written_is_no_leftover(tmp_path):
    with NewFile(tmp_path / "x") as file, new_directory(tmp_path / "d") as temporary:
        file.write(b"1")
        (temporary / "y").touch()
        assert clean_leftovers(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"x", "d"}


def test_a_file_system_without_locks_serves_as_well(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with NewFile(tmp_path / "x") as file:
        file.write(b"1")
    unfinished(tmp_path / "y").touch()
    assert len(clean_leftovers(tmp_path)) == 1
    assert (tmp_path / "x").read_bytes() == b"1"


def test_space_is_asked_for_with_both_figures(tmp_path, monkeypatch):
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(3 * 2**20))
    check_space(tmp_path, 3 * 2**20)
    with pytest.raises(OSError, match=r"needed: 3\.0 MiB, free: 3\.0 MiB") as caught:
        check_space(tmp_path, 3 * 2**20 + 1)
    assert caught.value.errno == 28


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    with open_regular(tmp_path / "file") as file:
        assert sha256(file) == hashlib.sha256(b"content").hexdigest()
    for name in ("link", "pipe", "nowhere", "."):
        with pytest.raises(OSError, match=r"."):
            open_regular(tmp_path / name)


def test_directories_can_be_flushed(tmp_path):
    flush_directory(tmp_path)


def test_free_space_is_that_of_the_disk_whether_the_folder_is_there_or_not(tmp_path, monkeypatch):
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(7 if folder == tmp_path else 0))
    assert free_space(tmp_path) == free_space(tmp_path / "not" / "there") == 7
