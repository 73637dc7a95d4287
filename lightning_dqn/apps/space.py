"""What a search varies: the file that ``--search`` takes, checked before anything runs."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lightning_dqn.apps.command import Refusal

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "hyperband")
_TRIALS = 20  # of a search that could go on without end
Value = float | int | str | bool | None


class Domain(NamedTuple):
    """The values that a setting may take: some, or a range.

    Attributes:
        choices: Some; ``None`` if it is a range.
        low: Lower end, included.
        high: Upper end, included.
        log: Whether orders of magnitude are equally likely, instead of values.
        step: Between two values; ``None`` for any.
    """

    choices: list[Value] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return all(isinstance(each, int) for each in (self.low, self.high, self.step) if each is not None)

    @property
    def ends(self) -> list[Value]:
        """All choices, or both ends of the range."""
        return [self.low, self.high] if self.choices is None else self.choices

    @property
    def grid(self) -> list[Value] | None:
        """All values; ``None`` if there is no end of them."""
        if self.choices is not None:
            return self.choices
        step = self.step if self.step is not None else 1 if self.is_whole and not self.log else None
        if step is None:
            return None
        count = int(np.floor((self.high - self.low) / step + 1e-9)) + 1
        return [self.low + k * step for k in range(count)]


class Search(NamedTuple):
    """How settings are searched.

    Attributes:
        space: The values of each setting, by its full name.
        sampler: One of :data:`SAMPLERS`.
        pruner: One of :data:`PRUNERS`.
        trials: How many settings are tried; ``None`` for the whole grid, and for 20 of other samplers.
        seeds: Runs of each trial, one after the other, with the seeds 0, 1, ...; its value is their mean.
        seed: Of the sampler.
    """

    space: dict[str, Domain]
    sampler: str = "tpe"
    pruner: str = "median"
    trials: int | None = None
    seeds: int = 1
    seed: int = 0

    @property
    def grid(self) -> dict[str, list[Value]]:
        """All values of every setting.

        Raises:
            Refusal: If one of them is a range without steps.
        """
        values = {}
        for name, domain in self.space.items():
            grid = domain.grid
            if grid is None:
                raise Refusal(f"space.{name}: a grid needs choices, or a step between low and high")
            values[name] = grid
        return values

    @property
    def num_trials(self) -> int:
        """Trials after which the search is over."""
        if self.sampler != "grid":
            return self.trials or _TRIALS
        points = sum(1 for _ in itertools.product(*self.grid.values()))
        return min(points, self.trials or points)


def read_search(path: Path, instead: Mapping[str, Any] | None = None) -> Search:
    """A search file.

    Args:
        path: Of the file.
        instead: Fields that are to be others than the file's.

    Raises:
        Refusal: If there is none, or something in it is not understood; names the field.
    """
    try:
        given = yaml.safe_load(path.read_text())
    except OSError as error:
        raise Refusal(f"search: {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(f"search: {path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("space"), Mapping) or not given["space"]:
        raise Refusal(f"search: {path} has no `space`: the settings to vary, by name")
    _no_others(given, Search._fields, "search")
    space = {str(name): _domain(str(name), each) for name, each in given["space"].items()}
    search = Search(**{**given, **(instead or {}), "space": space})
    for name, known in {"sampler": SAMPLERS, "pruner": PRUNERS}.items():
        if getattr(search, name) not in known:
            raise Refusal(f"search.{name} must be one of {', '.join(known)}, got {getattr(search, name)}")
    for name, least in {"trials": 1, "seeds": 1, "seed": 0}.items():
        value = getattr(search, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise Refusal(f"search.{name} must be a whole number from {least} on, got {value}")
    if search.sampler == "grid":
        _ = search.grid
    return search


def closest(name: str, known: list[str]) -> str:
    """What somebody may have meant, as the end of a message.

    Args:
        name: That nobody knows.
        known: Names.
    """
    last = name.rpartition(".")[2]
    near = [each for each in known if each.rpartition(".")[2] == last] or difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Value) -> str:
    """A value as tables and lines have it, with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _domain(name: str, given: Any) -> Domain:
    field = f"space.{name}"
    if not isinstance(given, Mapping):
        raise Refusal(f"{field} must be {{choices: [...]}} or {{low: ..., high: ...}}, got {given}")
    _no_others(given, Domain._fields, field)
    if "choices" in given:
        if len(given) > 1 or not isinstance(given["choices"], list) or not given["choices"]:
            raise Refusal(f"{field}.choices must be a list, and stand alone")
        return Domain([each if isinstance(each, Value) else json.dumps(each) for each in given["choices"]])
    for end in ("low", "high", *({"step"} & given.keys())):
        value = given.get(end)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Refusal(f"{field}.{end} must be a number, got {value} (YAML wants 1.0e-4 for 1e-4)")
    domain = Domain(**given)
    if domain.low >= domain.high:
        raise Refusal(f"{field}.low ({domain.low}) must be below {field}.high ({domain.high})")
    if domain.log and (domain.low <= 0 or domain.step is not None):
        raise Refusal(f"{field}.log wants a low above 0, and no step")
    if domain.step is not None and domain.step <= 0:
        raise Refusal(f"{field}.step must be above 0, got {domain.step}")
    return domain


def _no_others(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise Refusal(f"{where}.{name} is unknown; {where} has {', '.join(known)}{closest(str(name), list(known))}")
