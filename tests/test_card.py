"""Model cards."""

import os
import re

import numpy as np
import pytest
import yaml

from lightning_dqn.apps.report import Evaluation, Target, write
from lightning_dqn.cli import main
from tests.runs import make_run


@pytest.fixture
def run(tmp_path):
    """A run with weights, a picture and a test."""
    folder = make_run(tmp_path / "run", seed=7)
    (folder / "checkpoints").mkdir()
    for name in ("checkpoints/best.ckpt", "learning_curve.png", "policy.onnx"):
        (folder / name).write_bytes(name.encode())
    returns = np.array([1.0, 2.0, 3.0, 6.0])
    target = Target(475.0, "its reward threshold")
    write(
        Evaluation("CartPole-v1", folder / "checkpoints/best.ckpt", 9_000, 0, target, returns, returns),
        folder / "test.json",
    )
    return folder


def test_a_run_becomes_a_folder_for_others(run, tmp_path, capsys):
    main(["card", str(run), "--output=out/agent"])
    folder = tmp_path / "out/agent"
    names = {"README.md", "best.ckpt", "config.yaml", "learning_curve.png", "policy.onnx", "test.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "best.ckpt").read_bytes() == b"checkpoints/best.ckpt"
    said = capsys.readouterr().out
    assert all(name in said for name in names)
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1))
    (result,) = front["model-index"][0]["results"]
    assert front["model-index"][0]["name"] == "agent"
    assert result["dataset"]["name"] == "CartPole-v1"
    # of 1, 2, 3 and 6: the squares of -2, -1, 0 and 3 over 4
    assert result["metrics"][0]["value"] == "3.00 +/- 1.87"
    assert "9,000 environment steps (seed 7)" in text
    assert re.search(r"\| mean \| 3\.0 \| 1\.\d to [45]\.\d \|", text)
    assert "![return over environment steps](learning_curve.png)" in text
    assert "episode.gif" not in text
    assert 'load_from_checkpoint("best.ckpt")' in text
    assert "| learning rate | 0.001 |" in text


def test_a_run_that_went_on_is_trained_again_from_its_beginning(run, tmp_path):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{config}ckpt_path: runs/before/checkpoints/latest.ckpt\n")
    main(["card", str(run), "--output=out"])
    assert (tmp_path / "out/config.yaml").read_text() == f"{config}ckpt_path: null\n"


@pytest.mark.parametrize(("name", "cure"), [("test.json", r"`lightning-dqn test .*run`"), ("policy.onnx", "export it")])
def test_a_score_or_an_export_of_other_weights_is_refused(run, tmp_path, name, cure):
    for path, seconds in (("checkpoints/best.ckpt", 20), ("test.json", 30), ("policy.onnx", 30), (name, 10)):
        os.utime(run / path, (seconds, seconds))
    with pytest.raises(SystemExit, match=rf"^error: run: .*best.ckpt is newer than .*{name}.*{cure}"):
        main(["card", str(run), "--output=out"])
    assert not (tmp_path / "out").exists()


def test_without_a_test_there_is_no_card(run):
    (run / "test.json").write_text("{}")
    with pytest.raises(
        SystemExit, match=r"^error: run: .*test.json is no test; `lightning-dqn test .*run` makes it anew$"
    ):
        main(["card", str(run), "--output=out"])
    (run / "test.json").unlink()
    with pytest.raises(SystemExit, match=r"^error: run: there is no .*test.json; `lightning-dqn test .*run` makes it$"):
        main(["card", str(run), "--output=out"])


def test_nothing_is_overwritten_or_half_written(run, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match=r"^error: --output: out is there already; choose another folder$"):
        main(["card", str(run), "--output=out"])
    (run / "checkpoints/best.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"^error: run: there is no checkpoints/best.ckpt in"):
        main(["card", str(run), "--output=other"])
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}
