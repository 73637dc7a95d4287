"""Loggers that never stop a run, and curves that survive whatever ends one."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_dqn.files import NewFile, clean_leftovers
from lightning_dqn.forgiving import Forgiving

_MAY_FAIL = ("log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize", "finish")
Row = dict[str, Any]


def never_stop_training(logger: Logger) -> None:
    """Lets a logger fail without an end to the run: what it raises first becomes a warning, what comes later nothing.

    Args:
        logger: Changed where it is. A :class:`lightning.pytorch.loggers.CSVLogger` also gets a :class:`CurveWriter`.
    """
    kind = type(logger)
    missing = "What it could not write is missing there; there will be no second warning."
    logger.__dict__.setdefault("_forgiving", Forgiving(f"{kind.__name__} failed", missing))
    # a property can only be replaced in a class, hence one in between
    namespace: dict[str, Any] = {name: _forgiving(getattr(kind, name)) for name in _MAY_FAIL if hasattr(kind, name)}
    experiment = getattr(kind, "experiment", None)
    if experiment is CSVLogger.experiment:
        namespace["experiment"] = property(_forgiving(_curve_writer, _DummyExperiment()))
    elif isinstance(experiment, property) and experiment.fget is not None:
        namespace["experiment"] = property(_forgiving(experiment.fget, _DummyExperiment()))
    namespace["__reduce__"] = lambda self: (_again, (kind, self.__dict__))
    # a name of its own: a configuration that names the logger by its own must find one alone
    logger.__class__ = type(f"_Forgiving{kind.__name__}", (kind,), namespace | {"__module__": __name__})


class CurveWriter(ExperimentWriter):
    """The rows of ``metrics.csv``: one that is there stays there, through kills and full disks.

    Lightning's own deletes the file of an earlier run of the folder before there is anything new, and empties it to put
    a longer header in. This one puts a whole new file in its place.

    Args:
        log_dir: Folder of the run.
    """

    def __init__(self, log_dir: str) -> None:
        self._known: list[Row] = []
        self._begun = False
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        clean_leftovers(self._path.parent)

    def take_over(self, rows: list[Row]) -> None:
        """Begins with the rows of another run.

        Args:
            rows: What it logged, by column.
        """
        self._known = rows

    def save(self) -> None:
        """Writes what has been logged since the last time.

        Raises:
            OSError: If that cannot be done; the file is then as it was, and the rows are tried again the next time.
        """
        if not self.metrics:
            return
        if not self._begun:
            self._write_anew(self._known)
            self._known, self._begun = [], True
        elif not set().union(*self.metrics) <= set(self.metrics_keys):
            self._write_anew(read_rows(self._path))
        else:
            self._append()
        self.metrics = []

    def _write_anew(self, before: list[Row]) -> None:
        rows = [*before, *self.metrics]
        columns = sorted(set().union(*rows))
        with NewFile(self._path) as file:
            file.write((_lines([dict(zip(columns, columns, strict=True))], columns) + _lines(rows, columns)).encode())
        self.metrics_keys = columns

    def _append(self) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("ab") as file:
                file.write(_lines(self.metrics, self.metrics_keys).encode())
        except OSError:
            os.truncate(self._path, size)
            raise

    def _check_log_dir_exists(self) -> None:
        """Leaves what is there until there is something to put in its place."""


class OneCurve(Callback):
    """Has the curve of a run that goes on begin with that of the run before, up to the checkpoint: no row is missing.

    The file before is looked for where the checkpoint is, and in the folder above, where the command line puts it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the rows over."""
        if trainer.ckpt_path is None:
            return
        folder = Path(trainer.ckpt_path).absolute().parent
        for logger in trainer.loggers:
            writer = getattr(logger, "_experiment", None)
            if not isinstance(writer, CurveWriter):
                continue
            name = writer.NAME_METRICS_FILE
            found = (path for path in (folder / name, folder.parent / name, writer._path) if path.is_file())
            rows = read_rows(next(found, None))
            # a step is counted from 0, so that of the checkpoint is the number of steps before it
            writer.take_over([row for row in rows if float(row.get("step", "inf")) < trainer.global_step])


def read_rows(path: Path | None) -> list[Row]:
    """The rows of a CSV file, without empty cells; a last line that is not whole is left out.

    Args:
        path: A file; ``None`` for no rows at all.
    """
    if path is None:
        return []
    whole, end, _ = path.read_bytes().decode().rpartition("\n")
    return [{name: value for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(whole + end))]


def _lines(rows: Iterable[Row], columns: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


def _again(kind: type[Logger], state: dict[str, Any]) -> Logger:
    """A logger that another process is given: the class in between cannot be imported there."""
    logger = kind.__new__(kind)
    logger.__dict__.update(state)
    never_stop_training(logger)
    return logger


@rank_zero_experiment
def _curve_writer(logger: CSVLogger) -> Any:
    if logger._experiment is None and "://" not in logger.log_dir:
        logger._experiment = CurveWriter(logger.log_dir)
    return CSVLogger.experiment.fget(logger)  # type: ignore[attr-defined]


def _forgiving(method: Callable[..., Any], instead: Any = None) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        forgiving: Forgiving = self._forgiving
        with forgiving:
            return method(self, *args, **kwargs)
        return instead

    return call
