"""Tests run in temporary folders, so that nothing in the checkout, such as a folder of runs, can change a result."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder_of_module_fixtures():
    return Path.cwd()


def test_working_folder_of_a_test_is_its_empty_temporary_folder(tmp_path):
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())


def test_working_folder_of_module_fixtures_is_outside_the_checkout(folder_of_module_fixtures):
    assert not folder_of_module_fixtures.is_relative_to(ROOT)


@pytest.mark.parametrize("package", ["lightning_dqn", "tests"])
def test_package_is_found_by_a_process_in_the_temporary_folder(package):
    code = f"import importlib.util as util; print(util.find_spec({package!r}).origin)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == importlib.util.find_spec(package).origin == str(ROOT / package / "__init__.py")
