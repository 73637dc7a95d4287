"""The command ``lightning-dqn``: LightningCLI with the environment linked to the network, and shipped files."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks import ProgressBar as BaseProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_dqn.charts import WandbCharts
from lightning_dqn.ckpt_path import resolve_ckpt_path
from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.complaints import in_one_line, what_is_wrong
from lightning_dqn.curves import LearningCurve
from lightning_dqn.epoch_checkpoint import EpochCheckpoint
from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.hparams import nulls
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.learner.strategies import check_strategy
from lightning_dqn.loggers import OneCurve, never_stop_training
from lightning_dqn.ranks import exit_code, of_all_ranks
from lightning_dqn.shipped import resolve_config_names
from lightning_dqn.signals import is_interrupted
from lightning_dqn.trust import TRUST_HELP, errors_of_checkpoint, trusted_modules
from lightning_dqn.video import EpisodeVideo
from lightning_dqn.watch import ProgressBar, WandbLogger

_INTERRUPTED = 130
_APPS = {"test": "report", "compare": "compare", "tune": "tune", "export": "export", "card": "card"}
_PICTURES = {"video": EpisodeVideo, "curve": LearningCurve}
_BEST = {"filename": "best", "monitor": "val/return", "mode": "max", "save_weights_only": True}
_CHECKPOINTS: dict[str, tuple[type[ModelCheckpoint], dict[str, Any]]] = {
    "checkpoint_best": (ModelCheckpoint, _BEST),
    "checkpoint_latest": (EpochCheckpoint, {"filename": "latest", "every_n_epochs": 1}),
}


class _Parser(LightningArgumentParser):
    """Says in one line what is wrong, without the page of options, and takes no name for the beginning of another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {in_one_line(message)}\n")


class SaveConfig(SaveConfigCallback):
    """A callback that saves the full configuration of a run in the folder of its logger, and with every logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration, unless there is no logger: the working folder may hold a config.yaml of the user."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sends the configuration to the loggers; the file itself is written by the base class."""
        config = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config})


