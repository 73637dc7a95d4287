"""The algorithm files for images: their numbers are the papers', and they train."""

import pytest
import torch

from lightning_dqn import ConvolutionalTorso
from lightning_dqn.cli import DQNCLI
from tests.presets import ALGORITHMS, IMAGE_PRESETS

SMALL = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
data:
  env_id: tests.environments.Pictures
  env_kwargs: {{shape: {shape}}}
  buffer:
    class_path: lightning_dqn.ReplayBuffer
  eval_episodes: 2
  eval_num_envs: 2
  seed: 0
"""
FEWER = {
    "num_envs": 4,
    "train_frequency": 4,
    "gradient_steps": 1,
    "batch_size": 8,
    "learning_starts": 50,
    "steps_per_epoch": 800,
    "buffer.capacity": 400,
}
# the smallest that the torso takes, or nearly
SHAPES = {"btr": (4, 12, 12), "iqn_atari": (4, 36, 36), "rainbow_atari": (4, 36, 36)}
MINATAR = (4, 10, 10)


@pytest.fixture
def make_cli(tmp_path):
    """The command line over a small environment of images, with one of the presets."""

    def make(preset, *args, run=False, shape=(4, 36, 36), below=()):
        (tmp_path / "small.yaml").write_text(SMALL.format(shape=list(shape)))
        configs = [f"--config={name}" for name in (*below, "small.yaml", preset)]
        return DQNCLI([*["fit"] * run, *configs, *args], run=run)

    return make


def test_what_brings_a_network_for_images_is_told_from_what_does_not():
    assert set(SHAPES) <= set(IMAGE_PRESETS)
    assert {"dqn", "rainbow", "iqn"} <= set(ALGORITHMS)


@pytest.mark.parametrize("preset", IMAGE_PRESETS)
def test_a_preset_runs_200_iterations(preset, make_cli):
    fewer = [f"--data.{name}={value}" for name, value in FEWER.items()]
    narrow = "--model.head.init_args.stream.init_args.hidden_sizes=[64]"  # most of the time would be the optimizer's

    cli = make_cli(preset, *fewer, narrow, run=True, shape=SHAPES.get(preset, MINATAR))

    model, trainer = cli.model, cli.trainer
    assert trainer.global_step == model.gradient_steps == 200
    assert len(cli.datamodule.buffer) == 400
    assert isinstance(model.online.torso, ConvolutionalTorso)
    assert 0 <= float(trainer.callback_metrics["val/return"]) <= 10
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    moments = [state["exp_avg"] for state in trainer.optimizers[0].state.values()]
    assert len(moments) == len(list(model.online.parameters()))
    assert all(moment.abs().sum() > 0 for moment in moments)


def numbers_of(cli):
    """What decides how a run goes, as far as the papers say it, by one name for all."""
    model, data, explorer = cli.model, cli.datamodule, cli.config_init.collect.explorer
    optimizer = model.configure_optimizers()
    groups = optimizer.param_groups
    head, buffer = model.online.head, data.buffer
    epsilon = getattr(explorer, "epsilon", lambda *_: 0.0)
    numbers = {
        "optimizer": type(optimizer).__name__,
        "lr": groups[0]["lr"],
        "eps": groups[0]["eps"],
        "betas": groups[0]["betas"],
        "weight_decay": groups[0]["weight_decay"],
        "clip": cli.trainer.gradient_clip_val,
        "clip_by": cli.trainer.gradient_clip_algorithm,
        "rule": type(model.target_rule).__name__,
        "head": type(head).__name__,
        "target": (model.target_update_period, model.target_update_rate),
        "batch_size": data.batch_size,
        "n_step": data.n_step,
        "gamma": data.gamma,
        "starts": data.learning_starts,
        "replay": (type(buffer).__name__, buffer.capacity),
        "epsilon": [epsilon(steps, 0) for steps in (0, 50_000, 500_000, 1_000_000, 2_000_000, 24_999_999, 25_000_000)],
    }
    if hasattr(buffer, "alpha"):
        beta = [buffer.beta(steps, 0) for steps in (0, 1_000_000, 25_000_000, 50_000_000)]
        numbers["priorities"] = (buffer.alpha, beta)
    if hasattr(head, "support"):
        numbers["atoms"] = (len(head.support), head.support[0].item(), head.support[-1].item())
    if hasattr(head, "num_cosines"):
        numbers["fractions"] = (head.num_samples, head.num_target_samples, head.num_policy_samples, head.num_cosines)
        numbers["kappa"] = head.kappa
    noise = {
        round((module.weight_sigma[0, 0] * module.weight.shape[1] ** 0.5).item(), 6)
        for module in head.modules()
        if hasattr(module, "weight_sigma")
    }
    if noise:
        numbers["sigma"] = noise
    return numbers


ADAM = {"optimizer": "Adam", "betas": (0.9, 0.999), "weight_decay": 0}
UNCLIPPED, CLIPPED = {"clip": None, "clip_by": None}, {"clip": 10.0, "clip_by": None}  # None is by norm, in Lightning
NUMBERS = {
    "rainbow_atari": ADAM
    | CLIPPED
    | {
        "lr": 0.0000625,
        "eps": 0.00015,
        "rule": "DoubleQLearning",
        "head": "CategoricalHead",
        "target": (32_000 // 4 // 4, 1.0),
        "batch_size": 32,
        "n_step": 3,
        "gamma": 0.99,
        "starts": 80_000 // 4,
        "replay": ("PrioritizedReplayBuffer", 1_000_000),
        "epsilon": [0.0] * 7,
        "priorities": (0.5, pytest.approx([0.4, 0.412, 0.7, 1.0])),
        "atoms": (51, -10.0, 10.0),
        "sigma": {0.5},
    },
    "rainbow_minatar": ADAM
    | CLIPPED
    | {
        "lr": 0.00025,
        "eps": 0.01 / 32,
        "rule": "DoubleQLearning",
        "head": "CategoricalHead",
        "target": (1_000 // 4, 1.0),
        "batch_size": 32,
        "n_step": 3,
        "gamma": 0.99,
        "starts": 5_000,
        "replay": ("PrioritizedReplayBuffer", 100_000),
        "epsilon": pytest.approx([1.0, 0.55, 0.1, 0.1, 0.1, 0.1, 0.1]),
        "priorities": (0.5, pytest.approx([0.4, 0.7, 1.0, 1.0])),
        "atoms": (51, -10.0, 10.0),
        "sigma": {0.1},
    },
    "iqn_atari": ADAM
    | UNCLIPPED
    | {
        "lr": 0.00005,
        "eps": 0.01 / 32,
        "rule": "QLearning",
        "head": "ImplicitQuantileHead",
        "target": (10_000 // 4, 1.0),
        "batch_size": 32,
        "n_step": 1,
        "gamma": 0.99,
        "starts": 50_000,
        "replay": ("ReplayBuffer", 1_000_000),
        "epsilon": pytest.approx([1.0, 0.9505, 0.505, 0.01, 0.01, 0.01, 0.01]),
        "fractions": (64, 64, 32, 64),
        "kappa": 1.0,
    },
    "btr": ADAM
    | CLIPPED
    | {
        "lr": 0.0001,
        "eps": 0.005 / 256,
        "rule": "MunchausenQLearning",
        "head": "ImplicitQuantileHead",
        "target": (500, 1.0),
        "batch_size": 256,
        "n_step": 3,
        "gamma": 0.997,
        "starts": 200_000,
        "replay": ("PrioritizedReplayBuffer", 2**20),
        "epsilon": pytest.approx([1.0, 0.97525, 0.7525, 0.505, 0.01, 0.01, 0.0]),
        "priorities": (0.2, pytest.approx([0.2, 0.2, 0.2, 0.2])),
        "fractions": (8, 8, 8, 64),
        "kappa": 1.0,
        "sigma": {0.5},
    },
}


@pytest.mark.parametrize("preset", [preset for preset in NUMBERS if preset != "rainbow_minatar"])
def test_the_numbers_are_those_of_the_paper(preset, make_cli):
    assert numbers_of(make_cli(preset, shape=(4, 84, 84))) == NUMBERS[preset]


def test_the_numbers_of_rainbow_on_minatar_are_those_that_its_head_says(make_cli):
    cli = make_cli("rainbow_minatar", shape=MINATAR, below=["minatar"])

    assert numbers_of(cli) == NUMBERS["rainbow_minatar"]
    data = cli.datamodule
    assert (data.num_envs, data.train_frequency, data.gradient_steps) == (32, 32, 8)


def test_beyond_the_rainbow_acts_in_64_environments_and_learns_once_for_64_steps(make_cli):
    cli = make_cli("btr", shape=(4, 84, 84))
    data, rule = cli.datamodule, cli.model.target_rule

    assert (data.num_envs, data.train_frequency, data.gradient_steps) == (64, 64, 1)
    assert (rule.temperature, rule.alpha, rule.log_policy_min) == (0.03, 0.9, -1.0)
    # those of 18 actions (tests/test_convolutions.py), less the advantages of 15 and their noise
    assert sum(p.numel() for p in cli.model.online.parameters()) == 5_278_918 - 2 * 15 * (512 + 1)


@pytest.mark.parametrize("preset", IMAGE_PRESETS)
def test_a_preset_for_images_says_so_of_what_is_none(preset, make_cli):
    with pytest.raises(ValueError, match=r"model\.torso: \w+ needs images \(channels, height, width\), got \(4,\)"):
        make_cli(preset, "--data.env_id=CartPole-v1", "--data.env_kwargs={}")
