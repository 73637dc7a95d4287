"""Learners on a Ray cluster of two machines: one network, restarts, signals, a head that dies."""

import os
import signal

import pytest
import torch

ray = pytest.importorskip("ray")

from tests.ray_runs import CONFIG, pids_of, processes_of, said_in, start, two_nodes, wait_for  # noqa: E402

FIT = ["fit", *CONFIG, "--num_workers=2", "--trainer.max_epochs=4"]


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, cluster, *FIT).wait(240) == 0, said_in(folder)
    return folder


def ranks(folder):
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def is_the_same_run(folder, other):
    return all(
        equal(one["weights"], two["weights"]) and equal(one["buffer"], two["buffer"])
        for one, two in zip(ranks(folder), ranks(other), strict=True)
    )


def latest(folder):
    return sorted(folder.glob("runs/small/version_*/checkpoints/latest.ckpt"))


@pytest.mark.slow
def test_two_machines_learn_one_network_from_two_experiences(whole):
    first, second = ranks(whole)
    assert first["node"] != second["node"]
    assert equal(first["weights"], second["weights"])
    assert not torch.equal(first["buffer"]["observation"], second["buffer"]["observation"])
    assert first["env_steps"] == second["env_steps"] == 128 + 4 * 64  # a batch of each before the first update
    (checkpoint,) = latest(whole)
    assert torch.load(checkpoint, weights_only=True)["ranks"] == 2
    said = said_in(whole)
    assert said.count("epoch 3: val/return") == 1
    assert said.count("files in runs/small/version_0") == 1
    assert "Traceback" not in said
    assert {path.name for path in (whole / "runs").iterdir()} == {"small"}  # nothing of Ray's own is left


@pytest.mark.slow
def test_a_learner_that_is_killed_costs_what_came_after_the_checkpoint_and_nothing_else(cluster, whole, tmp_path):
    process = start(tmp_path, cluster, *FIT, die_at=10)  # in the third of four epochs
    assert process.wait(240) == 0, said_in(tmp_path)
    assert (tmp_path / "died").exists()
    assert "all begin again from the last checkpoint" in said_in(tmp_path)
    assert "Resumed at" in said_in(tmp_path)
    assert is_the_same_run(tmp_path, whole)


@pytest.mark.slow
def test_what_cannot_work_is_said_in_one_line_without_a_second_try(cluster, tmp_path):
    process = start(tmp_path, cluster, *FIT, "--collect.overlap=true", "--data.num_envs=2")
    assert process.wait(240) == 1
    said = said_in(tmp_path)
    assert said.count("collect.overlap: an iteration takes one step of all environments") == 1
    assert "begin again" not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_more_learners_than_the_cluster_has_room_for_are_refused(cluster, tmp_path):
    process = start(tmp_path, cluster, *FIT, "--num_workers=5")
    assert process.wait(120) == 1
    assert said_in(tmp_path).startswith("error: --num_workers 5 of 1 CPU each: the cluster has 2 CPU; take fewer")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_ends_all_learners_and_the_run_can_go_on(cluster, whole, tmp_path, number, code):
    process = start(tmp_path, cluster, *FIT, pause=0.5)
    wait_for(lambda: latest(tmp_path), process)
    process.send_signal(number)
    assert process.wait(120) == code
    assert f"Stopped after {number.name}; go on with --ckpt_path" in said_in(tmp_path)
    wait_for(lambda: not processes_of(cluster.address, "ray::RayTrainWorker"))
    assert start(tmp_path, cluster, *FIT, "--ckpt_path=last").wait(240) == 0
    assert is_the_same_run(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_when_the_head_is_killed_the_command_says_so_and_the_run_can_go_on(cluster, whole, tmp_path, part):
    with two_nodes() as dying:
        process = start(tmp_path, dying, *FIT, pause=0.5)
        wait_for(lambda: latest(tmp_path), process)
        os.kill(pids_of(dying.head_node, part)[0], signal.SIGKILL)
        assert process.wait(120) == 1
        assert "is gone; start it, and go on with --ckpt_path last" in said_in(tmp_path)
        wait_for(lambda: not processes_of(dying.address, "ray::RayTrainWorker"))
    assert start(tmp_path, cluster, *FIT, "--ckpt_path=last").wait(240) == 0
    assert "Resumed at" in said_in(tmp_path)
    assert is_the_same_run(tmp_path, whole)
