import csv
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from lightning_dqn import DQNLightningModule, ExperienceDataModule, LearningCurve, ReplayBuffer
from lightning_dqn.cli import DQNCLI, main
from lightning_dqn.experience.envs import make_env
from lightning_dqn.shipped import find_config
from tests.runs import QUIET, SMALL, snapshot

SHORT = [
    *SMALL,
    *QUIET,
    "--trainer.log_every_n_steps=2",
    "--data.steps_per_epoch=128",
    "--data.eval_episodes=3",
    "--data.eval_num_envs=2",
]
FIT = ["fit", "--config=cartpole", *SHORT]
RUN = Path("runs/cartpole/version_0")


def rows(run: Path = RUN) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def steps_of(version: int) -> list[float]:
    return [float(row["env_steps"]) for row in rows(Path(f"runs/cartpole/version_{version}"))]


def validated(version: int) -> list[float]:
    run = Path(f"runs/cartpole/version_{version}")
    return [float(row["env_steps"]) for row in rows(run) if row["val/return"]]


def test_the_score_is_said_with_the_episodes_it_is_of(capsys):
    main([*FIT, "--data.eval_episodes=3", "--data.eval_num_envs=1", "--trainer.limit_val_batches=2"])
    assert "(mean of 2 greedy episodes)" in capsys.readouterr().out


def test_fit_leaves_metrics_configuration_and_checkpoints_and_says_where(capsys):
    main(FIT)
    said = capsys.readouterr().out
    assert "val/return" in said
    assert "after 320 env steps" in said
    assert f"files in {RUN}" in said
    assert f"--ckpt_path {RUN}/checkpoints/latest.ckpt" in said
    saved = {path.name for path in (RUN / "checkpoints").iterdir()}
    safe = {"best.ckpt.sha256", "best.previous.ckpt", "latest.ckpt.sha256", "latest.previous.ckpt"}
    assert {"best.ckpt", "latest.ckpt", "replay"} <= saved <= {"best.ckpt", "latest.ckpt", "replay"} | safe
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["data"]["env_id"] == "CartPole-v1"
    assert config["data"]["steps_per_epoch"] == 128
    names = set(rows()[0])
    train = {"train/loss", "train/td_error", "train/q_value"}
    collect = {"collect/return", "collect/episode_length", "collect/epsilon"}
    validation = {"val/return", "val/return_iqm", "val/episode_length"}
    assert train | collect | validation | {"env_steps"} <= names
    assert all(row["env_steps"] for row in rows())


def test_fit_leaves_a_curve_and_a_film_and_says_where(capsys):
    main(FIT)
    said = capsys.readouterr().out
    assert f"learning curve in {RUN}/learning_curve.png\n" in said
    assert f"an episode in {RUN}/episode.gif (return 20.0 in the first 20 steps, seed" in said
    assert Image.open(RUN / "learning_curve.png").format == "PNG"
    assert Image.open(RUN / "episode.gif").n_frames > 2


