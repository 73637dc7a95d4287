"""One trial of a search: ``fit`` with the settings of the trial, seed after seed, and stopped early where hopeless."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.runs import flattened
from lightning_dqn.apps.space import Domain, Value, closest
from lightning_dqn.cli import DQNCLI, Parsed
from lightning_dqn.signals import is_interrupted

METRIC = "val/return"
Report = Callable[[float], bool]
"""Takes the score of a validation; says whether to go on."""


class ParsedFit(Parsed):
    """The settings of a fit, with nothing made of them.

    Args:
        args: Of the command line, without ``fit``.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(list(args), run=False)

    @property
    def names(self) -> list[str]:
        """Full names of everything that can be set, classes included."""
        leaves = [name for name, _ in flattened(self.config.as_dict())]
        classes = [name.removesuffix(".class_path") for name in leaves if name.endswith(".class_path")]
        return [*leaves, *classes]

    @property
    def text(self) -> str:
        """A configuration that ``fit`` takes."""
        return str(self.parser.dump(self.config, skip_default=True))


class Pruning(Callback):
    """Hands every validation's score on, and stops the run where there is no point in going on.

    The run is stopped rather than broken off, so that what it has is closed and written like that of any other.

    Args:
        report: Called with each score.

    Attributes:
        score: Of the last validation.
        stopped: Whether it stopped the run.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.score: float | None = None
        self.stopped = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the score."""
        if trainer.sanity_checking or self.stopped:
            return
        self.score = float(trainer.callback_metrics[METRIC])
        if not self.report(self.score):
            self.stopped = trainer.should_stop = True


class _Fit(DQNCLI):
    def __init__(self, args: Sequence[str], pruning: Pruning) -> None:
        self._pruning = pruning
        super().__init__(list(args))

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        return super()._instantiate_trainer(config, [*callbacks, self._pruning])

    def after_fit(self) -> None:
        """Says nothing; an interrupted fit is no result."""
        if is_interrupted(self.trainer):
            raise KeyboardInterrupt


def fit(args: Sequence[str], folder: Path, seed: int, report: Report) -> tuple[float, bool]:
    """One run of a trial.

    Args:
        args: Of ``fit``.
        folder: Of the run; metrics and configuration are left there, and no checkpoint.
        seed: Of the run.
        report: Told every validation's score.

    Returns:
        The score of the last validation, and whether the run went to its end.

    Raises:
        ValueError: If the settings do not go together, or it was never validated.
        KeyboardInterrupt: If it was.
    """
    place = {"save_dir": str(folder.parent), "name": folder.name, "version": ""}
    logger = json.dumps({"class_path": "CSVLogger", "init_args": place})  # a path may hold what means something in YAML
    own = [f"--seed_everything={seed}", f"--trainer.logger={logger}", "--trainer.enable_checkpointing=false"]
    own += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--video=null"]
    pruning = Pruning(report)
    try:
        _Fit(["fit", *args, *own, "--curve=null"], pruning)
    except SystemExit as refused:
        if refused.code != 2:  # what the parser does with settings it does not take; anything else is a signal
            raise
        raise ValueError("the command line does not take these settings") from refused
    if pruning.score is None:
        raise ValueError("the run was never validated (trainer.check_val_every_n_epoch)")
    return pruning.score, not pruning.stopped


def settings(values: Mapping[str, Value]) -> list[str]:
    """Values of a trial as a command line gives them."""
    return [f"--{name}={each if isinstance(each, str) else json.dumps(each)}" for name, each in values.items()]


def check(args: Sequence[str], space: Mapping[str, Domain]) -> None:
    """Finds out whether every setting that is searched exists and takes its values.

    Args:
        args: Of ``fit``, without what is searched.
        space: What is.

    Raises:
        Refusal: If there is no such setting; names one that is near.
        SystemExit: If one does not take a value; the parser has said why in one line.
    """
    names = ParsedFit(args).names
    for name in space:
        if name not in names:
            raise Refusal(f"space.{name} is no setting; `fit --print_config` lists them all{closest(name, names)}")
    ends = [domain.ends for domain in space.values()]
    for k in range(max(map(len, ends))):  # a parser takes half a second: a value of each at once
        ParsedFit(
            [*args, *settings({name: each[min(k, len(each) - 1)] for name, each in zip(space, ends, strict=True)})]
        )
