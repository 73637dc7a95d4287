"""Puts one mistake at a time into the package, in a process of its own, and looks whether the tests notice.

The process this runs in imports the slow libraries once, but never the package. Every mutant gets a fork of it, in
which one module of the package is compiled from changed text (no file is touched, no compiled cache is read or written)
and pytest runs the tests that should notice. A mutant counts as killed only if such a test ran and failed: tests that
could not be collected, were skipped, or failed before they began tell nothing.
"""

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants.mutant import Mutant

KILLED, SURVIVED, BROKEN, HUNG = "killed", "SURVIVED", "BROKEN", "HUNG"


class Project(NamedTuple):
    """Where the code and its tests are.

    Attributes:
        root: The folder that holds both.
        package: Name of the package that is changed.
        preload: Modules imported once for all.
    """

    root: Path
    package: str
    preload: tuple[str, ...] = ("pytest",)


PACKAGE = Project(
    Path(__file__).resolve().parents[2],
    "lightning_dqn",
    ("pytest", "numpy", "torch", "gymnasium.vector", "torchmetrics", "lightning.pytorch.cli", "wandb"),
)


class Outcome(NamedTuple):
    """What became of a mutant.

    Attributes:
        verdict: ``killed``, ``SURVIVED``, ``BROKEN`` (nothing can be said) or ``HUNG``.
        detail: The test that failed, or what is wrong.
        output: What pytest printed.
        seconds: How long it took.
    """

    verdict: str
    detail: str
    output: str
    seconds: float


class Notes:
    """A pytest plugin that remembers which tests ran and what became of them."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []

    def pytest_collectreport(self, report: Any) -> None:
        """Called by pytest after every file it looked at."""
        if report.failed:
            self.errors.append(f"{report.nodeid} could not be collected")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after every phase of every test."""
        if report.when == "call" and report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed.append(f"{report.nodeid}: {crash.message if crash else report.longrepr}")
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)
        elif report.failed:
            self.errors.append(f"{report.nodeid} broke down in its {report.when}")


class MutantFinder(importlib.abc.MetaPathFinder):
    """Hands out one module with a mistake in it; all others are found as ever."""

    def __init__(self, project: Project, mutant: Mutant) -> None:
        self.name = f"{project.package}.{mutant.file.replace('/', '.')}"
        self.path = str(project.root / project.package / f"{mutant.file}.py")
        self.source = mutant.apply(Path(self.path).read_text())
        self.loaded = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Called by the import machinery for every module that is not there yet."""
        if name != self.name:
            return None
        self.loaded = True
        return importlib.util.spec_from_file_location(
            name, self.path, loader=_MutantLoader(name, self.path, self.source)
        )


class _MutantLoader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> Any:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Child:
    """A fork that runs tests, with a mutant or without, and leaves its notes in a folder."""

    def __init__(self, project: Project, mutant: Mutant | None, nodes: Sequence[str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutant-"))
        self.mutant, self.nodes = mutant, nodes
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(project)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)

    def _run(self, project: Project) -> None:
        os.setsid()  # so that whatever the tests start can be ended with it
        output = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(project.root)
        os.environ.pop("PYTEST_ADDOPTS", None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins that happen to be installed are of no use here
        sys.argv = ["pytest"]
        sys.modules["__main__"] = types.ModuleType("__main__")  # what processes of environments would import again
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.folder)  # nobody will clear up after a fork that was ended
        finder = None
        if self.mutant is not None:
            finder = MutantFinder(project, self.mutant)
            sys.meta_path.insert(0, finder)
        import pytest

        notes = Notes()
        # without the options of the configuration, which leave slow tests out
        options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "--basetemp", str(self.folder / "tests")]
        pytest.main([*options, *(["-x"] if finder else []), *self.nodes], plugins=[notes])
        result = vars(notes) | {"loaded": finder is None or finder.loaded}
        (self.folder / "result").write_text(json.dumps(result))

    def ended(self) -> bool:
        """Whether it is over; must not be asked again once it is."""
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def kill(self) -> None:
        """Ends it and, now or if it has ended already, whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def outcome(self, hung: bool) -> Outcome:
        """What is to be said of it; clears its folder away."""
        seconds = time.monotonic() - self.began
        with suppress(OSError):
            output = (self.folder / "output").read_text(errors="replace")
        try:
            result = json.loads((self.folder / "result").read_text())
        except (OSError, ValueError):
            result = None
        shutil.rmtree(self.folder, ignore_errors=True)
        verdict, detail = self._judge(result, hung)
        return Outcome(verdict, detail, output, seconds)

    def _judge(self, result: dict[str, Any] | None, hung: bool) -> tuple[str, str]:
        if hung:
            expected = self.mutant is not None and self.mutant.hangs
            return (KILLED if expected else HUNG), "did not end in time"
        if result is None:
            return BROKEN, "the process of the tests died"
        if result["failed"]:
            return KILLED, result["failed"][0]
        if result["errors"]:
            return BROKEN, result["errors"][0]
        if not result["loaded"]:
            return BROKEN, "no test imported the changed module"
        silent = [node for node in self.nodes if not any(_is_of(test, node) for test in result["passed"])]
        if silent:
            return BROKEN, f"{silent[0]} did not run"
        return SURVIVED, "every test passed"


