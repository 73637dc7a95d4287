"""What runs in a worker, as far as it needs no cluster."""

import pytest

ray = pytest.importorskip("ray")

from lightning_dqn.collector import ExperienceCollector  # noqa: E402
from lightning_dqn.ray.learners import learn  # noqa: E402
from lightning_dqn.ray.worker import FieldError  # noqa: E402


def test_a_folder_that_other_machines_do_not_see_is_named(tmp_path):
    orders = {"args": [], "folder": str(tmp_path / "here"), "collector": ExperienceCollector, "line": None}
    with pytest.raises(FieldError, match=r"^config: .*/here is not on .* \(No such file or directory\); start from"):
        learn(orders)
