"""The command ``lightning-dqn test``: what greedy episodes say of one agent, or of several seeds of one training."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics.utilities import dim_zero_cat

from lightning_dqn.apps.command import Arguments, Refusal, at_least, check_output_file
from lightning_dqn.apps.groups import same_environment, seeds_of_one_training
from lightning_dqn.apps.loading import load
from lightning_dqn.apps.runs import folder_of_run, read_runs
from lightning_dqn.apps.statistics import (
    RESAMPLES,
    Estimate,
    Scores,
    estimate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
)
from lightning_dqn.experience.datamodule import ExperienceDataModule, data_of
from lightning_dqn.files import NewFile

FILE = "test.json"


class Target(NamedTuple):
    """What a score is held against.

    Attributes:
        score: Good enough.
        label: Who says so.
    """

    score: float
    label: str


class Evaluation(NamedTuple):
    """Greedy episodes of one agent.

    Attributes:
        env_id: Where they were played.
        checkpoint: What was tested; ``None`` if it was not loaded from a file.
        env_steps: That training had taken.
        eval_seed: Which set of episodes.
        target: What a score is held against; ``None`` if nothing is known.
        returns: In the order of the episodes' seeds, ``[E]``.
        lengths: In environment steps, ``[E]``.
    """

    env_id: str
    checkpoint: Path | None
    env_steps: int
    eval_seed: int
    target: Target | None
    returns: Scores
    lengths: Scores


class KeptEpisodes(Callback):
    """Keeps the episodes of a test.

    Attributes:
        evaluation: They; ``None`` before the test is over, or where it played something else.
    """

    evaluation: Evaluation | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes them over, of all ranks, before the metrics are reset."""
        data, metrics = data_of(trainer), getattr(pl_module, "test_metrics", None)
        if data is None or metrics is None:
            return
        with metrics.sync_context():
            returns, lengths = dim_zero_cat(metrics.returns), dim_zero_cat(metrics.lengths)
        checkpoint = Path(trainer.ckpt_path) if trainer.ckpt_path else None
        self.evaluation = _tested(data, checkpoint, returns.cpu().double().numpy(), lengths.cpu().double().numpy())


def play(checkpoint: Path, episodes: int | None = None, trust: Sequence[str] = ()) -> Evaluation:
    """Plays the test episodes of a checkpoint in the environments it was trained in.

    Args:
        checkpoint: A file of this package, weights alone or more.
        episodes: How many; ``None`` for the run's own ``data.eval_episodes``.
        trust: See :func:`~lightning_dqn.apps.loading.load`.

    Raises:
        Refusal: If it cannot be loaded.
    """
    data, module = load(checkpoint, trust, **({} if episodes is None else {"eval_episodes": episodes}))
    trainer = Trainer(logger=False, devices=1, enable_checkpointing=False, enable_progress_bar=False)
    played = [episode for batch in trainer.predict(module, data) or [] for episode in batch]
    returns, lengths = (np.array([float(episode[name]) for episode in played]) for name in ("return", "length"))
    return _tested(data, checkpoint, returns, lengths)


def summary(scores: Scores, target: Target | None) -> dict[str, Estimate]:
    """Aggregates of scores, with their intervals.

    Args:
        scores: Of episodes or of runs, ``[N]``.
        target: For the optimality gap.
    """
    statistics = {"mean": mean, "median": median, "interquartile mean": interquartile_mean}
    found = {name: estimate(statistic, scores[:, None]) for name, statistic in statistics.items()}
    if target is not None:
        found["optimality gap"] = estimate(optimality_gap(target.score), scores[:, None])
    return found


def describe(tested: Sequence[Evaluation]) -> str:
    """What a test has shown, as Markdown.

    Args:
        tested: Of one environment; one agent, or several seeds of a training.
    """
    first, lines = tested[0], []
    if len(tested) == 1:
        of = f"{len(first.returns)} greedy episodes of one agent"
        lines.append(f"{first.env_id}: {of}, after {first.env_steps:,} env steps")
    else:
        of = f"the mean returns of {len(tested)} runs"
        lines += ["| run | env steps | episodes | mean return | 95 % interval over episodes |", "|---|---|---|---|---|"]
        for each in tested:
            own = estimate(mean, each.returns[:, None])
            lines.append(
                f"| {_name(each)} | {each.env_steps:,} | {len(each.returns)} | {own.value:.1f} | {own.interval()} |"
            )
        lines += ["", f"{first.env_id}: {of}"]
    lines += ["", "| return | | 95 % interval |", "|---|---|---|"]
    for name, found in summary(_scores(tested), first.target).items():
        if name == "optimality gap" and first.target is not None:
            name += f" to {first.target.score:g} ({first.target.label})"
        lines.append(f"| {name} | {found.value:.1f} | {found.interval()} |")
    return "\n".join(lines)


def write(tested: Evaluation, path: Path) -> None:
    """Writes a test down as JSON, every episode with it.

    Args:
        tested: Of one agent.
        path: Of the file.

    Raises:
        OSError: If that cannot be done; what was there is still there.
    """
    report = {
        "env_id": tested.env_id,
        "checkpoint": None if tested.checkpoint is None else tested.checkpoint.name,
        "env_steps": tested.env_steps,
        "eval_seed": tested.eval_seed,
        "target": None if tested.target is None else tested.target._asdict(),
        **_statistics([tested]),
        "returns": tested.returns.tolist(),
        "lengths": [int(length) for length in tested.lengths],
    }
    _write_json(report, path)


