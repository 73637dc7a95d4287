"""Tests of agents: episodes, statistics, test.json and the table."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_dqn import ExperienceDataModule
from lightning_dqn.apps import report
from lightning_dqn.apps.report import (
    Evaluation,
    KeptEpisodes,
    Target,
    describe,
    place_of,
    summary,
    write,
    write_table,
)
from lightning_dqn.cli import main
from tests.environments import Chain
from tests.runs import QUIET, SMALL, make_run

FIT = [*SMALL, *QUIET, "--trainer.max_epochs=1", "--data.eval_episodes=3", "--video=null", "--curve=null"]
RUNS = Path("runs/cartpole")


def an_agent(returns, **fields):
    returns = np.array(returns)
    return Evaluation("CartPole-v1", None, 1_000, 0, None, returns, 2 * returns)._replace(**fields)


@pytest.mark.slow
def test_the_command_line_says_what_a_score_is_worth(capsys):
    main(["fit", "--config=cartpole", *FIT])
    best = RUNS / "version_0/checkpoints/best.ckpt"
    main(["test", "--config=cartpole", *FIT, "--data.eval_episodes=5", f"--ckpt_path={best}"])
    said = capsys.readouterr().out
    report = json.loads((RUNS / "version_0/test.json").read_text())
    assert f"every episode in {RUNS}/version_0/test.json" in said
    assert (report["env_id"], report["checkpoint"], report["env_steps"]) == ("CartPole-v1", "best.ckpt", 128)
    assert len(report["returns"]) == len(report["lengths"]) == 5
    assert report["returns"] == report["lengths"]  # as it is in CartPole
    mean = report["statistics"]["mean"]
    assert mean["value"] == pytest.approx(np.mean(report["returns"]))
    assert mean["low"] <= mean["value"] <= mean["high"]
    assert f"| mean | {mean['value']:.1f} | {mean['low']:.1f} to {mean['high']:.1f} |" in said
    assert "| optimality gap to 475 (its reward threshold) |" in said
    # the same episodes by the other way, from what is in the checkpoint
    main(["test", str(RUNS / "version_0"), "--episodes", "5", "--target", "30"])
    again = json.loads((RUNS / "version_0/test.json").read_text())
    assert (again["returns"], again["lengths"]) == (report["returns"], report["lengths"])
    assert again["target"] == {"score": 30.0, "label": "--target"}


def test_episodes_are_kept_before_the_metrics_forget_them(make_trainer, make_model):
    data, kept = ExperienceDataModule(Chain, eval_episodes=6, eval_num_envs=4, seed=0), KeptEpisodes()
    scores = make_trainer(callbacks=[kept]).test(make_model(data), data, verbose=False)[0]
    assert kept.evaluation.env_id == "Chain"
    assert kept.evaluation.target is None
    assert len(kept.evaluation.returns) == 6
    # a chain of n steps returns 1 + 2 + ... + n
    assert (kept.evaluation.returns == kept.evaluation.lengths * (kept.evaluation.lengths + 1) / 2).all()
    assert kept.evaluation.returns.mean() == pytest.approx(scores["test/return"])


def test_an_agent_is_described_by_its_episodes():
    lines = describe([an_agent([1.0, 2.0, 3.0, 6.0], target=Target(4.0, "a human's score"))]).splitlines()
    assert lines[0] == "CartPole-v1: 4 greedy episodes of one agent, after 1,000 env steps"
    values = [line.split(" | ")[1] for line in lines[4:]]
    assert values == ["3.0", "2.5", "2.5", "1.5"]  # the gap: 3, 2, 1 and nothing
    assert lines[-1].startswith("| optimality gap to 4 (a human's score) | 1.5 | ")


def test_several_seeds_are_described_by_their_means():
    lines = describe([an_agent([0.0, 2.0]), an_agent([3.0]), an_agent([5.0, 5.0, 5.0])]).splitlines()
    assert lines[2] == "|  | 1,000 | 2 | 1.0 | 0.0 to 2.0 |"
    assert "CartPole-v1: the mean returns of 3 runs" in lines
    # of the runs, however many episodes each has: 1, 3 and 5
    assert "| mean | 3.0 | 1.0 to 5.0 |" in lines


def test_without_a_target_there_is_no_gap():
    assert set(summary(np.arange(3.0), None)) == {"mean", "median", "interquartile mean"}


def test_a_test_is_written_with_the_run_it_is_of(tmp_path):
    run = make_run(tmp_path / "run")
    of_run = an_agent([1.0], checkpoint=run / "checkpoints/best.ckpt")
    assert place_of(of_run, "log") == run / "test.json"
    of_file = an_agent([1.0], checkpoint=tmp_path / "policy.ckpt")
    assert place_of(of_file, "log") == Path("log/test.json")
    assert place_of(of_file, None) is None


def test_a_file_that_is_there_stays_if_there_is_no_place_for_another(tmp_path):
    (tmp_path / "test.json").mkdir()
    with pytest.raises(OSError, match=r"test\.json"):
        write(an_agent([1.0]), tmp_path / "test.json")
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]


def test_different_environments_are_refused_before_anything_is_played(tmp_path):
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", **{"data.env_id": "Acrobot-v1"})
    with pytest.raises(
        SystemExit, match=r"error: run: data.env_id is CartPole-v1 in .*a and Acrobot-v1 in .*b: scores"
    ):
        main(["test", str(one), str(other)])


def test_several_trainings_are_refused_before_anything_is_played(tmp_path):
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, **{"data.n_step": 3})
    with pytest.raises(SystemExit) as ended:
        main(["test", str(one), str(other)])
    assert ended.value.code == (
        f"error: run: {one} and {other} are no seeds of one training: they differ in data.n_step; take one training "
        "at a time, or `lightning-dqn compare`"
    )


@pytest.fixture
def played(tmp_path, monkeypatch):
    """Two runs of one seed and one of another, whose episodes return 1, 2 and 4."""
    scores = {}
    for name, (seed, score) in {"a": (0, 1.0), "b": (0, 2.0), "c": (1, 4.0)}.items():
        path = make_run(tmp_path / name, seed=seed) / "checkpoints/best.ckpt"
        path.parent.mkdir()
        path.touch()
        scores[path] = score
    monkeypatch.setattr(report, "play", lambda path, *_: an_agent([scores[path]] * 2, checkpoint=path))
    return [str(path.parent.parent) for path in scores]


def test_a_seed_counts_once_in_a_test(played, tmp_path, capsys):
    main(["test", *played, played[2]])
    said = capsys.readouterr().out
    assert said.startswith(f"left out: {played[0]} (seed 0, as {played[1]}); ")
    assert "the mean returns of 2 runs" in said
    assert "| mean | 3.0 |" in said
    assert said.endswith("\nevery episode in b/test.json\nevery episode in c/test.json\n")
    assert [path.parent.name for path in sorted(tmp_path.glob("*/test.json"))] == ["b", "c"]


def test_what_could_not_be_written_is_named(played, tmp_path, capsys, monkeypatch):
    (tmp_path / "b/test.json").mkdir()
    monkeypatch.setattr(report.os, "access", lambda path, mode: path != tmp_path / "c")
    main(["test", *played[1:]])
    said = capsys.readouterr().out
    assert "| mean | 3.0 |" in said
    assert said.endswith("\nno test.json in b: Is a directory\nno test.json in c: nothing can be written there\n")


def test_the_table_is_written_as_json(played, capsys):
    Path("table.json").write_text("of before")
    main(["test", *played[1:], "--target", "5", "--output", "table.json"])
    table = json.loads(Path("table.json").read_text())
    assert capsys.readouterr().out.endswith("\nthe table in table.json\n")
    assert (table["env_id"], table["target"]) == ("CartPole-v1", {"score": 5.0, "label": "--target"})
    assert table["interval"] == "95 %, percentile bootstrap of the runs, 10000 resamples"
    assert table["statistics"]["mean"] == {"value": 3.0, "low": 2.0, "high": 4.0}
    assert table["statistics"]["optimality gap"]["value"] == 2.0
    assert [(run["run"], run["checkpoint"], run["episodes"]) for run in table["runs"]] == [
        ("b", "best.ckpt", 2),
        ("c", "best.ckpt", 2),
    ]
    assert [run["mean"]["value"] for run in table["runs"]] == [2.0, 4.0]


def test_of_one_run_the_table_is_over_its_episodes(tmp_path):
    write_table([an_agent([1.0, 3.0])], tmp_path / "table.json")
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["interval"].startswith("95 %, percentile bootstrap of the episodes")
    assert table["statistics"]["mean"] == {"value": 2.0, "low": 1.0, "high": 3.0}


def test_a_table_that_has_no_place_is_refused_before_anything_is_played(played, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: --output: a is a folder; name a file in it$"):
        main(["test", *played, "--output", "a"])
    with pytest.raises(SystemExit, match=r"^error: --output: there is no folder none$"):
        main(["test", *played, "--output", "none/table.json"])
    monkeypatch.setattr(report.os, "access", lambda path, mode: False)
    with pytest.raises(SystemExit, match=r"^error: --output: nothing can be written to \.; choose another folder$"):
        main(["test", *played, "--output", "table.json"])
    assert not list(tmp_path.glob("*/test.json"))
