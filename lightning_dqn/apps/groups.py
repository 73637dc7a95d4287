"""Which runs are seeds of one training, and what the trainings differ in."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.runs import Run, read_runs
from lightning_dqn.apps.statistics import Scores

_FEW = 2  # settings that fit into a name
_METRIC = "val/return"
_ABSENT = "-"


class Group(NamedTuple):
    """Runs of one training, each with a seed of its own.

    Attributes:
        name: For tables and legends.
        runs: In the order in which they were given.
    """

    name: str
    runs: list[Run]

    @property
    def scores(self) -> Scores:
        """Return of the last validation of every run, ``[N]``."""
        return np.array([list(run.curve(_METRIC).values())[-1] for run in self.runs])

    @property
    def curve(self) -> tuple[Scores, Scores]:
        """Environment steps ``[P]`` at which every run was validated, and the returns there, ``[N, P]``."""
        curves = [run.curve(_METRIC) for run in self.runs]
        steps = sorted(set(curves[0]).intersection(*curves[1:]))
        return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])

    @property
    def env_steps(self) -> list[float]:
        """Environment steps of the last validation of every run."""
        return [list(run.curve(_METRIC))[-1] for run in self.runs]


def read_groups(arguments: Sequence[str]) -> list[Group]:
    """The groups that a command line names, each with one run of a seed.

    Args:
        arguments: Folders of runs, which are grouped by what they have learned with; and ``NAME=PATTERN``, a group.

    Raises:
        Refusal: If one is no run, a pattern matches nothing, or a run was never validated.
    """
    named: dict[str, list[Path]] = {}
    folders = []
    for argument in arguments:
        name, is_named, pattern = argument.partition("=")
        if Path(argument).exists() or not is_named:
            folders.append(Path(argument))
            continue
        found = sorted(path for path in map(Path, glob.glob(pattern)) if path.is_dir())  # noqa: PTH207 (takes absolute ones)
        if not found:
            raise Refusal(f"run: no folder is named like {pattern} ({argument})")
        named.setdefault(name, []).extend(found)
    groups = [Group(name, read_runs(found)) for name, found in named.items()]
    groups += by_what_differs(read_runs(folders)) if folders else []
    groups = [group._replace(runs=one_of_each_seed(group.runs)) for group in groups]
    for run in (run for group in groups for run in group.runs):
        if not run.curve(_METRIC):
            raise Refusal(f"run: {run.folder} was never validated: there is no {_METRIC} in its metrics.csv")
    twice = [group.name for group in groups if [other.name for other in groups].count(group.name) > 1]
    if twice:
        raise Refusal(f"run: two groups are called {twice[0]}; choose another name")
    return groups


def by_what_differs(runs: Iterable[Run]) -> list[Group]:
    """Groups of runs that differ in nothing but seed and place, named after what tells them apart.

    Args:
        runs: Of any trainings.
    """
    same: list[list[Run]] = []
    for run in runs:
        mates = next((group for group in same if group[0].what_was_learned == run.what_was_learned), None)
        same.append([run]) if mates is None else mates.append(run)
    settings = differences([group[0] for group in same])
    folders = [group[0].folder.absolute().parent.name for group in same]
    if len(same) == 1:
        return [Group(folders[0], same[0])]
    if len(settings) <= _FEW or len(set(folders)) < len(same):
        names = [_called(settings, k) for k in range(len(same))]
    else:
        names = folders
    return [Group(name, group) for name, group in zip(names, same, strict=True)]


def seeds_of_one_training(runs: Sequence[Run]) -> list[Run]:
    """Runs that can be averaged, one of each seed.

    Args:
        runs: At least one.

    Raises:
        Refusal: If they are of several trainings; names what two of them differ in.
    """
    groups = by_what_differs(runs)
    if len(groups) > 1:
        one, other = (group.runs[0] for group in groups[:2])
        first, *more = _classes_first(differences([one, other]))
        raise Refusal(
            f"run: {one.folder} and {other.folder} are no seeds of one training: they differ in {first}"
            f"{f' and {len(more)} more' if more else ''}; take one training at a time, or `lightning-dqn compare`"
        )
    return one_of_each_seed(groups[0].runs)


def one_of_each_seed(runs: Sequence[Run]) -> list[Run]:
    """Of the runs of each seed the one that got furthest, of those the last; the others are named and left out.

    A run that went on from a checkpoint has the curve of the one before in its own. Where the seed was left to chance,
    none repeats another.

    Args:
        runs: Of one group.
    """
    furthest: dict[Any, Run] = {}
    for run in runs:
        before = furthest.get(_seeds_of(run))
        if before is None or run.env_steps >= before.env_steps:
            furthest[_seeds_of(run)] = run
    kept = [run for run in runs if furthest[_seeds_of(run)] is run]
    repeated = [run for run in runs if furthest[_seeds_of(run)] is not run]
    if repeated:
        named = (f"{run.folder} (seed {run.seed}, as {furthest[_seeds_of(run)].folder})" for run in repeated)
        print(f"left out: {', '.join(named)}; of each seed the run that got furthest counts, the later on a tie")
    return kept


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all.

    Args:
        runs: One of each group.

    Returns:
        By name, the value of each run; ``-`` where a run has no such setting.
    """
    return _unequal([run.what_was_learned for run in runs])


def same_environment(runs: Iterable[Run]) -> None:
    """Refuses what cannot be compared.

    Args:
        runs: That are to be.

    Raises:
        Refusal: If they are of several environments; names two runs and the setting.
    """
    first, *others = runs
    for other in others:
        for name, (one, another) in _unequal([first.environment, other.environment]).items():
            raise Refusal(
                f"run: {name} is {one} in {first.folder} and {another} in {other.folder}: scores of different "
                "environments have no scale in common; take the runs of one at a time"
            )


def _unequal(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for each in settings for name in each)
    values = {name: [each.get(name, _ABSENT) for each in settings] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


def _seeds_of(run: Run) -> Any:
    return tuple(run.seeds.items()) or run.folder


def _classes_first(names: Iterable[str]) -> list[str]:
    # they say more than their arguments, which come and go with them
    return sorted(names, key=lambda name: not name.endswith("class_path"))


def _called(settings: dict[str, list[Any]], k: int) -> str:
    order = _classes_first(settings)
    said = [_short(name, settings[name][k]) for name in order[:_FEW]]
    if len(order) > _FEW:  # there may be others of this name
        said.append(f"({k + 1})")
    return ", ".join(said[:_FEW]) + "".join(f" {each}" for each in said[_FEW:])


def _short(name: str, value: Any) -> str:
    if name.endswith("class_path"):
        return str(value).rpartition(".")[2]
    return f"{name.rpartition('.')[2]} {value}"
