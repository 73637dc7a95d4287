import copy
import csv
import pickle
import resource
import shutil
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lightning_dqn.cli import main
from lightning_dqn.loggers import CurveWriter, never_stop_training, read_rows
from tests.runs import QUIET, SMALL

FIT = [
    "fit",
    "--config=cartpole",
    *SMALL,
    *QUIET,
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=2",
    "--data.steps_per_epoch=128",
]
CSV = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs, name: cartpole}}"


class Broken(Logger):
    """Raises whatever it is asked for."""

    name, version = "broken", 0

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no route to host")

    log_hyperparams = save = finalize = after_save_checkpoint = log_metrics

    @property
    def experiment(self):
        raise PermissionError("it may not")


class Meanwhile(Callback):
    """Does something to the folder of the logs after the first epoch, and undoes it after the second."""

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def __init__(self, what):
        self.what = what

    def on_validation_end(self, trainer, pl_module):
        if self.what == "folder gone" and trainer.current_epoch == 0:
            shutil.rmtree(trainer.loggers[0].log_dir)
        if self.what == "disk full":
            most = Path(trainer.loggers[0].log_dir, "metrics.csv").stat().st_size + 10
            soft = most if trainer.current_epoch == 0 else self.limits[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, self.limits[1]))


def warned(recwarn):
    return [str(one.message) for one in recwarn if "failed, and training goes on" in str(one.message)]


def test_a_broken_logger_stops_nothing_and_is_named_once(recwarn, capsys):
    main([*FIT, f"--trainer.logger=[{CSV}, {{class_path: {__name__}.Broken}}]"])
    assert "after 448 env steps" in capsys.readouterr().out
    (said,) = warned(recwarn)
    assert said.startswith("Broken failed, and training goes on: PermissionError: it may not")
    assert max(float(row["env_steps"]) for row in read_rows(Path("runs/cartpole/version_0/metrics.csv"))) == 448


def test_a_tensorboard_writer_that_raises_stops_nothing(recwarn, monkeypatch, capsys):
    pytest.importorskip("tensorboard")

    def raising(*args, **kwargs):
        raise OSError("no space left on the disk")

    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.EventFileWriter.add_event", raising)
    logger = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: tb}}"
    main([*FIT, f"--trainer.logger={logger}"])
    assert "after 448 env steps" in capsys.readouterr().out
    (said,) = warned(recwarn)
    assert said.startswith("TensorBoardLogger failed")


def test_weights_and_biases_that_fails_in_the_middle_stops_nothing(recwarn, monkeypatch, capsys):
    def raising(self, *args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(WandbLogger, "log_metrics", raising)
    main(FIT)
    assert "after 448 env steps" in capsys.readouterr().out
    (said,) = warned(recwarn)
    assert said.startswith("WandbLogger failed, and training goes on: ConnectionError: no route to host")


@pytest.mark.parametrize("what", ["folder gone", pytest.param("disk full", marks=pytest.mark.slow)])
def test_a_csv_file_that_cannot_be_written_stops_nothing(recwarn, capsys, what):
    callback = f"--trainer.callbacks=[{{class_path: {__name__}.Meanwhile, init_args: {{what: {what}}}}}]"
    more = ["--checkpoint_latest.dirpath=elsewhere", "--checkpoint_best.dirpath=elsewhere", callback]
    try:
        main([*FIT, f"--trainer.logger={CSV}", *more])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, Meanwhile.limits)
    assert "after 448 env steps" in capsys.readouterr().out
    (said,) = warned(recwarn)
    assert said.startswith("CSVLogger failed")
    if what == "disk full":  # nothing is lost once there is room again
        main([*FIT, f"--trainer.logger={CSV}", "--trainer.logger.version=whole"])
        runs = [read_rows(Path("runs/cartpole") / name / "metrics.csv") for name in ("version_0", "whole")]
        steps, whole = [[(row["env_steps"], "val/return" in row) for row in rows] for rows in runs]
        assert steps == whole


def test_a_kind_of_logger_stays_what_it_was(tmp_path):
    loggers = CSVLogger(tmp_path, "a"), TensorBoardLogger(tmp_path, "b")
    for logger in loggers:
        kind = type(logger)
        never_stop_training(logger)
        assert isinstance(logger, kind)
        assert [one.__name__ for one in kind.__subclasses__()].count(kind.__name__) == 0
        for again in (pickle.loads(pickle.dumps(logger)), copy.deepcopy(logger)):
            assert isinstance(again, kind)
            assert again.name == logger.name
            again.log_metrics({"x": object()}, 0)  # fails, and is forgiven
        assert logger.log_dir


def test_a_whole_curve_is_there_at_every_moment(tmp_path):
    writer = CurveWriter(str(tmp_path))
    writer.take_over([{"step": "0", "old": "1.5"}])
    assert not list(tmp_path.iterdir())
    for step, row in enumerate([{"a": 1.0}, {"a": 2.0}, {"b": 3.0}, {"a": 4.0, "b": 5.0}], 1):
        writer.log_metrics(row, step)
        writer.save()
        writer.save()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    assert read_rows(tmp_path / "metrics.csv") == [
        {"step": "0", "old": "1.5"},
        {"step": "1", "a": "1.0"},
        {"step": "2", "a": "2.0"},
        {"step": "3", "b": "3.0"},
        {"step": "4", "a": "4.0", "b": "5.0"},
    ]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["a", "b", "old", "step"]
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("6.0,7")
    assert len(read_rows(tmp_path / "metrics.csv")) == 5


def test_a_new_run_in_the_same_folder_replaces_the_curve_with_its_first_row(tmp_path):
    first = CurveWriter(str(tmp_path))
    first.log_metrics({"a": 1.0}, 0)
    first.save()
    second = CurveWriter(str(tmp_path))
    assert len(read_rows(tmp_path / "metrics.csv")) == 1
    second.log_metrics({"b": 2.0}, 0)
    second.save()
    assert read_rows(tmp_path / "metrics.csv") == [{"b": "2.0", "step": "0"}]


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--trainer.logger.version=same",), marks=pytest.mark.slow),
        pytest.param(("--trainer.logger.version=same", "--checkpoint_latest.dirpath=x"), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_has_one_curve(more):
    main([*FIT, f"--trainer.logger={CSV}", "--trainer.max_epochs=2", *more])
    latest = next(Path.cwd().rglob("latest.ckpt"))
    kept = latest.read_bytes()
    first = read_rows(next(Path.cwd().rglob("metrics.csv")))
    main([*FIT, f"--trainer.logger={CSV}", *more, f"--ckpt_path={latest}"])
    rows = read_rows(max(Path.cwd().rglob("metrics.csv"), key=lambda path: path.stat().st_mtime))
    assert rows[: len(first)] == first
    steps = [(int(row["step"]), "val/return" in row) for row in rows]
    assert steps == sorted(set(steps))
    assert float(rows[-1]["env_steps"]) == 448
    # what was logged after the checkpoint is logged again by the run that goes on
    latest.write_bytes(kept)
    Path(f"{latest}.sha256").unlink()
    main([*FIT, f"--trainer.logger={CSV}", *more, f"--ckpt_path={latest}"])
    again = read_rows(max(Path.cwd().rglob("metrics.csv"), key=lambda path: path.stat().st_mtime))
    assert [row["step"] for row in again] == [row["step"] for row in rows]
