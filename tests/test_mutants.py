"""The catalogue of known mistakes is whole, and its runner tells a mutant that is noticed from one that is not."""

import ast
import compileall
import json
import re
import subprocess
import sys
from functools import cache

import pytest

from tests.mutants import CLASSES, MUTANTS, NOT_APPLICABLE
from tests.mutants.mutant import Mutant
from tests.mutants.runner import PACKAGE

ROOT = PACKAGE.root


@cache
def functions_of(path):
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def code(source):
    """What Python makes of a text, whatever its comments and blank lines."""
    return ast.dump(ast.parse(source))


# -- the catalogue -----------------------------------------------------------------------------------------------------


def test_every_mutant_is_a_change_that_can_be_made():
    sources = {file: (ROOT / PACKAGE.package / f"{file}.py").read_text() for file in {m.file for m in MUTANTS}}
    originals = {file: code(source) for file, source in sources.items()}
    assert [mutant.id for mutant in MUTANTS if sources[mutant.file].count(mutant.old) != 1] == []
    assert [mutant.id for mutant in MUTANTS if code(mutant.apply(sources[mutant.file])) == originals[mutant.file]] == []
    assert [mutant.id for mutant in MUTANTS if not mutant.mistake or "\n" in mutant.mistake] == []


def test_the_killers_of_every_mutant_are_tests():
    assert [mutant.id for mutant in MUTANTS if not mutant.killers] == []
    named = {tuple(node.split("[")[0].split("::")) for mutant in MUTANTS for node in mutant.nodes}
    assert [name for path, name in named if not name.startswith("test_") or name not in functions_of(ROOT / path)] == []


def test_a_change_that_does_not_stand_exactly_once_in_its_file_is_refused():
    mutant = Mutant("A1", "nothing", "file", "x = 1", "x = 2", ())
    assert mutant.apply("x = 1\n") == "x = 2\n"
    for source in ("x = 3\n", "x = 1\nx = 1\n"):
        with pytest.raises(ValueError, match=r"A1: its old text stands [02] times"):
            mutant.apply(source)


