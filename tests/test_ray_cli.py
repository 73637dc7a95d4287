"""The command of runs on Ray: what it takes, whom it asks, and what it says where Ray is not there."""

import subprocess
import sys

import pytest

from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.ray.cli import _collector, main


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--data.n_step=3"], "ExperienceCollector"),
        (["--collect.num_actors=0"], "ExperienceCollector"),
        (["--collect.num_actors=2"], "RayCollector"),
        (["--collect.num_actors", "2"], "RayCollector"),
        (["--config", "actors.yaml"], "RayCollector"),
        (["--config=actors.yaml", "--collect.num_actors=0"], "ExperienceCollector"),
        (["--config=plain.yaml"], "ExperienceCollector"),
    ],
)
def test_actors_are_there_when_some_are_asked_for(tmp_path, arguments, name):
    pytest.importorskip("ray")
    (tmp_path / "actors.yaml").write_text("collect: {num_actors: 2}\n")
    (tmp_path / "plain.yaml").write_text("collect:\n")
    found = _collector(arguments)
    assert found.__name__ == name
    assert issubclass(found, ExperienceCollector)


WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from lightning_dqn.ray.cli import main
for command in ("fit", "tune"):
    try:
        main([command])
    except SystemExit as refused:
        print(refused.code)  # words, which Python prints before it ends with exit code 1
"""


def test_without_ray_there_is_one_line_with_the_cure():
    ended = subprocess.run([sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True)
    assert ended.stdout == 2 * 'error: ray is not installed: python -m pip install "lightning-dqn[ray]"\n'
    assert ended.stderr == ""


def test_other_commands_are_where_they_were():
    with pytest.raises(SystemExit, match=r"^error: python -m lightning_dqn.ray fit or tune; everything else"):
        main(["validate"])


def test_what_is_wrong_with_the_configuration_is_said_before_ray_is_started(monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    with pytest.raises(SystemExit):
        main(["fit", "--config=cartpole", "--num_workers=2", "--data.nstep=3"])
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit, match=r"^error: --num_workers must be at least 1, got 0$"):
        main(["fit", "--config=cartpole", "--num_workers=0"])
    with pytest.raises(SystemExit, match=r"^error: config: 'cartpol' is neither a file nor one of the shipped"):
        main(["fit", "--config=cartpol", "--num_workers=2"])
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: there is no latest.ckpt in"):
        main(["fit", "--config=cartpole", "--num_workers=2", "--ckpt_path=last", "--trainer.default_root_dir=none"])
