"""A search whose workers run on two machines of a Ray cluster."""

import signal

import pytest

ray = pytest.importorskip("ray")
optuna = pytest.importorskip("optuna")

from tests.ray_runs import CONFIG, processes_of, said_in, start, two_nodes, wait_for  # noqa: E402

SEARCH = ["--search=cartpole", "--sampler=random", "--pruner=none", "--seeds=1", "--output=out", "--grace=4"]
TUNE = ["tune", *CONFIG, *SEARCH, "--workers=2"]


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as nodes:
        yield nodes


def trials_in(folder):
    return optuna.load_study(study_name="search", storage=f"sqlite:///{folder}/out/study.db").trials


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_trial(cluster, tmp_path):
    process = start(tmp_path, cluster, *TUNE, "--trials=4", die_at=4, who=0)
    assert process.wait(300) == 0, said_in(tmp_path)
    assert (tmp_path / "died").exists()
    trials = trials_in(tmp_path)
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE"] * 4 + ["FAIL"]
    (killed,) = (trial for trial in trials if trial.state.name == "FAIL")
    assert killed.params in [trial.params for trial in trials if trial.state.name == "COMPLETE"]
    said = said_in(tmp_path)
    assert said.count("; best ") == 4
    assert "4 trials to their end, 0 pruned" in said
    assert (tmp_path / "out/best.yaml").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(cluster, tmp_path):
    process = start(tmp_path, cluster, *TUNE, "--trials=2", pause=1.0)
    wait_for(lambda: list(tmp_path.glob("out/trial_*/seed_0/metrics.csv")), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "interrupted; the same command goes on" in said_in(tmp_path)
    wait_for(lambda: not processes_of(cluster.address, "ray::_work"))
    assert start(tmp_path, cluster, *TUNE, "--trials=2", pause=1.0).wait(300) == 0, said_in(tmp_path)
    assert [trial.state.name for trial in trials_in(tmp_path)].count("COMPLETE") == 2


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_room_for_are_refused(cluster, tmp_path):
    assert start(tmp_path, cluster, *TUNE, "--workers=3").wait(120) == 1
    assert "error: --workers 3 of 1 CPU each: the cluster has 2 CPU; take fewer" in said_in(tmp_path)
