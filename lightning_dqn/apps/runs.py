"""Run folders, as ``fit`` leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_dqn.apps.command import Refusal
from lightning_dqn.loggers import Row, read_rows

_SEEDS = ("seed_everything", "data.seed")
# where a run was, and how it was watched, says nothing of what was learned
_BESIDE = ("trainer.logger", "trainer.default_root_dir", "trainer.callbacks", "trainer.enable_", "trainer.log_every")
_ALSO_BESIDE = ("checkpoint_", "video", "curve", "ckpt_path", "weights_only", "trainer.devices", "trainer.accelerator")


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
    def seed(self) -> Any:
        """The seed; ``None`` if it was left to chance."""
        given = (self.settings.get(name) for name in _SEEDS)
        return next((seed for seed in given if isinstance(seed, int) and not isinstance(seed, bool)), None)

    @property
    def what_was_learned(self) -> dict[str, Any]:
        """The settings, less seeds and what has no part in learning."""
        beside = (*_SEEDS, *_BESIDE, *_ALSO_BESIDE)
        return {name: value for name, value in self.settings.items() if not name.startswith(beside)}

    def curve(self, metric: str) -> dict[float, float]:
        """A metric by environment steps."""
        return {float(row["env_steps"]): float(row[metric]) for row in self.rows if {"env_steps", metric} <= row.keys()}

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
    metrics = folder / "metrics.csv"
    return Run(folder, dict(flattened(settings)), read_rows(metrics if metrics.is_file() else None))


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Run folders, less those of tests and validations, which are named: ``version_*`` takes them along.

    Raises:
        Refusal: If one is no run folder, or nothing was trained in any.
    """
    runs = [read_run(folder) for folder in folders]
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
