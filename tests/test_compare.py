"""Trainings beside each other: figures, pictures, and what cannot be compared."""

import re

import numpy as np
import pytest
from PIL import Image

from lightning_dqn.apps import compare
from lightning_dqn.apps.groups import read_groups
from lightning_dqn.cli import main
from tests.runs import make_run


@pytest.fixture
def folders(tmp_path):
    """Two trainings of three seeds; the first scores 5, 6 and 7, the other 1, 2 and 6."""
    scores = {1: [5.0, 6.0, 7.0], 3: [1.0, 2.0, 6.0]}
    return [
        str(make_run(tmp_path / f"runs/{steps}-{seed}", seed=seed, returns=[0.0, score], **{"data.n_step": steps}))
        for steps, each in scores.items()
        for seed, score in enumerate(each)
    ]


def test_the_table_and_three_pictures_are_left(folders, tmp_path, capsys):
    main(["compare", *folders, "--output", "out"])
    said = capsys.readouterr().out
    # of three numbers the interquartile mean is the mean
    assert re.search(r"\| n_step 1 \| 3 \| 200 \| 6\.0 \| 6\.0 \| 6\.0 \| 5\.\d to [67]\.\d \|", said)
    assert re.search(r"\| n_step 3 \| 3 \| 200 \| 3\.0 \| 2\.0 \| 3\.0 \| 1\.\d to [56]\.\d \|", said)
    # 5, 6 and 7 beat 1 and 2; against 6: lost, half, won
    assert "| n_step 1 | n_step 3 | 0.83 |" in said
    assert "| `data.n_step` | 1 | 3 |" in said
    page = (tmp_path / "out/comparison.md").read_text()
    assert page.startswith("# CartPole-v1\n")
    pictures = re.findall(r"\((\w+\.png)\)", page)
    assert pictures == ["learning_curves.png", "performance_profiles.png", "probability_of_improvement.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*pictures, "comparison.md"}
    assert all(Image.open(tmp_path / "out" / name).size == (1050, 600) for name in pictures)


def drawn_of(names, folder):
    groups = read_groups(names)
    return compare.draw(groups, compare.improvements(groups), folder)


def test_what_is_drawn(folders, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "draw_curves", lambda curves, *args, **labels: drawn.append((curves, labels)))
    drawn_of(folders, tmp_path)
    (curves, _), (profiles, labels) = drawn
    assert [curve.label for curve in curves] == ["n_step 1 (3 runs)", "n_step 3 (3 runs)"]
    assert curves[0].steps.tolist() == [100.0, 200.0]
    assert curves[0].values.tolist() == [0.0, 6.0]
    low, high = curves[0].band
    assert (low[0], high[0]) == (0.0, 0.0)
    assert 5.0 <= low[1] < 6.0 < high[1] <= 7.0
    assert labels["y"] == "share of runs that score above τ"
    for profile in profiles:
        assert (profile.values[0], profile.values[-1]) == (1.0, 0.0)
        assert (np.diff(profile.values) <= 0).all()
    assert profiles[1].values[np.searchsorted(profiles[1].steps, 4.0)] == pytest.approx(1 / 3)


def test_one_training_has_a_table_and_two_pictures(folders, tmp_path, capsys):
    main(["compare", folders[0]])
    assert "| runs | 1 | 200 | 5.0 | 5.0 | 5.0 | of one run none is known |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "comparison").glob("*.png")} == {
        "learning_curves.png",
        "performance_profiles.png",
    }


def test_a_run_that_stopped_early_is_named(folders, tmp_path, capsys):
    make_run(tmp_path / "short", seed=9, returns=[3.0])
    main(["compare", *folders, str(tmp_path / "short")])
    assert f"{tmp_path}/short was last validated at 100 env steps: its score is of then." in capsys.readouterr().out


def test_different_environments_are_refused_and_nothing_is_written(folders, tmp_path):
    other = make_run(tmp_path / "acrobot", **{"data.env_id": "Acrobot-v1"})
    with pytest.raises(SystemExit) as ended:
        main(["compare", folders[0], str(other), "--output", "out"])
    assert ended.value.code == (
        f"error: run: data.env_id is CartPole-v1 in {folders[0]} and Acrobot-v1 in {other}: scores of different "
        "environments have no scale in common; take the runs of one at a time"
    )
    assert not (tmp_path / "out").exists()


def test_a_seed_counts_once(folders, tmp_path, capsys):
    again = make_run(tmp_path / "again", seed=2, returns=[0.0, 9.0], **{"data.n_step": 1})
    main(["compare", *folders[:3], str(again)])
    said = capsys.readouterr().out
    assert said.startswith(f"left out: {folders[2]} (seed 2, as {again}); ")
    assert re.search(r"\| runs \| 3 \| 200 \| 6\.7 \|", said)  # of 5, 6 and 9


@pytest.mark.parametrize("output", ["taken", "taken/inside"])
def test_a_place_that_is_taken_is_refused_before_anything_is_said(folders, tmp_path, capsys, output):
    (tmp_path / "taken").write_text("of before")
    with pytest.raises(SystemExit) as ended:
        main(["compare", *folders, "--output", output])
    assert ended.value.code == f"error: --output: {tmp_path}/taken is no folder; choose another name"
    assert capsys.readouterr().out == ""
    assert (tmp_path / "taken").read_text() == "of before"


def test_a_place_that_is_not_ours_is_refused_before_anything_is_said(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match=rf"^error: --output: nothing can be written to {tmp_path}; choose another"):
        main(["compare", *folders, "--output", "out"])
    assert capsys.readouterr().out == ""


def test_figures_that_are_broken_are_named_before_anything_is_written(folders, tmp_path):
    (tmp_path / "runs/1-1/metrics.csv").write_text("env_steps,val/return\n100,x\n")
    with pytest.raises(SystemExit, match=r"^error: run: .*1-1/metrics.csv cannot be read: .*'x'; leave this run out"):
        main(["compare", *folders, "--output", "out"])
    assert not (tmp_path / "out").exists()


def test_many_trainings_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(compare, "draw_curves", lambda curves, *args, **labels: drawn.append(curves))
    names = [str(make_run(tmp_path / f"{steps}", **{"data.n_step": steps})) for steps in range(12)]
    pictures = drawn_of(names, tmp_path)
    for curves in drawn:
        assert len({(curve.color, curve.dashed) for curve in curves}) == 12
    # the 66 pairs have a line each
    assert Image.open(pictures[-1]).height > 66 * 0.4 * 150