def write_table(tested: Sequence[Evaluation], path: Path) -> None:
    """Writes down as JSON what :func:`describe` says.

    Args:
        tested: Of one environment; one agent, or several seeds of a training.
        path: Of the file.

    Raises:
        OSError: If that cannot be done; what was there is still there.
    """
    first = tested[0]
    runs = [
        {
            "run": _name(each),
            "checkpoint": None if each.checkpoint is None else each.checkpoint.name,
            "env_steps": each.env_steps,
            "eval_seed": each.eval_seed,
            "episodes": len(each.returns),
            "mean": estimate(mean, each.returns[:, None])._asdict(),
        }
        for each in tested
    ]
    target = None if first.target is None else first.target._asdict()
    _write_json({"env_id": first.env_id, "target": target, **_statistics(tested), "runs": runs}, path)


def read(path: Path) -> Evaluation:
    """A test that was written down.

    Raises:
        Refusal: If there is none.
    """
    try:
        report = json.loads(path.read_text())
        return Evaluation(
            str(report["env_id"]),
            None if report["checkpoint"] is None else Path(report["checkpoint"]),
            int(report["env_steps"]),
            int(report["eval_seed"]),
            None if report["target"] is None else Target(**report["target"]),
            np.array(report["returns"], float),
            np.array(report["lengths"], float),
        )
    except FileNotFoundError as missing:
        raise Refusal(f"run: there is no {path}; `lightning-dqn test {path.parent}` makes it") from missing
    except (KeyError, TypeError, ValueError) as broken:
        raise Refusal(f"run: {path} is no test; `lightning-dqn test {path.parent}` makes it anew") from broken


def place_of(tested: Evaluation, otherwise: str | None) -> Path | None:
    """Where a test is written: with the run that was tested, else with the test's own files, else nowhere.

    Args:
        tested: Of one agent.
        otherwise: Folder of the test's own files.
    """
    folder = None if tested.checkpoint is None else folder_of_run(tested.checkpoint)
    if folder is None or not os.access(folder, os.W_OK):
        folder = None if otherwise is None else Path(otherwise)
    return None if folder is None else folder / FILE


def command(arguments: list[str]) -> None:
    """``lightning-dqn test RUN...``: tests every run with the settings that are in its checkpoint.

    Args:
        arguments: Of the command line.

    Raises:
        Refusal: If something is no run, they are no seeds of one training, or there is no place for the output;
            nothing is played then.
    """
    parser = Arguments("test", "Plays greedy episodes of several runs: mean, median, interquartile mean, intervals.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="which one of each run")
    parser.add_argument("--episodes", type=int, help="of each run; data.eval_episodes of the run if not given")
    parser.add_argument("--target", type=float, help="score that the optimality gap is measured from")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    parser.add_trust()
    options = parser.parse_args(arguments)
    if options.episodes is not None:
        at_least(1, "--episodes", options.episodes)
    if options.output is not None:
        check_output_file(options.output)
    tested = [_of_target(play(path, options.episodes, options.trust), options) for path in _checkpoints(options)]
    kept = [_kept(each) for each in tested]
    print("\n".join([describe(tested), "", *kept]))
    if options.output is not None:
        write_table(tested, options.output)
        print(f"the table in {options.output}")


def _checkpoints(options: argparse.Namespace) -> list[Path]:
    runs = read_runs(options.runs)
    same_environment(runs)
    return [run.checkpoint(options.checkpoint) for run in seeds_of_one_training(runs)]


def _kept(tested: Evaluation) -> str:
    """Writes a test down; says where, or why not: what was played is not to be lost with it."""
    place = place_of(tested, None)
    if place is None:
        return f"no {FILE} in {_name(tested)}: nothing can be written there"
    try:
        write(tested, place)
    except OSError as error:
        return f"no {FILE} in {_name(tested)}: {error.strerror or error}"
    return f"every episode in {os.path.relpath(place)}"


def _name(tested: Evaluation) -> str:
    return "" if tested.checkpoint is None else os.path.relpath(folder_of_run(tested.checkpoint) or tested.checkpoint)


def _scores(tested: Sequence[Evaluation]) -> Scores:
    return tested[0].returns if len(tested) == 1 else np.array([each.returns.mean() for each in tested])


def _statistics(tested: Sequence[Evaluation]) -> dict[str, Any]:
    of = "episodes" if len(tested) == 1 else "runs"
    found = summary(_scores(tested), tested[0].target)
    return {
        "interval": f"95 %, percentile bootstrap of the {of}, {RESAMPLES} resamples",
        "statistics": {name: each._asdict() for name, each in found.items()},
    }


def _write_json(report: dict[str, Any], path: Path) -> None:
    with NewFile(path) as file:
        file.write((json.dumps(report, indent=1) + "\n").encode())


def _of_target(tested: Evaluation, options: argparse.Namespace) -> Evaluation:
    return tested if options.target is None else tested._replace(target=Target(options.target, "--target"))


def _tested(data: ExperienceDataModule, checkpoint: Path | None, returns: Scores, lengths: Scores) -> Evaluation:
    env_id = data.state_dict()["env_id"]
    return Evaluation(env_id, checkpoint, data.env_steps, data.eval_seed, _target(data), returns, lengths)


def _target(data: ExperienceDataModule) -> Target | None:
    if data.reference_scores is not None:
        return Target(data.reference_scores.human, "a human's score")
    try:
        threshold = gym.spec(data.env_id).reward_threshold if isinstance(data.env_id, str) else None
    except (gym.error.Error, ImportError, ValueError):
        return None
    return None if threshold is None else Target(float(threshold), "its reward threshold")
