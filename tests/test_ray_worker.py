"""What runs in a worker, as far as it needs no cluster."""

import sys

import pytest

ray = pytest.importorskip("ray")

from lightning_dqn.ray.search import _work  # noqa: E402
from lightning_dqn.ray.worker import FieldError, begin_in  # noqa: E402


def test_a_folder_that_other_machines_do_not_see_is_named_by_a_search_too(tmp_path):
    with pytest.raises(FieldError, match=r"^config: .*/here is not on .* \(No such file or directory\); start from"):
        _work(print, None, str(tmp_path / "here"), None)


def test_a_worker_begins_where_the_command_was_started_without_arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["worker.py", "--node-ip-address=127.0.0.1"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    begin_in(str(tmp_path / "elsewhere"))
    assert sys.path[0] == str(tmp_path / "elsewhere")  # where the user's own environments are
    assert sys.argv == ["worker.py"]
