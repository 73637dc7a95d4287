"""The floors that the GPU benchmark measures against, and that it runs where there is no GPU."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_dqn import DQNLightningModule, MLPTorso, ReplayBatch, Transition

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def floors(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import floors

    return floors


def run(*arguments):
    command = [sys.executable, BENCHMARKS / "gpu.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_work_of_an_update_is_counted_right(floors):
    batch, inputs, hidden, actions = 5, 3, 8, 2
    model = DQNLightningModule([inputs], actions, torso=partial(MLPTorso, hidden_sizes=(hidden,)))
    observation = torch.randn(1, batch, inputs)
    rows = torch.ones(1, batch)
    transition = Transition(observation, rows.long(), rows, rows, observation)

    work = floors.count_work(model, ReplayBatch(transition, rows.long(), rows), torch.float32)

    # two per weight and row: three forwards (online on both states, target), the gradients of both matrices, and that
    # of the second layer's input
    first, second = inputs * hidden, hidden * actions
    assert work.flops == 2 * batch * (3 * (first + second) + first + second + second)
    weights = first + hidden + second + actions
    # flattening, linear, ReLU, linear; the first of them puts out what has no gradient
    outputs = 2 * 3 * inputs + (5 + 2 + 2) * (hidden + hidden + actions)
    assert work.moved == 4 * batch * outputs + 3 * 4 * weights + 32 * weights
    stored = 4 * batch * 2 * inputs + batch * (8 + 4 + 4) + batch * (8 + 4)
    assert work.kept >= 20 * weights + stored + 4 * batch * (inputs + hidden)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_longer_of_two_times_counts(floors):
    work = floors.Work(flops=6.0, moved=10.0, kept=0.0)
    assert work.seconds(floors.Rates(flops=2.0, bytes=5.0)) == 3.0
    assert work.seconds(floors.Rates(flops=3.0, bytes=4.0)) == 2.5


@pytest.mark.parametrize(("before", "code"), [(1.0, 0), (1 / 1.14, 0), (1 / 1.17, 1)])
@pytest.mark.parametrize("what", ["calls", "ratio"])
def test_the_guard_fails_where_an_iteration_takes_much_more_python_than_it_did(
    monkeypatch, tmp_path, capsys, what, before, code
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import guard

    monkeypatch.setattr(guard, "WORKLOADS", {"small": {"num_envs": 1, "train_frequency": 1, "gradient_steps": 1}})
    monkeypatch.setattr(
        guard, "calls_per_iteration", lambda run, workload: (300.0 if "trainer" in run.__name__ else 100, 1)
    )
    monkeypatch.setattr(guard, "KNOWN", tmp_path / "guard.json")
    known = {"calls": 300, "ratio": 3.0}
    guard.KNOWN.write_text(json.dumps({"small": known | {what: known[what] * before}}))
    monkeypatch.setattr(sys, "argv", ["guard.py"])
    assert guard.main() == code
    printed = capsys.readouterr()
    assert "| small | 300 |" in printed.out
    assert (what in printed.err) == bool(code)


def test_calls_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import guard

    def run(options):
        for _ in range(options.env_steps):
            len("")
        return 0.0, 1, options.env_steps

    # a step is one call of C's here; what is the same for both lengths is not counted
    assert guard.calls_per_iteration(run, {"train_frequency": 3}) == (3.0, (1, 3 * guard.ITERATIONS[1]))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_its_rows_say_so_and_stay_empty():
    rows = [line for line in run().splitlines() if "no GPU on this machine" in line]
    assert [row.split(":")[0] for row in rows] == [
        "| Nature",
        "| Rainbow",
        "| BTR",
        "| Atari DQN, env steps per second",
    ]
    assert all(row.endswith("| | | | | |") for row in rows)


@pytest.mark.slow
def test_it_runs_on_a_cpu():
    pytest.importorskip("ale_py")
    small = ["--updates=1", "--repetitions=1", "--batch-size=4", "--env-steps=64"]
    rows = [line.split("|")[1:-1] for line in run("--device=cpu", *small).splitlines() if "per second" in line]
    assert len(rows) == 4
    for _, measured, floor, share, memory, least in rows:
        assert min(float(measured), float(floor), float(share.strip().rstrip("%"))) > 0
        assert memory.strip() == "-"
        assert float(least) > 0


def test_the_floor_of_an_update_is_its_matrix_products_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import update

    network = update.Network(partial(MLPTorso, hidden_sizes=(8,)), (3,), torch.float32, 5)
    learn = update.eager(*update.make(network, "dqn"))
    with update.Products() as products:
        learn()
    # two of two networks forward, the gradients of both matrices, and that of the second layer's input
    assert len(products.calls) == 4 + 3
    before = [argument.clone() for call in products.calls for argument in call.args if torch.is_tensor(argument)]
    for call in products.calls:
        call()
    after = [argument for call in products.calls for argument in call.args if torch.is_tensor(argument)]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("subject", ["ours", "loop"])
def test_a_whole_run_is_timed_between_two_counts_of_steps(monkeypatch, subject):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import throughput

    for name, value in {"WARM_UP": 160, "SETTLE": 80}.items():
        monkeypatch.setattr(throughput, name, value)
    workload = throughput.Workload("CartPole-v1", (8,), 2, 8, 3, 1_000, 5, 1e-3, 80)
    found = throughput.SUBJECTS[subject](workload)
    assert found["seconds"] > 0
    assert found["env_steps"] == pytest.approx(80, abs=8)
    assert found["updates"] == pytest.approx(30, abs=3)