def test_pictures_are_switched_off_and_set_like_everything_else(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("video: null\ncurve: null\n")
    main([*FIT, "--config=mine.yaml"])
    main([*FIT, "--video.max_steps=7"])
    assert not {path.name for path in RUN.iterdir()} & {"learning_curve.png", "episode.gif"}
    assert capsys.readouterr().out.count("an episode in") == 1
    assert yaml.safe_load((RUN / "config.yaml").read_text())["video"] is None
    config = yaml.safe_load((RUN.parent / "version_1/config.yaml").read_text())
    assert config["video"]["init_args"]["max_steps"] == 7
    assert (RUN.parent / "version_1/episode.gif").is_file()


def test_best_holds_weights_only_and_latest_everything():
    main(FIT)
    best = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    latest = torch.load(RUN / "checkpoints/latest.ckpt", weights_only=True)
    assert "optimizer_states" not in best
    assert latest["optimizer_states"]
    assert latest["replay"]["name"] == f"replay/{latest['run']['id']}-320"
    assert (snapshot(RUN / "checkpoints", 320) / "manifest.json").is_file()


def test_fit_goes_on_from_latest_with_its_replay():
    main(FIT)
    main([*FIT, "--trainer.max_epochs=4", f"--ckpt_path={RUN}/checkpoints/latest.ckpt"])
    assert steps_of(0) == steps_of(1)[: len(steps_of(0))]
    assert min(steps_of(1)[len(steps_of(0)) :]) > 320
    assert max(steps_of(1)) == 64 + 4 * 128


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_is_evaluated(command, capsys):
    main(FIT)
    capsys.readouterr()
    main([command, *FIT[1:], f"--ckpt_path={RUN}/checkpoints/best.ckpt"])
    prefix = "val" if command == "validate" else "test"
    assert f"{prefix}/return" in capsys.readouterr().out
    (evaluated,) = [row for row in rows(Path("runs/cartpole/version_1")) if row.get(f"{prefix}/return")]
    assert float(evaluated["env_steps"]) in (192, 320)  # the clock of the checkpoint
    assert float(evaluated[f"{prefix}/episode_length"]) <= 20


def test_legal_actions_are_a_setting_of_the_environment(capsys):
    taxi = [*FIT[1:], "--data.env_id=Taxi-v4", "--data.action_mask=action_mask"]
    main(["fit", *taxi])
    assert yaml.safe_load((RUN / "config.yaml").read_text())["data"]["action_mask"] == "action_mask"
    kept = {path.name for path in snapshot(RUN / "checkpoints", 320).rglob("*action_mask*")}
    assert len(kept) == 2
    main(["test", *taxi, f"--ckpt_path={RUN}/checkpoints/best.ckpt"])
    assert "test/return" in capsys.readouterr().out


def test_predict_plays_episodes(capsys):
    main(FIT)
    main(["predict", *FIT[1:], f"--ckpt_path={RUN}/checkpoints/best.ckpt"])
    said = capsys.readouterr().out
    assert said.count("return") >= 3


def test_a_later_configuration_is_laid_over_an_earlier_one(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {gamma: 0.5}\n")
    cli = DQNCLI(["--config=" + find_config("cartpole"), f"--config={mine}"], run=False)
    assert cli.datamodule.gamma == 0.5
    assert cli.datamodule.env_id == "CartPole-v1"


def test_user_classes_come_by_dotted_path():
    cli = DQNCLI(
        [
            "--data.env_id=gymnasium.envs.classic_control.CartPoleEnv",
            "--data.wrappers+={class_path: gymnasium.wrappers.TimeLimit, init_args: {max_episode_steps: 7}}",
            "--model.optimizer=torch.optim.RMSprop",
            "--model.optimizer.lr=0.25",
            "--model.torso=lightning_dqn.learner.networks.MLPTorso",
            "--model.torso.hidden_sizes=[5]",
        ],
        run=False,
    )
    assert cli.model.configure_optimizers().param_groups[0]["lr"] == 0.25
    assert cli.model.online.torso.num_features == 5
    data = cli.datamodule
    made = make_env(data.env_id, data.env_kwargs, data.wrappers)
    made.reset()
    assert [made.step(step % 2)[3] for step in range(7)][-1]


def test_a_single_callback_needs_no_list():
    cli = DQNCLI(["--data.env_id=CartPole-v1", "--trainer.callbacks=lightning_dqn.LearningCurve"], run=False)
    assert sum(isinstance(callback, LearningCurve) for callback in cli.trainer.callbacks) == 2  # with that of `curve`


def test_print_config_is_a_configuration(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config=cartpole", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["env_id"] == "CartPole-v1"
    assert config["collect"]["explorer"]["class_path"] == "lightning_dqn.EpsilonGreedy"


def test_help_explains_the_fields(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Environment steps per iteration, summed over environments" in said
    assert "Gradient steps between two moves of the target network" in said
    assert "--collect.explorer" in said


BAD = {
    "data.env_id": ["--data.env_id=CartPool-v1"],
    "data.env_id ": ["--data.env_id=Pendulum-v1"],
    "data.batch_size": ["--data.batch_size=64", "--data.buffer.capacity=50"],
    "data.n_step": ["--data.n_step=0"],
    "data.gamma": ["--data.gamma=1.01"],
    "collect.explorer.epsilon": [
        "--collect.explorer={class_path: EpsilonGreedy, init_args: {epsilon: {class_path: LinearSchedule, "
        "init_args: {start: 1.0, end: -0.1, decay_steps: 10}}}}"
    ],
    "data.learning_starts": ["--data.learning_starts=100000"],
    "trainer.accumulate_grad_batches": ["--trainer.accumulate_grad_batches=2"],
    "trainer.precision": ["--trainer.precision=bf16-true"],
    "data.buffer.capacity": ["--data.buffer.capacity=1000000000000"],
    "ckpt_path": ["--ckpt_path=nowhere.ckpt"],
    "model.target_update_period": ["--model.target_update_period=0"],
    "video.max_steps": ["--video.max_steps=0"],
    "trainer.callbacks": ["--trainer.callbacks+=lightning_dqn.ExperienceCollector"],
}


@pytest.mark.parametrize("field", BAD)
def test_bad_input_names_the_field_before_anything_is_made(field, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("made before the input was checked")

    monkeypatch.setattr("lightning_dqn.experience.datamodule.make_envs", forbidden)
    if field != "data.buffer.capacity":
        monkeypatch.setattr(ReplayBuffer, "allocate", forbidden)
    with pytest.raises(SystemExit) as ended:
        main([*FIT, *BAD[field]])
    assert str(ended.value).startswith(f"error: {field.strip()}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data.num_envs=x"], "error: data.num_envs: Expected a <class 'int'>. Got value: x"),
        (["--data.buffer.capacity=x"], "error: data.buffer.capacity: Expected a <class 'int'>. Got value: x"),
        (["--model.torso.hidden_sizes=[a]"], "error: model.torso.hidden_sizes: Expected a <class 'int'>. Got value: a"),
        (["--data.buffer.capacty=5"], "error: data.buffer: Option 'capacty' is not accepted"),
        (["--model.head=NoSuch"], "error: model.head: Expected a dot import path string: NoSuch"),
        (["--data.eval_see=4"], "error: unrecognized arguments: --data.eval_see=4"),
    ],
)
def test_what_the_parser_refuses_is_one_line(more, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*FIT, *more])
    assert ended.value.code == 2
    assert capsys.readouterr().err == said + "\n"


def test_null_is_no_number(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {num_envs: null}\n")
    with pytest.raises(SystemExit, match=r"^error: data\.num_envs must not be null$"):
        main([*FIT, "--config=mine.yaml"])


def test_a_checkpoint_of_another_environment_is_refused():
    main(FIT)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config=acrobot", *SHORT, f"--ckpt_path={RUN}/checkpoints/latest.ckpt"])
    assert "ckpt_path" in str(ended.value)
    assert "data.env_id" in str(ended.value)


def test_an_environment_of_equal_shape_is_refused_by_name():
    gym.register("CartPoleTwin-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
    main(FIT)
    with pytest.raises(SystemExit, match="ckpt_path: the checkpoint was trained on CartPole-v1"):
        main([*FIT, "--data.env_id=CartPoleTwin-v0", f"--ckpt_path={RUN}/checkpoints/latest.ckpt"])


def test_checkpointing_can_be_switched_off():
    main([*FIT, "--trainer.enable_checkpointing=false"])
    assert not (RUN / "checkpoints").exists()


def test_fast_dev_run_takes_one_batch(capsys):
    main([*FIT, "--trainer.fast_dev_run=true"])
    assert "after 80 env steps" in capsys.readouterr().out  # one batch of warm-up, one iteration


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_python_dash_m_is_the_command(tmp_path):
    ended = run(sys.executable, "-m", "lightning_dqn", *FIT, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "val/return" in ended.stdout


def test_an_error_is_one_line_and_a_failing_exit_code(tmp_path):
    ended = run(sys.executable, "-m", "lightning_dqn", "fit", "--config=cartpole", "--data.gamma=2", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == "error: data.gamma must be in [0, 1], got 2.0"
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_the_last_epoch_is_validated_and_saved_whatever_the_period(capsys):
    main([*FIT, "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"])
    assert "after 448 env steps" in capsys.readouterr().out
    assert [row["env_steps"] for row in rows() if row["val/return"]] == ["320.0", "448.0"]
    assert torch.load(RUN / "checkpoints/latest.ckpt", weights_only=True)["ExperienceDataModule"]["env_steps"] == 448


@pytest.mark.slow
def test_weights_alone_are_refused_to_go_on_from():
    main(FIT)
    with pytest.raises(SystemExit, match=r"error: ckpt_path: .*best\.ckpt holds weights alone"):
        main([*FIT, f"--ckpt_path={RUN}/checkpoints/best.ckpt"])


def test_a_damaged_checkpoint_is_replaced_by_the_one_before():
    main([*FIT, "--trainer.max_epochs=3"])
    latest = RUN / "checkpoints/latest.ckpt"
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"ckpt_path: .*latest\.ckpt .*latest\.previous\.ckpt"):
        main([*FIT, "--trainer.max_epochs=4", f"--ckpt_path={latest}"])
    assert validated(1) == [64 + epoch * 128 for epoch in (1, 2, 3, 4)]
    latest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"ckpt_path: .*latest\.ckpt .*latest\.previous\.ckpt"):
        main(["test", *FIT[1:], f"--ckpt_path={latest}"])
    (RUN / "checkpoints/latest.previous.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"error: ckpt_path: .*latest\.ckpt"):
        main([*FIT, f"--ckpt_path={latest}"])


def test_the_command_line_decides_when_a_run_goes_on():
    main(FIT)
    latest = f"--ckpt_path={RUN}/checkpoints/latest.ckpt"
    main([*FIT, "--trainer.max_epochs=3", "--model.target_update_period=7", latest])
    config = yaml.safe_load(Path("runs/cartpole/version_1/config.yaml").read_text())
    assert config["model"]["target_update_period"] == 7


def test_settings_that_differ_from_the_checkpoints_are_named(recwarn):
    main(FIT)
    latest = f"--ckpt_path={RUN}/checkpoints/latest.ckpt"
    recwarn.clear()
    main([*FIT, "--trainer.max_epochs=3", latest])
    assert not [warning for warning in recwarn if "other settings" in str(warning.message)]
    more = ["--model.optimizer.init_args.lr=0.5", "--data.batch_size=32"]
    main([*FIT, "--trainer.max_epochs=3", *more, latest])
    (said,) = [str(warning.message) for warning in recwarn if "other settings" in str(warning.message)]
    assert "model.optimizer.lr was 0.002 and is now 0.5" in said
    assert "data.batch_size was 64 and is now 32" in said
    assert said.count(" was ") == 3


def test_the_last_run_is_found_by_itself():
    with pytest.raises(SystemExit, match=r"error: ckpt_path: there is no latest\.ckpt in runs/cartpole to go on from"):
        main([*FIT, "--ckpt_path=last"])
    main([*FIT, "--ckpt_path=last_if_any"])
    for version, path in ((1, "last"), (2, "last_if_any")):
        main([*FIT, f"--trainer.max_epochs={version + 2}", f"--ckpt_path={path}"])
        assert validated(version) == [64 + epoch * 128 for epoch in range(1, version + 3)]
    main(["test", *FIT[1:], "--ckpt_path=last"])


# with 16 instead of 8 iterations an epoch the one that was complete has 8 to go, hence 96 steps and not 64
@pytest.mark.parametrize(("before", "after", "steps"), [(16, 4, 96), (4, 16, 64), (16, 16, 64)])
@pytest.mark.slow
def test_a_run_goes_on_at_the_pace_it_is_given(before, after, steps):
    main([*FIT, f"--data.train_frequency={before}"])
    latest = f"--ckpt_path={RUN}/checkpoints/latest.ckpt"
    more = ["--data.steps_per_epoch=64", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]
    main([*FIT, *more, f"--data.train_frequency={after}", latest])
    learned = [row["env_steps"] for row in rows(Path("runs/cartpole/version_1")) if row["train/loss"]]
    seen = [step for step in map(float, learned) if step > 320]
    assert seen[-1] == 320 + steps
    assert all(later - earlier <= max(after, 8) for earlier, later in pairwise(seen))


@pytest.mark.slow
def test_the_command_finds_modules_in_the_folder_it_is_started_in(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "from gymnasium.wrappers import TimeLimit\n"
        "def make(): return TimeLimit(CartPoleEnv(), 20)\n"
    )
    command = Path(sys.executable).with_name("lightning-dqn")
    ended = run(str(command), *FIT, "--data.env_id=mine.make", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("more", [{}, {"auto_configure_optimizers": False}], ids=["", "none of Lightning's"])
def test_plain_lightning_cli_fits_and_refuses_an_optimizer_over_the_target(tmp_path, more):
    shapes = ["--model.observation_shape=[4]", "--model.num_actions=2", "--data.env_id=CartPole-v1"]

    def fit(*arguments):
        LightningCLI(DQNLightningModule, ExperienceDataModule, args=["fit", *SHORT, *shapes, *arguments], **more)

    fit()
    assert list(tmp_path.rglob("*.ckpt"))
    refused = r"model\.optimizer: this run's optimizer holds the target network as well"
    # without Lightning's own optimizer there is no such option
    kind, said = (SystemExit, "2") if more else (ValueError, refused)
    with pytest.raises(kind, match=said):
        fit("--optimizer=Adam")


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_processes_that_would_lose_their_experience_are_refused_before_they_are_started(strategy):
    arguments = ["fit", "--config=cartpole", "--trainer.accelerator=cpu", "--trainer.devices=2"]
    with pytest.raises(SystemExit) as refused:
        main([*arguments, f"--trainer.strategy={strategy}"])
    said = str(refused.value)
    assert said.startswith("error: trainer.strategy: DDPStrategy by ")
    assert "\n" not in said
