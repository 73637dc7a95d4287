"""What the commands beside Lightning's have in common."""

import logging
import sys

import pytest

from lightning_dqn.apps.command import Arguments, Refusal, at_least, check_output_file, errors_only, needed
from lightning_dqn.cli import main


def test_a_wrong_argument_is_one_line(capsys):
    parser = Arguments("test", "Tests.")
    parser.add_argument("--episodes", type=int)
    for wrong in (["--episodes", "few"], ["--episode", "3"]):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(wrong)
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1


def test_numbers_have_a_least():
    assert at_least(1, "--workers", 1) == 1
    with pytest.raises(Refusal, match=r"^--workers must be at least 1, got 0$"):
        at_least(1, "--workers", 0)


def test_an_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    check_output_file(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("{}")
    check_output_file(tmp_path / "old.json")
    with pytest.raises(Refusal, match=r"^--output: .* is a folder; name a file in it$"):
        check_output_file(tmp_path)
    with pytest.raises(Refusal, match=r"^--output: there is no folder .*none$"):
        check_output_file(tmp_path / "none" / "new.json")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(Refusal, match=r"^--output: nothing can be written to .*; choose another folder$"):
        check_output_file(tmp_path / "new.json")


def test_a_library_that_is_not_there_is_named_with_the_command_that_brings_it(monkeypatch):
    assert needed("json", "search").__name__ == "json"
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Refusal, match=r'^optuna is not installed: python -m pip install "lightning-dqn\[search\]"$'):
        needed("optuna", "search")


@errors_only("tests.loud")
def say_and_fail(loud, other):
    loud.warning("not heard")
    loud.error("an error")
    other.info("another")
    raise ZeroDivisionError


def test_loggers_are_quiet_for_a_while_and_then_as_before(caplog):
    loud, other = logging.getLogger("tests.loud"), logging.getLogger("tests.other")
    caplog.set_level(logging.INFO, "tests")
    with pytest.raises(ZeroDivisionError):
        say_and_fail(loud, other)
    loud.info("heard again")
    assert caplog.messages == ["an error", "another", "heard again"]


def test_a_refusal_is_the_last_line_and_no_traceback(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["test", str(tmp_path)])
    assert ended.value.code == f"error: run: {tmp_path} is no folder of a run: there is no config.yaml in it"
