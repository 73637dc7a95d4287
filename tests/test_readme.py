"""What the README says is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_dqn.shipped import shipped_configs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_block_is_two_commands_that_do_all_set_up():
    assert blocks("bash")[0].splitlines() == [
        "python -m pip install -c constraints.txt -e . && lightning-dqn fit --config configs/env/cartpole.yaml",
        'python -m pip install -c constraints.txt -e ".[dev]" && python -m pytest -n logical',
    ]


def test_gate_runs_the_two_commands_in_this_order():
    gate = (ROOT / ".ci/run").read_text().replace(" -q", "")
    first, second = blocks("bash")[0].splitlines()
    assert gate.index(first) < gate.index(second)


def test_the_python_use_is_six_lines_and_runs(tmp_path):
    program = blocks("python")[0]
    assert len([line for line in program.splitlines() if line]) == 5
    short = program.replace("max_epochs=20", "max_epochs=20, fast_dev_run=True")
    ended = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_every_configuration_named_is_shipped():
    named = re.findall(r"--config (?:configs/\w+/)?(\w+)", README)
    assert named
    assert set(named) <= set(shipped_configs())


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()


def test_every_class_named_in_the_slots_is_public():
    import lightning_dqn

    table = README[README.index("| slot |") : README.index("`model.optimizer` and")]
    classes = set(re.findall(r"`([A-Z]\w+)`", table))
    assert {"ExpectedHead", "ReplayBuffer", "EpsilonGreedy"} <= classes
    assert all(hasattr(lightning_dqn, name) for name in classes)


def test_every_metric_named_is_logged():
    logged = "".join(path.read_text() for path in (ROOT / "lightning_dqn").glob("**/*.py"))
    metrics = re.findall(r"`((?:train|collect)/\w+)`", README)
    assert metrics
    for metric in metrics:
        family, name = metric.split("/")
        assert metric in logged or (family == "collect" and f'"{name}"' in logged)
