import pytest

from lightning_dqn.complaints import in_one_line, last_line, what_is_wrong

OF_A_PARSER = """\
Parser key "data":
  Problem with given class_path 'lightning_dqn.ReplayBuffer':
    Parser key "capacity":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'int'>]
      Errors:
        - Expected a <class 'int'>. Got value: many
      Given value type: <class 'str'>"""


def test_the_inside_of_a_parser_is_left_out_and_the_whole_name_is_said():
    assert in_one_line(OF_A_PARSER) == "data.capacity: Expected a <class 'int'>. Got value: many"


def test_what_is_said_twice_is_said_once():
    assert in_one_line('Parser key "a":\n  - too large\n  - too large\n  - too red') == "a: too large; too red"


def test_a_message_without_a_field_stays_in_one_line():
    assert in_one_line("unrecognized\n  arguments: --x") == "unrecognized arguments: --x"


@pytest.mark.parametrize("field", ["data.num_envs", "model", "trainer.strategy", "ckpt_path", "collect.overlap"])
def test_an_error_that_names_a_field_is_about_it(field):
    assert what_is_wrong(ValueError(f"{field}: no")) == f"{field}: no"


def test_the_cause_is_found_below_what_a_parser_wrapped_round_it():
    error = ValueError("Problem with given class_path")
    error.__cause__ = ValueError("data.gamma must be in [0, 1], got 2")
    assert what_is_wrong(error) == "data.gamma must be in [0, 1], got 2"


@pytest.mark.parametrize("said", ["the environment broke down", "database: no", "modelling failed", ""])
def test_other_errors_are_not(said):
    assert what_is_wrong(RuntimeError(said)) is None


@pytest.mark.parametrize(
    ("said", "line"),
    [("Traceback:\n  in a.py\n  ValueError: no  \n\n", "ValueError: no"), ("no", "no"), (" \n", "RuntimeError")],
)
def test_a_traceback_comes_to_its_last_line(said, line):
    assert last_line(RuntimeError(said)) == line
