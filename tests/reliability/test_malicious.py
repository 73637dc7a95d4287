"""Twenty malicious files, each given to a process of its own: all refused, and nothing of them happens."""

import multiprocessing
import os
import resource

import numpy as np
import pytest
import torch

from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.checkpoint_io import newest_readable
from lightning_dqn.experience.checkpoint import SnapshotError, load_snapshot
from lightning_dqn.experience.snapshots import SnapshotKeeper
from tests.test_checkpoint import header, npy, put, rewrite_manifest
from tests.test_checkpoint_io import KINDS, malicious

HEADERS = {
    "an array larger than any memory": npy(header("<f4", (2**40,)), bytes(12)),
    "a size that overflows": npy(header("<f4", (2**62, 2**62)), bytes(12)),
    "a negative size": npy(header("<f4", (-3,)), bytes(12)),
    "an oversized header": npy(header("<f4", (3,)) + " " * 20_000, bytes(12)),
    "a header that is code": npy("__import__('pathlib').Path('canary').touch()"),
    "a header that breaks the parser": npy("[" * 90),
    "pickled objects": npy(header("|O", (1,)), b"cpathlib\nPath\n(S'canary'\ntR."),
    "an archive": b"PK\x03\x04" + bytes(100),
}


def put_name(snapshot, name):
    rewrite_manifest(snapshot, files={name: "0" * 64})


def put_link(snapshot):
    (snapshot / "reward.npy").rename(snapshot.parent / "elsewhere.npy")
    (snapshot / "reward.npy").symlink_to(snapshot.parent / "elsewhere.npy")


def put_pipe(snapshot):
    (snapshot / "reward.npy").unlink()
    os.mkfifo(snapshot / "reward.npy")


def hostile(folder):
    """Twenty files, by what is wrong with them, and how each is loaded."""
    for kind in KINDS:
        path = folder / kind.replace(", ", "-") / "x.ckpt"
        path.parent.mkdir()
        malicious(kind, path, folder / "canary")
        yield f"checkpoint: {kind}", lambda path=path: newest_readable(path)
    spoiling = {kind: lambda snapshot, content=content: put(snapshot, content) for kind, content in HEADERS.items()}
    spoiling |= {
        "a name that climbs out": lambda snapshot: put_name(snapshot, "../../canary.npy"),
        "an absolute name": lambda snapshot: put_name(snapshot, "/etc/passwd"),
        "a link": put_link,
        "a pipe": put_pipe,
    }
    for kind, spoil in spoiling.items():
        home = folder / kind.replace(" ", "-")
        keeper = SnapshotKeeper()
        replay = keeper.save(home, keeper.name(home, 10), 0, {"reward": np.zeros(3, np.float32)}, {})
        snapshot = home / replay["name"] / "rank0"
        spoil(snapshot)
        yield f"snapshot: {kind}", lambda snapshot=snapshot: load_snapshot(snapshot)


def attempt(load, told):
    """Loads in a process that may not take much more than it has."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.chdir(told.parent)
    try:
        load()
        said = "LOADED"
    except (CheckpointError, SnapshotError) as refused:
        said = str(refused)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    told.write_text(f"{grown:.0f}\n{said}")


# as often as that: what is refused once should not be let in by what the first attempt left
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_twenty_malicious_files_are_refused_and_nothing_happens(tmp_path, times):
    files = list(hostile(tmp_path))
    assert len(files) == 20
    told = tmp_path / "told"
    everything = set(tmp_path.rglob("*"))
    for kind, load in files * times:
        process = multiprocessing.get_context("fork").Process(target=attempt, args=(load, told))
        process.start()
        process.join(30)
        assert process.exitcode == 0, kind
        grown, said = told.read_text().split("\n", 1)
        assert said != "LOADED", kind
        assert "\n" not in said.strip(), kind
        assert int(grown) < 50, (kind, grown)
        told.unlink()
        assert set(tmp_path.rglob("*")) == everything, kind
    number = len(files) * times
    print(f"\n{number} of {number} malicious files refused in one line, 0 side effects, 0 allocations")


def test_a_careless_reader_would_have_been_harmed(tmp_path):
    path, canary = tmp_path / "x.ckpt", tmp_path / "canary"
    malicious("reduce", path, canary)
    torch.load(path, weights_only=False)
    assert canary.exists()
