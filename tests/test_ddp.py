"""Runs of several processes: one learner, whose ranks each have their own experience."""

import contextlib
import os
import signal
import socket
import sys
import time

import pytest
import torch

from lightning_dqn.transition import Transition
from tests.ddp_runs import make, results, run, start

LONG = {"steps_per_epoch": 4_000_000}


def equal(first, second):
    """Whether two runs came to the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for(condition, process, seconds=120):
    """Waits until something is so, while a process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run has ended"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def group_is_gone(process):
    """Whether no process is left of those that one has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 0)
        return False
    return True


def pid_of(folder, rank):
    return int((folder / f"pid{rank}").read_text())


def test_two_ranks_are_one_learner_with_two_experiences(tmp_path):
    (first, second), said = run(tmp_path, ranks=2, noisy=True)
    assert equal(first["weights"], second["weights"])
    assert not equal(first["start"], first["weights"])
    # 64 before the first update, then 15 iterations of 8, half of it of each rank
    assert (first["env_steps"], second["env_steps"]) == (184, 184)
    assert (first["iterations"], first["gradient_steps"], first["size"]) == (15, 45, 92)
    assert first["metrics"]["env_steps"] == 184
    assert second["size"] == 92
    assert not torch.equal(first["buffer"]["observation"], second["buffer"]["observation"])
    assert not torch.equal(first["draw"], second["draw"])
    # metrics are of all, wherever they are read
    for name in ("val/return", "val/return_iqm", "train/loss", "collect/return", "collect/episode_length"):
        assert first["metrics"][name] == second["metrics"][name]
    assert "sync_dist" not in said
    # one process plays all nine episodes that two have shared out
    alone, model, data, _ = make(tmp_path, {"noisy": True})
    model.load_state_dict(first["weights"])
    (score,) = alone.validate(model, datamodule=data, verbose=False)
    scores = {name: value for name, value in score.items() if name != "env_steps"}
    assert scores == {name: first["metrics"][name] for name in scores}
    assert {path.name for path in tmp_path.glob("replay/*-184/*")} == {"rank0", "rank1"}


@pytest.mark.slow
def test_every_update_follows_the_mean_gradient_of_all_ranks(tmp_path):
    ranks, _ = run(tmp_path, ranks=4, keep_batches=True, trainer={"gradient_clip_val": 0.3})
    assert all(equal(rank["weights"], ranks[0]["weights"]) for rank in ranks)
    assert [rank["env_steps"] for rank in ranks] == [184] * 4
    _, model, _, _ = make(tmp_path, {})
    model.load_state_dict(ranks[0]["start"])
    optimizer = torch.optim.Adam(model.online.parameters())
    batches = [[Transition(*batch) for batch in rank["batches"]] for rank in ranks]
    assert [len(of_rank) for of_rank in batches] == [15] * 4
    for of_ranks in zip(*batches, strict=True):
        for k in range(3):
            optimizer.zero_grad()
            losses = [model.losses(each.map(lambda field: field[k]), torch.ones(8)).loss for each in of_ranks]  # noqa: B023
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.online.parameters(), 0.3)
            optimizer.step()
            model.update_target()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ranks[0]["weights"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_networks_with_buffers_are_evaluated_though_some_ranks_have_fewer_episodes(tmp_path):
    ranks, _ = run(tmp_path, ranks=4, buffers=True, data={"eval_num_envs": 1})
    learned = [name for name, _ in make(tmp_path, {"buffers": True})[1].online.named_parameters(prefix="online")]
    assert all(
        equal({n: r["weights"][n] for n in learned}, {n: ranks[0]["weights"][n] for n in learned}) for r in ranks
    )


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_left_out_on_all(tmp_path):
    ranks, _ = run(tmp_path, ranks=2, not_finite=True)
    assert [rank["skipped"] for rank in ranks] == [1, 1]
    assert equal(ranks[0]["weights"], ranks[1]["weights"])
    assert all(weight.isfinite().all() for weight in ranks[0]["weights"].values())


@pytest.mark.slow
def test_updates_of_several_ranks_are_not_compiled_and_that_is_said_once(tmp_path):
    ranks, said = run(tmp_path, ranks=2, model={"compile_updates": True})
    assert equal(ranks[0]["weights"], ranks[1]["weights"])
    assert said.count("model.compile_updates: updates go on without being compiled") == 1
    assert "trainer.strategy (DDPStrategy) averages gradients over ranks" in said


@pytest.mark.slow
def test_two_ranks_go_on_exactly_and_one_says_that_there_were_two(tmp_path):
    options = {"ranks": 2, "noisy": True, "prioritized": True, "normalized": True}
    whole, _ = run(tmp_path / "whole", **options, trainer={"max_epochs": 4})
    run(tmp_path / "parts", **options, trainer={"max_epochs": 2})
    latest = str(tmp_path / "parts/latest.ckpt")
    parts, said = run(tmp_path / "parts", **options, trainer={"max_epochs": 4}, ckpt_path=latest)
    assert "Resumed at 304 environment steps with 152 transitions" in said
    for one, other in zip(parts, whole, strict=True):
        assert equal(one["weights"], other["weights"])
        assert equal(one["buffer"], other["buffer"])
        for name in ("env_steps", "episodes", "iterations", "gradient_steps", "size"):
            assert one[name] == other[name]
    assert parts[0]["episodes"] != parts[1]["episodes"]
    _, said = run(tmp_path / "parts", **(options | {"ranks": 1}), trainer={"max_epochs": 5}, ckpt_path=latest)
    assert "latest.ckpt is of 2 ranks, this run has 1 (trainer.devices, trainer.num_nodes): experience is" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_ends_all_after_the_same_iteration(tmp_path, rank):
    process = start(tmp_path, ranks=2, data=LONG)
    wait_for(lambda: (tmp_path / "pid0").exists() and (tmp_path / "pid1").exists(), process)
    os.kill(pid_of(tmp_path, rank), signal.SIGTERM)
    assert process.wait(60) == 143, (tmp_path / "said.txt").read_text()
    wait_for_the_end = time.monotonic() + 10
    while not group_is_gone(process) and time.monotonic() < wait_for_the_end:
        time.sleep(0.1)
    assert group_is_gone(process)
    first, second = results(tmp_path)
    assert first["iterations"] == second["iterations"]
    assert equal(first["weights"], second["weights"])
    assert "Stopped after SIGTERM; go on with --ckpt_path" in (tmp_path / "said.txt").read_text()
    steps = first["env_steps"]
    _, said = run(tmp_path, ranks=2, data={"steps_per_epoch": steps + 80}, ckpt_path=str(tmp_path / "latest.ckpt"))
    assert f"Resumed at {steps:,} environment steps" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_rank_is_killed_all_end_and_the_run_can_go_on(tmp_path, rank):
    process = start(tmp_path, ranks=2, trainer={"max_epochs": 100_000})
    latest = tmp_path / "latest.ckpt"
    wait_for(lambda: latest.exists() and (tmp_path / "pid0").exists() and (tmp_path / "pid1").exists(), process)
    os.kill(pid_of(tmp_path, rank), signal.SIGKILL)
    killed = time.monotonic()
    process.wait(60)
    while not group_is_gone(process) and time.monotonic() < killed + 60:
        time.sleep(0.1)
    assert group_is_gone(process)
    epoch = torch.load(latest, weights_only=True)["epoch"]
    ranks, said = run(tmp_path, ranks=2, trainer={"max_epochs": epoch + 2}, ckpt_path=str(latest))
    assert "Resumed at" in said
    assert ranks[0]["iterations"] == 15 * (epoch + 2)


@pytest.mark.slow
def test_torchrun_starts_the_ranks_as_well(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    (first, second), _ = run(tmp_path, *torchrun, ranks=2)
    assert equal(first["weights"], second["weights"])
    assert first["env_steps"] == second["env_steps"] == 184


@pytest.mark.slow
def test_the_requeue_signal_of_slurm_to_one_task_has_all_of_them_saved(tmp_path):
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    with socket.socket() as port:
        port.bind(("localhost", 0))
        number = port.getsockname()[1]
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7"}
    job |= {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_PORT": str(number)}
    job |= {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    tasks = []
    for task in "01":
        own = {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        tasks.append(start(tmp_path, env=job | own, ranks=2, data=LONG, trainer={"default_root_dir": str(tmp_path)}))
    try:
        wait_for(lambda: (tmp_path / "pid0").exists() and (tmp_path / "pid1").exists(), tasks[0])
        tasks[1].send_signal(signal.SIGUSR1)
        wait_for((tmp_path / "requeued").exists, tasks[0])
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
        assert (tmp_path / "hpc_ckpt_1.ckpt").exists()
        tasks[0].send_signal(signal.SIGTERM)
        assert [task.wait(60) for task in tasks] == [143, 143]
    finally:
        for task in tasks:
            task.kill()
    first, second = results(tmp_path)
    assert first["iterations"] == second["iterations"]