def test_there_are_sixty_mutants_and_more_each_with_a_name_and_a_change_of_its_own():
    assert len(MUTANTS) >= 60
    assert len({mutant.id for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_every_mistake_has_a_mutant_or_a_reason_why_it_cannot_be_made():
    numbers = {f"{letter}{number}" for letter, last in CLASSES.items() for number in range(1, last + 1)}
    mutated = {re.fullmatch(r"([A-H]\d+)[a-z]?", mutant.id).group(1) for mutant in MUTANTS}
    assert mutated.isdisjoint(NOT_APPLICABLE)
    assert mutated | set(NOT_APPLICABLE) == numbers
    assert all(NOT_APPLICABLE.values())


# -- the runner, on a package of three lines ---------------------------------------------------------------------------

FILES = {
    "tiny/__init__.py": "",
    "tiny/sums.py": "def add(a, b):\n    total = a + b\n    return total\n",
    "tiny/unused.py": "number = 1\n",
    "tests/test_sums.py": """
import os
import pytest
from tiny.sums import add

def test_sums():
    assert add(1, 2) == 3

def test_nothing():
    pass

@pytest.mark.skipif(add(1, 2) != 3, reason="it is wrong")
def test_skipped_where_it_would_fail():
    assert add(1, 2) == 3

@pytest.fixture
def three():
    assert add(1, 2) == 3

def test_set_up(three):
    pass

def test_loop():
    while add(1, 2) != 3:
        pass

def test_death():
    if add(1, 2) != 3:
        os._exit(1)
""",
    "tests/test_wrong.py": "def test_wrong():\n    assert False\n",
}

RUN = """
import json, sys
from pathlib import Path
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Project, main, run
project = Project(Path(sys.argv[1]), "tiny")
mutants = [Mutant(*fields) for fields in json.loads(sys.argv[2])]
if sys.argv[3] == "main":
    sys.exit(main(project, mutants, jobs=2, timeout=60))
seen = {mutant.id: outcome for mutant, outcome in run(project, mutants, jobs=2, timeout=float(sys.argv[4]))}
print(json.dumps({name: [outcome.verdict, outcome.detail] for name, outcome in seen.items()}))
"""


@pytest.fixture
def tiny(tmp_path):
    """Runs mutants of a tiny package: ``run`` gives what became of each, ``main`` the process."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    compileall.compile_dir(tmp_path / "tiny", quiet=1)

    def call(*mutants, how="run", timeout=60):
        command = [sys.executable, "-c", RUN, str(tmp_path), json.dumps(mutants), how, str(timeout)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if how == "main":
            return process
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    yield call
    # no file was written over, and no compiled mistake is left for others to load
    assert all((tmp_path / name).read_text() == text for name, text in FILES.items())
    subprocess.run([sys.executable, "-c", "from tiny.sums import add; assert add(1, 2) == 3"], cwd=tmp_path, check=True)


def wrong(name, *killers, hangs=False):
    return Mutant(name, "subtracts", "sums", "a + b", "a - b", tuple(f"sums::{killer}" for killer in killers), hangs)


def test_a_mistake_that_a_test_notices_is_told_from_one_that_none_does(tiny):
    renamed = Mutant(
        "A2", "nothing", "sums", "total = a + b\n    return total", "c = a + b\n    return c", ("sums::test_sums",)
    )
    verdicts = tiny(
        wrong("A1", "test_sums"),
        renamed,
        wrong("A3", "test_nothing"),
        wrong("A4", "test_nothing", "test_sums"),
    )
    assert verdicts["A1"][0] == "killed"
    assert verdicts["A1"][1].startswith("tests/test_sums.py::test_sums: assert -1 == 3")
    assert verdicts["A2"] == verdicts["A3"] == ["SURVIVED", "every test passed"]
    assert verdicts["A4"][0] == "killed"


def test_where_no_test_ran_and_failed_nothing_is_said(tiny):
    verdicts = tiny(
        wrong("A1", "test_skipped_where_it_would_fail"),
        wrong("A2", "test_set_up"),
        wrong("A3", "test_that_is_not_there"),
        wrong("A4", "test_death"),
        Mutant("A5", "cannot be imported", "sums", "def add", "raise OSError\ndef add", ("sums::test_sums",)),
        Mutant("A6", "is never imported", "unused", "1", "2", ("sums::test_sums",)),
        Mutant("A7", "is not there", "sums", "a * b", "a + b", ("sums::test_sums",)),
    )
    assert {verdict for verdict, _ in verdicts.values()} == {"BROKEN"}
    reasons = [verdicts[f"A{number}"][1] for number in range(1, 8)]
    assert reasons[0] == "tests/test_sums.py::test_skipped_where_it_would_fail did not run"
    assert reasons[1] == "tests/test_sums.py::test_set_up broke down in its setup"
    assert reasons[2] == "tests/test_sums.py::test_that_is_not_there did not run"
    assert reasons[3] == reasons[6] == "the process of the tests died"
    assert reasons[4] == "tests/test_sums.py could not be collected"
    assert reasons[5] == "no test imported the changed module"


def test_a_test_that_never_ends_is_given_up_and_counts_only_where_it_is_expected(tiny):
    verdicts = tiny(wrong("A1", "test_loop"), wrong("A2", "test_loop", hangs=True), timeout=3)
    assert verdicts == {"A1": ["HUNG", "did not end in time"], "A2": ["killed", "did not end in time"]}


def test_the_summary_counts_and_the_exit_code_says_whether_all_were_killed(tiny):
    process = tiny(wrong("A1", "test_sums"), how="main")
    assert process.returncode == 0
    assert "1 mutants, 1 killed" in process.stdout
    process = tiny(wrong("A1", "test_sums"), wrong("A2", "test_nothing"), how="main")
    assert process.returncode == 1
    assert "2 mutants, 1 killed" in process.stdout
    assert "A2 SURVIVED: every test passed" in process.stdout


def test_tests_that_fail_without_any_mistake_are_refused(tiny):
    process = tiny(Mutant("A1", "subtracts", "sums", "a + b", "a - b", ("wrong::test_wrong",)), how="main")
    assert process.returncode == 2
    assert "the tests fail on the package as it is: tests/test_wrong.py::test_wrong" in process.stdout
    assert "killed" not in process.stdout


# -- all of it ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_mutant_of_the_package_is_killed_from_the_command_line():
    process = subprocess.run([sys.executable, "-m", "tests.mutants", "E3"], capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout
    assert "1 mutants, 1 killed" in process.stdout


@pytest.mark.slow
def test_every_mutant_is_killed():
    process = subprocess.run([sys.executable, "-m", "tests.mutants"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
    assert f"{len(MUTANTS)} mutants, {len(MUTANTS)} killed" in process.stdout
