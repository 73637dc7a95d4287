"""One trial of a search."""

from pathlib import Path

import pytest

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.space import Domain
from lightning_dqn.apps.trial import ParsedFit, check, fit, settings
from lightning_dqn.loggers import read_rows
from tests.runs import SMALL

ARGS = ["--config=cartpole", *SMALL, "--trainer.max_epochs=3"]


@pytest.fixture(autouse=True)
def _no_deprecation_warnings(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def test_a_run_reports_every_validation_and_leaves_its_figures(capsys):
    scores = []
    score, whole = fit(ARGS, Path("trial/seed_1"), 1, lambda score: not scores.append(score))
    assert whole
    rows = read_rows(Path("trial/seed_1/metrics.csv"))
    assert scores == pytest.approx([float(row["val/return"]) for row in rows if "val/return" in row])
    assert len(scores) == 3
    assert score == scores[-1]
    assert {path.name for path in Path("trial/seed_1").iterdir()} == {"config.yaml", "hparams.yaml", "metrics.csv"}
    assert "seed_everything: 1\n" in Path("trial/seed_1/config.yaml").read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["lr, batch", "lr: batch", "lr # batch"])
def test_a_folder_may_be_called_as_its_owner_likes(name):
    fit([*ARGS, "--trainer.max_epochs=1"], Path(name) / "seed_0", 0, lambda score: True)
    assert {path.name for path in Path().iterdir()} == {name}
    assert (Path(name) / "seed_0" / "metrics.csv").is_file()


def test_a_run_stops_where_there_is_no_point_in_going_on():
    scores = []
    _, whole = fit(ARGS, Path("trial/seed_0"), 0, lambda score: len(scores.append(score) or scores) < 2)
    assert not whole
    assert len(scores) == 2
    rows = read_rows(Path("trial/seed_0/metrics.csv"))
    assert sum("val/return" in row for row in rows) == 2


def test_settings_that_do_not_go_together_are_an_error():
    with pytest.raises(ValueError, match=r"data.batch_size \(64\) is larger than the replay buffer"):
        fit([*ARGS, "--data.buffer.capacity=32"], Path("trial/seed_0"), 0, lambda score: True)
    with pytest.raises(ValueError, match="the command line does not take these settings"):
        fit([*ARGS, "--data.n_step=many"], Path("trial/seed_0"), 0, lambda score: True)


@pytest.mark.slow
def test_a_run_that_is_never_validated_is_an_error():
    with pytest.raises(ValueError, match="never validated"):
        fit([*ARGS, "--trainer.limit_val_batches=0"], Path("trial/seed_0"), 0, lambda score: True)


def test_values_are_written_as_a_command_line_takes_them():
    values = {"a": 1e-5, "b": None, "c": True, "d": "lightning_dqn.MLPTorso", "e": "[1, 2]", "f": 3}
    assert settings(values) == [
        "--a=1e-05",
        "--b=null",
        "--c=true",
        "--d=lightning_dqn.MLPTorso",
        "--e=[1, 2]",
        "--f=3",
    ]


def test_every_setting_that_is_searched_must_exist_and_take_its_values(capsys):
    check(ARGS, {"model.optimizer.init_args.lr": Domain(low=1e-5, high=0.1), "data.n_step": Domain([1, 3])})
    check(ARGS, {"model.head": Domain(["lightning_dqn.ExpectedHead", "lightning_dqn.QuantileHead"])})
    with pytest.raises(Refusal, match=r"^space.model.optimizer.lr is no .*mean model.optimizer.init_args.lr\?$"):
        check(ARGS, {"model.optimizer.lr": Domain(low=1e-5, high=0.1)})
    with pytest.raises(SystemExit):
        check(ARGS, {"data.n_step": Domain([1, "many"])})
    assert capsys.readouterr().err == "error: data.n_step: Expected a <class 'int'>. Got value: many\n"


def test_what_was_parsed_is_a_configuration_again():
    text = ParsedFit([*ARGS, "--data.n_step=2", "--model.optimizer.init_args.lr=0.5"]).text
    Path("again.yaml").write_text(text)
    assert ParsedFit(["--config=again.yaml"]).text == text
    assert "n_step: 2" in text
    assert "seed_everything" not in text
