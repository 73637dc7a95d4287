"""Run folders, as ``fit`` leaves them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_dqn.apps.command import Refusal
from lightning_dqn.loggers import Row, read_rows

_METRICS = "metrics.csv"
_SEEDS = ("seed_everything", "data.seed")
# where a run was, and how it was watched, says nothing of what was learned
_BESIDE = ("trainer.logger", "trainer.default_root_dir", "trainer.enable_", "trainer.log_every", "trainer.accelerator")
_ALSO_BESIDE = ("checkpoint_", "video", "curve", "ckpt_path", "weights_only")
_CALLBACKS, _DEVICES = "trainer.callbacks", "trainer.devices"
# callbacks of Lightning and of this package that only watch or keep; whatever else there is may change what is learned
_WATCHERS = {
    *("ProgressBar", "TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary"),
    *("DeviceStatsMonitor", "LearningRateMonitor", "ThroughputMonitor", "ModelCheckpoint", "OnExceptionCheckpoint"),
    *("EpisodeVideo", "LearningCurve", "WandbCharts", "EpochCheckpoint"),
}
_KWARGS, _WRAPPERS = "data.env_kwargs", "data.wrappers"
_PLAYED = ("data.env_id", _KWARGS, _WRAPPERS)
_SHOWN = f"{_KWARGS}.render_mode"


class Run(NamedTuple):
    """What a fit has left.

    Attributes:
        folder: Where.
        settings: Of its ``config.yaml``, by dotted name.
        rows: Of its ``metrics.csv``.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[Row]

    @property
    def env_id(self) -> str:
        """The environment."""
        return str(self.settings.get("data.env_id"))

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds that were given, by the setting; none if all was left to chance."""
        given = {name: self.settings.get(name) for name in _SEEDS}
        return {name: seed for name, seed in given.items() if isinstance(seed, int) and not isinstance(seed, bool)}

    @property
    def seed(self) -> int | None:
        """The seed; ``None`` if it was left to chance."""
        return next(iter(self.seeds.values()), None)

    @property
    def environment(self) -> dict[str, Any]:
        """The settings that say what is played, less how it is shown."""
        played = {name: value for name, value in self.settings.items() if name.startswith(_PLAYED) and name != _SHOWN}
        return {name: value for name, value in played.items() if value or name not in (_KWARGS, _WRAPPERS)}

    @property
    def what_was_learned(self) -> dict[str, Any]:
        """The settings, less seeds and what has no part in learning."""
        beside = (*_BESIDE, *_ALSO_BESIDE, *_PLAYED, _CALLBACKS)
        learned = {name: value for name, value in self.settings.items() if not name.startswith(beside)}
        learned = {name: value for name, value in learned.items() if name not in _SEEDS}
        if _DEVICES in learned:  # a command line gives a text, a default is a number
            learned[_DEVICES] = str(learned[_DEVICES])
        return learned | self.environment | dict(flattened(self._callbacks_that_count, f"{_CALLBACKS}."))

    @property
    def env_steps(self) -> float:
        """How far it got.

        Raises:
            Refusal: If its figures cannot be read.
        """
        return max(self.curve("env_steps"), default=0.0)

    def curve(self, metric: str) -> dict[float, float]:
        """A metric by environment steps.

        Raises:
            Refusal: If something in the two columns is no number.
        """
        rows = [row for row in self.rows if {"env_steps", metric} <= row.keys()]
        try:
            return {float(row["env_steps"]): float(row[metric]) for row in rows}
        except ValueError as broken:
            raise _unreadable(self.folder / _METRICS, broken) from broken

    def checkpoint(self, name: str) -> Path:
        """The path of a checkpoint.

        Args:
            name: ``best`` or ``latest``.

        Raises:
            Refusal: If there is none.
        """
        path = self.folder / "checkpoints" / f"{name}.ckpt"
        if not path.is_file():
            raise Refusal(f"run: there is no checkpoints/{name}.ckpt in {self.folder}; was it fitted without?")
        return path

    @property
    def _callbacks_that_count(self) -> dict[str, Any]:
        inside = f"{_CALLBACKS}."
        alone = {name.removeprefix(inside): value for name, value in self.settings.items() if name.startswith(inside)}
        given = alone or self.settings.get(_CALLBACKS) or []
        described = [
            each if isinstance(each, Mapping) else {"class_path": each}
            for each in (given if isinstance(given, list) else [given])
        ]
        counted = [each for each in described if not _only_watches(str(each.get("class_path")))]
        return {str(k): each for k, each in enumerate(counted)}


def read_run(folder: Path) -> Run:
    """A run folder.

    Raises:
        Refusal: If it is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise Refusal(f"run: {folder} is no folder of a run: there is no config.yaml in it")
    try:
        settings = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as broken:
        raise Refusal(f"run: {path} cannot be read: {str(broken).splitlines()[0]}") from broken
    if not isinstance(settings, Mapping):
        raise Refusal(f"run: {path} is no configuration")
    return Run(folder, dict(flattened(settings)), _figures(folder / _METRICS))


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Run folders, less those of tests and validations, which are named: ``version_*`` takes them along.

    Args:
        folders: Of runs; one that is there twice is read once.

    Raises:
        Refusal: If one is no run folder, or nothing was trained in any.
    """
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    trained = [run for run in runs if any("val/return" in row or "collect/return" in row for row in run.rows)]
    for run in runs:
        if run not in trained:
            print(f"left out: {run.folder}, where nothing was trained")
    if not trained:
        raise Refusal("run: nothing was trained in any of these folders (there are no returns in their metrics.csv)")
    return trained


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name.

    Args:
        settings: Nested.
        prefix: Before every name.

    Yields:
        Names and values; lists are values.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def folder_of_run(checkpoint: Path) -> Path | None:
    """The run that a checkpoint is from; ``None`` if it lies elsewhere."""
    folder = checkpoint.absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def _only_watches(class_path: str) -> bool:
    package, name = class_path.partition(".")[0], class_path.rpartition(".")[2]
    return name in _WATCHERS and package in (name, "lightning", "lightning_dqn")


def _figures(path: Path) -> list[Row]:
    try:
        return read_rows(path if path.is_file() else None)
    except (OSError, ValueError, csv.Error) as broken:
        raise _unreadable(path, broken) from broken


def _unreadable(path: Path, broken: Exception) -> Refusal:
    return Refusal(f"run: {path} cannot be read: {broken}; leave this run out, or fit it anew")