def _is_of(test: str, node: str) -> bool:
    return test == node or test.startswith(f"{node}[")


def run(project: Project, mutants: Sequence[Mutant], jobs: int, timeout: float) -> Iterator[tuple[Mutant, Outcome]]:
    """Runs the killers of each mutant on it, some at a time.

    Args:
        project: Whose mutants they are.
        mutants: In the order in which they are begun.
        jobs: How many at a time.
        timeout: Seconds after which one is given up.

    Returns:
        What became of each, in the order in which they end.
    """
    _preload(project)
    waiting = [(mutant, mutant.nodes) for mutant in mutants]
    yield from _run_all(project, waiting, jobs, timeout)  # type: ignore[misc]


def run_unchanged(project: Project, mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Runs all the killers on the package as it is.

    Args:
        project: Whose killers they are.
        mutants: Whose killers they are.
        jobs: Among how many processes they are shared out.

    Returns:
        One outcome for each process; ``SURVIVED`` is what they all should be.
    """
    _preload(project)
    nodes = sorted({node for mutant in mutants for node in mutant.nodes})
    shares = [nodes[job::jobs] for job in range(jobs)]
    return [outcome for _, outcome in _run_all(project, [(None, share) for share in shares if share], jobs, math.inf)]


def _run_all(
    project: Project, waiting: list[tuple[Mutant | None, Sequence[str]]], jobs: int, timeout: float
) -> Iterator[tuple[Mutant | None, Outcome]]:
    running: list[_Child] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Child(project, *waiting.pop(0)))
            for child in list(running):
                over, hung = child.ended(), False
                if not over and time.monotonic() - child.began > timeout:
                    over = hung = True
                if over:
                    running.remove(child)
                    child.kill()
                    if hung:
                        os.waitpid(child.pid, 0)
                    yield child.mutant, child.outcome(hung)
            time.sleep(0.02)
    finally:
        for child in running:
            child.kill()


def _preload(project: Project) -> None:
    assert project.package not in sys.modules, "a fork must import the package itself"
    if str(project.root) not in sys.path:
        sys.path.insert(0, str(project.root))
    for name in project.preload:
        importlib.import_module(name)
    if "torch" in project.preload:
        import torch

        torch.set_num_threads(1)  # a fork of a process with threads can hang
    gc.collect()
    gc.freeze()  # what is here to stay need not be looked through by every fork


def main(project: Project, mutants: Sequence[Mutant], jobs: int, timeout: float, verbose: bool = False) -> int:
    """Runs them and says what became of them.

    Args:
        project: Whose mutants they are.
        mutants: At least one.
        jobs: How many at a time.
        timeout: Seconds after which one is given up.
        verbose: Whether to say how each was noticed.

    Returns:
        0 if all were killed, 1 if not, 2 if the killers do not pass on the package as it is.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # an exit ends the forks, a killed process would not
    for outcome in run_unchanged(project, mutants, jobs):
        if outcome.verdict != SURVIVED:
            print(f"{outcome.output}\nthe tests fail on the package as it is: {outcome.detail}")
            return 2
    print(f"the tests pass on the package as it is ({time.monotonic() - began:.0f} s)", flush=True)
    outcomes = {}
    for mutant, outcome in run(project, mutants, jobs, timeout):
        outcomes[mutant.id] = outcome
        print(f"{mutant.id:5}{outcome.verdict:9}{outcome.seconds:5.1f} s  {mutant.mistake}", flush=True)
        if verbose:
            print("     " + "\n     ".join(outcome.detail.splitlines()[:6]), flush=True)
    alive = [mutant for mutant in mutants if outcomes[mutant.id].verdict != KILLED]
    for mutant in alive:
        outcome = outcomes[mutant.id]
        print(f"\n{mutant.id} {outcome.verdict}: {outcome.detail}\n  in {mutant.file}.py: {mutant.mistake}")
        print("  " + "\n  ".join(mutant.nodes))
        if outcome.verdict in (BROKEN, HUNG):
            print(outcome.output)
    print(f"{len(mutants)} mutants, {len(mutants) - len(alive)} killed ({time.monotonic() - began:.0f} s)")
    return 1 if alive else 0
