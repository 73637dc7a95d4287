"""The command that searches: from files to the best configuration, and on after a kill."""

import operator
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from PIL import Image
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lightning_dqn.apps.space import read_search
from lightning_dqn.apps.trial import ParsedFit
from lightning_dqn.cli import main
from lightning_dqn.loggers import read_rows
from lightning_dqn.shipped import find_config
from tests.runs import SMALL

optuna = pytest.importorskip("optuna")
TUNE = ["tune", "--config=cartpole", *SMALL, "--search=cartpole", "--pruner=none", "--seeds=1", "--output=out"]
SEARCHES = Path(find_config("cartpole", "search")).parent


@pytest.fixture(autouse=True)
def _no_deprecation_warnings(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


def study():
    with FileLock("out/study.db.lock"):  # whoever opens a database that is just being made would make it as well
        return optuna.load_study(study_name="search", storage="sqlite:///out/study.db")


@pytest.mark.slow
def test_the_best_configuration_is_one_that_fit_takes(capsys):
    main([*TUNE, "--trials=2"])
    best = study().best_trial
    said = capsys.readouterr().out
    assert f"| {best.number} | {best.value:.1f} |" in said
    assert "lightning-dqn fit --config out/best.yaml" in said
    text = Path("out/best.yaml").read_text()
    assert text.startswith(f"# trial {best.number} of 2: val/return {best.value:.1f}, one seed\n")
    assert yaml.safe_load(text)["data"]["env_id"] == "CartPole-v1"
    config = ParsedFit(["--config=out/best.yaml"]).config
    assert config.data.n_step == best.params["data.n_step"]
    assert config.model.optimizer.init_args.lr == best.params["model.optimizer.init_args.lr"]
    assert config.trainer.max_epochs == 2
    again = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: again, name: '', version: ''}}"
    main(["fit", "--config=out/best.yaml", "--seed_everything=0", again, "--video=null"])
    scores = [float(row["val/return"]) for row in read_rows(Path("again/metrics.csv")) if "val/return" in row]
    assert scores[-1] == pytest.approx(best.value)
    assert Image.open("out/history.png").size == (1040, 585)
    runs = {path.parent.name for path in Path("out").glob("trial_*/seed_0/metrics.csv") for path in [path.parent]}
    assert runs == {"trial_0", "trial_1"}


def test_what_is_wrong_is_one_line_before_anything_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong.yaml").write_text("space: {data.nstep: {low: 1, high: 2}}\n")
    wrong = [
        (["--search=wrong.yaml"], r"^error: space.data.nstep is no setting; .*; did you mean data.n_step\?$"),
        (["--search=none"], r"^error: search: 'none' is neither a file nor one of the shipped .*cartpole"),
        (["--config=none"], r"^error: config: 'none' is neither a file nor one of the shipped"),
        (["--workers=0"], r"^error: --workers must be at least 1, got 0$"),
        (["--output=wrong.yaml"], r"^error: --output: wrong.yaml cannot be a folder \(File exists\); .* by --output$"),
        (["--sampler=best"], r"^error: search.sampler must be one of grid, random, tpe, got best$"),
    ]
    for arguments, said in wrong:
        with pytest.raises(SystemExit, match=said):
            main([*TUNE, *arguments])
    with pytest.raises(SystemExit):
        main([*TUNE, "--no-such-option"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --no-such-option\n"
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        SystemExit, match=r'^error: optuna is not installed: python -m pip install "lightning-dqn\[search'
    ):
        main(TUNE)
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_search_in_which_everything_fails_says_why(tmp_path):
    (tmp_path / "wrong.yaml").write_text("space: {data.batch_size: {choices: [100000, 200000]}}\n")
    with pytest.raises(
        SystemExit, match=r"^error: no trial went to its end; ValueError: data.batch_size \(.00000\) is"
    ):
        main([*TUNE, "--search=wrong.yaml", "--trials=1"])
    assert not Path("out/best.yaml").exists()


def test_the_sweep_of_weights_and_biases_is_the_same_search():
    sweep = yaml.safe_load((SEARCHES / "cartpole_sweep.yaml").read_text())
    space = read_search(SEARCHES / "cartpole.yaml").space
    parameters = sweep["parameters"]
    seeds = parameters.pop("seed_everything")
    assert seeds["values"] == [0, 1]
    assert parameters.keys() == space.keys()
    for name, domain in space.items():
        if domain.choices is not None:
            assert parameters[name] == {"values": domain.choices}
        else:
            kind = "log_uniform_values" if domain.log else "int_uniform"
            assert parameters[name] == {"distribution": kind, "min": domain.low, "max": domain.high}
    assert sweep["metric"] == {"name": "val/return", "goal": "maximize"}
    # what an agent makes of it is a command that fit takes
    assert sweep["command"][-1] == "${args}"
    for end in (0, -1):
        values = {"seed_everything": seeds["values"][end], **{name: each.ends[end] for name, each in space.items()}}
        drawn = {"args": {name: {"value": value} for name, value in values.items()}}
        command = [*sweep["command"][:-1], *create_sweep_command_args(drawn)["args"]]
        assert command[:2] == ["lightning-dqn", "fit"]
        config = ParsedFit(command[2:]).config
        assert {name: operator.attrgetter(name)(config) for name in values} == values


def test_the_agent_of_the_page_is_one_of_the_project_of_the_sweep():
    page = (Path(__file__).parent.parent / "docs/search.md").read_text()
    (address,) = re.findall(r"^wandb agent (\S+)$", page, re.MULTILINE)
    project = yaml.safe_load((SEARCHES / "cartpole_sweep.yaml").read_text())["project"]
    assert address.split("/") == ["ENTITY", project, "ID"]


def children(process):
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # beside workers there is a process that tracks their resources
    return [int(pid) for pid in listed if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def finished():
    return [t for t in study().trials if t.state.name == "COMPLETE"] if Path("out/study.db").exists() else []


def wait_for(count, process, seconds=300):
    end = time.monotonic() + seconds
    while len(finished()) < count:
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_twenty_trials_on_two_workers_survive_kills():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    command = [sys.executable, "-m", "lightning_dqn", *TUNE, "--trials=20", "--workers=2", "--grace=6"]

    def start():
        with Path("log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    process = start()
    wait_for(4, process)
    os.kill(children(process)[0], signal.SIGKILL)  # one worker: the other goes on, and repeats its trial
    wait_for(9, process)
    os.killpg(process.pid, signal.SIGKILL)  # everything
    process.wait()
    before = finished()
    assert 9 <= len(before) < 20
    process = start()
    assert process.wait(600) == 0, Path("log").read_text()
    trials = study().trials
    after = {trial.number: trial for trial in trials}
    assert all(after[trial.number] == trial for trial in before)
    assert len(finished()) == 20
    assert all(trial.state.name in ("COMPLETE", "FAIL") for trial in trials)
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert 1 <= len(lost) <= 3
    assert all(any(trial.params == again.params for again in finished()) for trial in lost)
    assert Path("out/best.yaml").is_file()
    assert {path.name for path in Path("out").glob("*.png")} == {"history.png", "importance.png"}
