"""The line between a command and its learners."""

import logging
import signal
import sys

import pytest

ray = pytest.importorskip("ray")

from lightning_dqn.ray.head import Cluster  # noqa: E402
from lightning_dqn.ray.line import open_line, print_said, speaking  # noqa: E402


@pytest.fixture(scope="module")
def line():
    with Cluster():
        yield open_line()


def test_what_is_said_is_printed_once_in_its_order(line, capsys, monkeypatch):
    logger = logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    monkeypatch.setattr(logger, "propagate", False)
    with speaking(line):
        print("one")
        print("two", end="")
        print(" and three", file=sys.stderr)
        logger.warning("four")
        print("five", end="")
    print_said(line)
    assert capsys.readouterr().out == "one\ntwo and three\nfour\nfive\n"
    print_said(line)
    assert capsys.readouterr().out == ""
    print("of this process again")
    assert capsys.readouterr().out == "of this process again\n"


def test_a_signal_reaches_who_waits_and_who_comes_later(line):
    before = line.wait.remote()
    assert ray.wait([before], timeout=0.5)[0] == []
    line.ring.remote(int(signal.SIGTERM))
    assert ray.get([before, line.wait.remote()], timeout=30) == [signal.SIGTERM, signal.SIGTERM]
