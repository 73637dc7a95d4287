"""The command ``python -m lightning_dqn.ray``: ``fit`` and ``tune`` on a Ray cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from lightning_dqn.apps.command import Arguments, Refusal, needed
from lightning_dqn.cli import DQNCLI, prepare_process
from lightning_dqn.cli import main as fit_main
from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.shipped import resolve_config_names

_PROGRAM = "python -m lightning_dqn.ray"
_ACTORS = "--collect.num_actors"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; whatever cannot be done is said in one line.

    Args:
        arguments: Instead of those of the process.
    """
    command, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    rest = rest[:-1]
    commands = {"fit": _fit, "tune": _tune}
    try:
        if command not in commands:
            raise Refusal(f"{_PROGRAM} {' or '.join(commands)}; everything else is lightning-dqn's")
        needed("ray", "ray")
        prepare_process()
        sys.argv[1:] = []  # LightningCLI warns of arguments given twice
        _unless_the_head_is_lost(commands[command], rest)
    except Refusal as refusal:
        sys.exit(f"error: {refusal}")


def _unless_the_head_is_lost(command: Callable[[list[str]], None], arguments: list[str]) -> None:
    from lightning_dqn.ray.head import HeadLost

    try:
        command(arguments)
    except HeadLost as lost:
        print(f"error: {lost}", file=sys.stderr, flush=True)
        os._exit(1)  # Ray's own threads would wait for the head, or end the process with a stack trace


def _fit(arguments: list[str]) -> None:
    parser = Arguments("fit", "Trains on a Ray cluster. Other arguments are those of lightning-dqn fit.", _PROGRAM)
    parser.add_argument("--num_workers", type=int, help="learners; without it, one in this process")
    parser.add_argument("--cpus", type=float, default=1.0, help="cores that Ray reserves for each learner")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs that Ray gives to each learner")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="a folder that all machines see")
    parser.add_argument("--max_failures", type=int, default=3, help="restarts of the learners; -1 for any number")
    options, fit = parser.parse_known_args(arguments)
    try:
        fit = resolve_config_names(fit)
    except ValueError as error:
        raise Refusal(str(error)) from error
    collector = _collector(fit)
    if options.num_workers is None or (options.num_workers == 1 and collector is not ExperienceCollector):
        _fit_here(fit, collector)
        return
    from lightning_dqn.ray import training

    try:
        fitted = training.fit_on_ray(fit, **vars(options), collector=collector)
    except KeyboardInterrupt:
        sys.exit("stopped at once; go on with --ckpt_path last")
    except training.TrainingFailedError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise Refusal(f"the learners failed too often: {lines[-1].strip()}; go on with --ckpt_path last") from error
    if fitted.code:
        sys.exit(fitted.code)


def _collector(fit: list[str]) -> type[ExperienceCollector]:
    """Who fills the replay: actors, if some are asked for."""
    if not _num_actors(fit):
        return ExperienceCollector
    from lightning_dqn.ray.collector import RayCollector

    return RayCollector


def _num_actors(fit: list[str]) -> int:
    given = 0
    for name, following in zip(fit, [*fit[1:], ""], strict=True):
        key, _, value = name.partition("=")
        value = value or following
        if key in ("--config", "-c"):
            settings = yaml.safe_load(Path(value).read_text())
            collect = settings.get("collect") if isinstance(settings, dict) else None
            given = (collect or {}).get("num_actors", given)
        elif key == _ACTORS:
            given = int(value) if value.isdecimal() else 1  # the parser will say what is wrong
    return given


def _fit_here(fit: list[str], collector: type[ExperienceCollector]) -> None:
    class Fit(DQNCLI):
        pass

    Fit.collector = collector
    fit_main(["fit", *fit], Fit)


def _tune(arguments: list[str]) -> None:
    from lightning_dqn.apps.tune import command
    from lightning_dqn.ray.search import on_ray

    command(arguments, on_ray, _PROGRAM)