class DQNCLI(LightningCLI):
    """LightningCLI for :class:`~lightning_dqn.learner.module.DQNLightningModule` on an environment.

    Sections of a configuration: ``trainer``, ``model``, ``data``, ``collect`` (the
    :class:`~lightning_dqn.collector.ExperienceCollector`), ``checkpoint_best`` and ``checkpoint_latest``; ``video`` and
    ``curve`` (:class:`~lightning_dqn.video.EpisodeVideo` and :class:`~lightning_dqn.curves.LearningCurve`), each of
    which ``null`` switches off.

    Args:
        args: Arguments instead of those of the command line.
        **kwargs: See :class:`lightning.pytorch.cli.LightningCLI`.

    Attributes:
        collector: What the section ``collect`` configures.
    """

    collector: type[ExperienceCollector] = ExperienceCollector

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        defaults: dict[str, Any] = {
            "auto_configure_optimizers": False,
            "save_config_callback": SaveConfig,
            "save_config_kwargs": {"overwrite": True},
            "parser_class": _Parser,
            "parser_kwargs": {"epilog": "Also: compare, tune, export, card; and test with folders of runs."},
            "trainer_defaults": {"max_epochs": 20, "num_sanity_val_steps": 0, "devices": 1},
        }
        super().__init__(DQNLightningModule, ExperienceDataModule, args=args, **(defaults | kwargs))

    _wandb_run: str | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the environment's shapes to the network and adds the callbacks that every run has."""
        parser.link_arguments("data.observation_shape", "model.observation_shape", apply_on="instantiate")
        parser.link_arguments("data.num_actions", "model.num_actions", apply_on="instantiate")
        parser.add_lightning_class_args(self.collector, "collect")
        for key, (saver, values) in _CHECKPOINTS.items():
            parser.add_lightning_class_args(saver, key)
            # after every validation, also those within an epoch
            common = {"save_on_train_epoch_end": False, "enable_version_counter": False}
            parser.set_defaults({f"{key}.{name}": value for name, value in (values | common).items()})
        for key, kind in _PICTURES.items():
            default = {"class_path": f"{kind.__module__}.{kind.__qualname__}"}
            parser.add_argument(f"--{key}", type=kind | None, default=default, help=(kind.__doc__ or "").split("\n")[0])
            parser.callback_keys.append(key)
        parser.set_defaults({"data.buffer": {"class_path": "lightning_dqn.ReplayBuffer"}})
        parser.add_argument("--trust", type=str, default="", help=f"For validate, test, predict: {TRUST_HELP}.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses, after names of shipped configurations have been replaced by their paths."""
        if args is None:
            sys.argv[1:] = resolve_config_names(sys.argv[1:])
        elif isinstance(args, list):
            args = resolve_config_names(args)
        super().parse_arguments(parser, args)
        command = self.config.get("subcommand")
        config = self.config[command] if command else self.config
        made = {"data": ExperienceDataModule, "model": DQNLightningModule, "collect": self.collector}
        for section in made:
            empty = nulls(made[section], config.as_dict().get(section) or {}, section)
            if empty:
                raise ValueError(f"{empty[0]} must not be null")
        if command:
            config.ckpt_path, self._wandb_run = resolve_ckpt_path(config, to_go_on=command == "fit")

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it; the parser would import and call what a checkpoint names."""

    def instantiate_classes(self) -> None:
        """Make the objects that the configuration describes; evaluation takes the network of the checkpoint instead."""
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command not in (None, "fit") else None
        if path is None or not Path(path).is_file():
            super().instantiate_classes()
            return
        trust = trusted_modules(self.config[command].trust)
        with errors_of_checkpoint(path):
            model = DQNLightningModule.load_from_checkpoint(path, map_location="cpu", trust=trust)
        del self.config[command]["model"]  # the recorded settings are those that are used; these are in the checkpoint
        super().instantiate_classes()
        self.model = model

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        collectors = [c for c in [*callbacks, *given] if isinstance(c, ExperienceCollector)]
        if len(collectors) > 1:
            raise ValueError(
                "trainer.callbacks: a second ExperienceCollector would step the same environments; configure the one "
                "there is under `collect`"
            )
        callbacks = [callback for callback in callbacks if callback is not None]
        if config.get("enable_checkpointing") is False or config.get("fast_dev_run"):
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        bars = [c for c in given if isinstance(c, BaseProgressBar)]
        if not bars and config.get("enable_progress_bar") is not False:
            callbacks = [*callbacks, ProgressBar()]
        trainer: Trainer = super()._instantiate_trainer(config, [*callbacks, WandbCharts(), OneCurve()])
        if self.config.get("subcommand") == "fit":
            check_strategy(trainer.strategy)  # before there are processes, each of which would say so
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and self._wandb_run is not None:
                logger.go_on_with(self._wandb_run)
            never_stop_training(logger)
        return trainer

    def after_fit(self) -> None:
        """Says the score and where the files are."""
        self._say_what_is_where("val/return", self.model.validation_metrics.episodes)
        self._report_missing_checkpoints()
        if is_interrupted(self.trainer):
            sys.exit(exit_code(self.trainer, _INTERRUPTED))

    def after_validate(self) -> None:
        """Says the score and where the files are."""
        self._say_what_is_where("val/return", self.model.validation_metrics.episodes)

    def before_test(self) -> None:
        """Has the episodes kept, for statistics."""
        from lightning_dqn.apps.report import KeptEpisodes

        self.trainer.callbacks.append(KeptEpisodes())  # type: ignore[attr-defined]

    def after_test(self) -> None:
        """Says the score, what it is worth and where the files are; writes ``test.json``."""
        from lightning_dqn.apps import report

        self._say_what_is_where("test/return", self.model.test_metrics.episodes)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        tested = next(callback.evaluation for callback in callbacks if isinstance(callback, report.KeptEpisodes))
        folder = self.trainer.log_dir  # which all ranks have to ask for
        if tested is not None and self.trainer.is_global_zero:
            print("\n" + report.describe([tested]))
            path = report.place_of(tested, folder)
            if path is not None:
                report.write(tested, path)
                print(f"\nevery episode in {os.path.relpath(path)}")

    def after_predict(self) -> None:
        """Lists the episodes played, of all ranks."""
        played = [episode for batch in self.trainer.predict_loop.predictions for episode in batch]
        shares = of_all_ranks(self.trainer, played)
        if self.trainer.is_global_zero:
            for episode in (episode for share in shares for episode in share):
                print("seed {seed}: return {return:.1f} in {length} steps".format(**episode))

    def _report_missing_checkpoints(self) -> None:
        """Print which checkpoints wait for a metric that this run has not logged, as where no validation ran."""
        for saver in self.trainer.checkpoint_callbacks:
            monitor = getattr(saver, "monitor", None)
            if monitor is not None and monitor not in self.trainer.callback_metrics and self.trainer.is_global_zero:
                name = getattr(saver, "filename", None) or "checkpoint"
                print(f"no {name}.ckpt: it needs {monitor}, and no validation of this run has logged {monitor}")

    def _say_what_is_where(self, metric: str, episodes: int) -> None:
        trainer = self.trainer
        folder = trainer.log_dir  # which all ranks have to ask for
        if not trainer.is_global_zero:
            return
        score = trainer.callback_metrics.get(metric)
        if score is not None:
            steps = self.datamodule.env_steps
            print(f"{metric} {score:.1f} (mean of {episodes} greedy episodes) after {steps:,} env steps")
        if folder is not None:
            print(f"files in {folder}")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LearningCurve) and callback.path is not None:
                print(f"learning curve in {os.path.relpath(callback.path)}")
            if isinstance(callback, EpisodeVideo) and callback.path is not None:
                print(f"an episode in {os.path.relpath(callback.path)} ({callback.caption})")
        latest = next((c for c in trainer.checkpoint_callbacks if getattr(c, "filename", None) == "latest"), None)
        path = getattr(latest, "best_model_path", "")
        if path:
            print(f"go on with --ckpt_path {os.path.relpath(path)}")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.sync_command:
                print(f"upload to Weights & Biases with: {logger.sync_command}")


class Parsed(DQNCLI):
    """A command line that is looked at: nothing is made of it, and nothing run."""

    def instantiate_classes(self) -> None:
        """Makes nothing."""

    def _set_seed(self) -> None:
        """Leaves the seed as it was given."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs nothing."""


def _is_ours(args: list[str]) -> bool:
    """Whether a command line is none of Lightning's."""
    command, *rest = [*args, ""]
    return command in _APPS and (command != "test" or (bool(rest[0]) and not rest[0].startswith("-")))


def _run_app(name: str, args: list[str]) -> None:
    """Runs a command that is a module of its own, imported only now: ``fit`` is to start without it."""
    from lightning_dqn.apps.command import Refusal

    try:
        importlib.import_module(f"lightning_dqn.apps.{_APPS[name]}").command(args)
    except Refusal as refusal:
        sys.exit(f"error: {refusal}")


def main(args: ArgsType = None, kind: type[DQNCLI] = DQNCLI) -> None:
    """Runs the command line; errors that name a field of the configuration are printed without a traceback.

    Args:
        args: Instead of those of the process.
        kind: Whose commands those of Lightning are.
    """
    prepare_process()
    given = sys.argv[1:] if args is None else args
    if isinstance(given, list) and _is_ours(given):
        return _run_app(given[0], given[1:])
    try:
        finish_loggers(kind(args).trainer)
    except (ValueError, MemoryError) as error:
        reason = what_is_wrong(error)
        if reason is None:
            raise
        sys.exit(f"error: {reason}")


def finish_loggers(trainer: Trainer) -> None:
    """Waits until W&B has all that a run logged.

    Args:
        trainer: Whose run is over.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.finish()


def prepare_process() -> None:
    """Finds what lies in the working directory, and leaves out what is not the user's business."""
    # what Lightning's own parsing and profiling will have to change one day
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # where the user's own environments and networks are, as for python -m
