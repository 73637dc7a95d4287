"""The command ``lightning-dqn compare``: trainings of several seeds beside each other, in a table and in pictures."""

from __future__ import annotations

import os
from itertools import combinations, cycle
from pathlib import Path

import numpy as np

from lightning_dqn.apps.command import Arguments, Refusal
from lightning_dqn.apps.groups import Group, differences, read_groups, same_environment
from lightning_dqn.apps.statistics import (
    Estimate,
    Scores,
    band,
    estimate,
    interquartile_mean,
    mean,
    median,
    performance_profile,
    probability_of_improvement,
)
from lightning_dqn.curves import Curve, draw_curves, picture
from lightning_dqn.files import NewFile

_COLORS = tuple(
    f"tab:{name}" for name in ["blue", "orange", "green", "red", "purple", "brown", "pink", "olive", "cyan", "gray"]
)
_THRESHOLDS = 200
Improvement = tuple[str, str, Estimate]
"""Two groups by name, and the probability that a run of the one beats a run of the other."""
_NOTE = (
    "A run's score is the mean return of the greedy episodes of its last validation. Intervals: 95 %, stratified "
    "percentile bootstrap over runs."
)


def command(arguments: list[str]) -> None:
    """``lightning-dqn compare RUN...``.

    Args:
        arguments: Of the command line.

    Raises:
        Refusal: If something is no run, they are of several environments, or there is no place for the files;
            nothing is written then.
    """
    parser = Arguments("compare", "Learning curves, performance profiles and probabilities of improvement of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or NAME=PATTERN for a group of them")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder for pictures and table")
    options = parser.parse_args(arguments)
    _check_that_it_can_be_filled(options.output)
    groups = read_groups(options.runs)
    same_environment(run for group in groups for run in group.runs)
    found = improvements(groups)
    text = describe(groups, found)
    print(text)
    pictures = draw(groups, found, options.output)
    shown = "\n\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in pictures)
    with NewFile(options.output / "comparison.md") as file:
        file.write(f"# {groups[0].runs[0].env_id}\n\n{text}\n\n{shown}\n".encode())
    print("\nfiles in", options.output)


def describe(groups: list[Group], improved: list[Improvement]) -> str:
    """The figures, as Markdown.

    Args:
        groups: Of one environment.
        improved: Every two of them, see :func:`improvements`.
    """
    lines = [
        "| | runs | env steps | mean | median | interquartile mean | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in groups:
        scores = group.scores[:, None]
        middle = estimate(interquartile_mean, scores)
        steps = f"{max(group.env_steps):,.0f}"
        interval = middle.interval() if len(scores) > 1 else "of one run none is known"
        lines.append(
            f"| {group.name} | {len(scores)} | {steps} | {mean(scores):.1f} | {median(scores):.1f} | "
            f"{middle.value:.1f} | {interval} |"
        )
    if len(groups) > 1:
        lines += ["", "| probability that a run of | beats one of | | 95 % interval |", "|---|---|---|---|"]
        for one, other, found in improved:
            lines.append(f"| {one} | {other} | {found.value:.2f} | {found.interval(2)} |")
        lines += ["", "| what differs | " + " | ".join(group.name for group in groups) + " |"]
        lines.append("|---|" + "---|" * len(groups))
        for name, values in differences([group.runs[0] for group in groups]).items():
            lines.append(f"| `{name}` | " + " | ".join(map(str, values)) + " |")
    for group in groups:
        for run, steps_taken in zip(group.runs, group.env_steps, strict=True):
            if steps_taken < max(group.env_steps):
                lines += ["", f"{run.folder} was last validated at {steps_taken:,.0f} env steps: its score is of then."]
    return "\n".join([*lines, "", _NOTE])


def improvements(groups: list[Group]) -> list[Improvement]:
    """For every two groups, the probability that a run of the one beats a run of the other."""
    return [
        (one.name, other.name, estimate(probability_of_improvement, one.scores[:, None], other.scores[:, None]))
        for one, other in combinations(groups, 2)
    ]


def draw(groups: list[Group], improved: list[Improvement], folder: Path) -> list[Path]:
    """Draws them.

    Args:
        groups: Of one environment.
        improved: Every two of them, see :func:`improvements`.
        folder: For the pictures; made if missing.

    Returns:
        The pictures.
    """
    env_id = groups[0].runs[0].env_id
    pictures = [folder / "learning_curves.png", folder / "performance_profiles.png"]
    curves, profiles = [], []
    everything = np.concatenate([group.scores for group in groups])
    margin = max(0.05 * np.ptp(everything), 1e-3 * np.abs(everything).max(), 1e-6)
    thresholds = np.linspace(everything.min() - margin, everything.max() + margin, _THRESHOLDS)
    for k, (group, color) in enumerate(zip(groups, cycle(_COLORS), strict=False)):
        again = k >= len(_COLORS)
        steps, returns = group.curve
        label = f"{group.name} ({len(returns)} {'run' if len(returns) == 1 else 'runs'})"
        points = [band(interquartile_mean, returns[:, [p]]) for p in range(len(steps))]
        curves.append(_curve(steps, np.array(points).reshape(-1, 3).T, label, color, again))
        profile = band(lambda scores: performance_profile(scores, thresholds), group.scores[:, None])
        profiles.append(_curve(thresholds, np.array(profile), label, color, again))
    draw_curves(
        curves, f"{env_id}: interquartile mean over runs, 95 % intervals", pictures[0], y="return of a greedy episode"
    )
    draw_curves(
        profiles,
        f"{env_id}: performance profiles, 95 % intervals",
        pictures[1],
        x="return τ of the last validation",
        y="share of runs that score above τ",
    )
    if len(groups) > 1:
        pictures.append(folder / "probability_of_improvement.png")
        _draw_improvements(improved, env_id, pictures[-1])
    return pictures


def _check_that_it_can_be_filled(folder: Path) -> None:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise Refusal(f"--output: {there} is no folder; choose another name")
    if not os.access(there, os.W_OK):
        raise Refusal(f"--output: nothing can be written to {there}; choose another folder")


def _curve(x: Scores, estimated: Scores, label: str, color: str, dashed: bool) -> Curve:
    values, low, high = estimated
    return Curve(x, values, label, color, dashed=dashed, band=(low, high))


def _draw_improvements(found: list[Improvement], env_id: str, out: Path) -> None:
    title = f"{env_id}: probability of improvement, 95 % intervals"
    height = max(4.0, 1.0 + 0.45 * len(found))
    with picture(out, title, "P(a run of the first scores more than one of the second)", "", height) as axes:
        for k, (_, _, each) in enumerate(found):
            ends = [[each.value - each.low], [each.high - each.value]]
            axes.errorbar(each.value, -k, xerr=np.maximum(ends, 0), fmt="o", color="tab:blue", capsize=4, linewidth=2)
        axes.axvline(0.5, color="gray", linestyle="--", linewidth=1, label="neither is better")
        axes.set_yticks([-k for k in range(len(found))], [f"{one}\nover {other}" for one, other, _ in found])
        axes.set(xlim=(-0.02, 1.02), ylim=(-len(found) + 0.4, 0.6))
