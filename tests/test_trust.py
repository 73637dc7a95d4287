"""Objects from the settings in a checkpoint: allowed classes are made, everything else is refused before its import."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import pytest
import torch
from torch import nn

from lightning_dqn import DQNLightningModule, ExperienceDataModule
from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.cli import main
from lightning_dqn.experience.prioritized import PrioritizedReplayBuffer
from lightning_dqn.experience.wrappers import UnitObservation
from lightning_dqn.functional import squared_error
from lightning_dqn.learner.heads import DuelingStream, ExpectedHead
from lightning_dqn.learner.networks import MLPTorso, Torso
from lightning_dqn.learner.targets import QLearning, TargetRule
from lightning_dqn.schedules import LinearSchedule, Schedule
from lightning_dqn.trust import CheckpointBuilder, trusted_modules

HERE = __name__


class OwnTorso(MLPTorso):
    """A torso outside of the allowed packages."""


def own_torso(observation_shape: Sequence[int]) -> MLPTorso:
    """A factory that says what it returns."""
    return MLPTorso(observation_shape)


def untyped_torso(observation_shape):
    return MLPTorso(observation_shape)


class Owner:
    """A class with an argument of each kind."""

    def __init__(
        self,
        torso: Callable[[Sequence[int]], Torso] = MLPTorso,
        rule: TargetRule | None = None,
        schedules: Sequence[Schedule] = (),
        sizes: tuple[int, ...] = (),
        pair: tuple[int, Schedule] | None = None,
        by_name: dict[str, Schedule] | None = None,
        text: str = "",
        text_or_factory: str | Callable[..., Any] = "",
        mode: Literal["a", "b"] = "a",
        kind: type[Schedule] = LinearSchedule,
        layer: Callable[[int, int], nn.Module] = nn.Linear,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = squared_error,
        scheduler: Callable[[int], float] | None = None,
        wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
        unknown=None,
    ): ...


def built(trust=(), **settings):
    return CheckpointBuilder("x.ckpt", trust).arguments(Owner, settings, "model")


def named(path, **init_args):
    return {"class_path": path, "init_args": init_args}


LINEAR = named("lightning_dqn.LinearSchedule", start=1.0, end=0.5, decay_steps=3)


# allowed


def test_builder_with_a_factory_returns_the_class_or_a_partial():
    assert built(torso="lightning_dqn.MLPTorso")["torso"] is MLPTorso
    assert built(torso={"class_path": "lightning_dqn.learner.networks.MLPTorso"})["torso"] is MLPTorso
    made = built(torso=named("lightning_dqn.MLPTorso", hidden_sizes=[3]))["torso"]
    assert isinstance(made, partial)
    assert (made.func, made.keywords) == (MLPTorso, {"hidden_sizes": [3]})


def test_builder_with_an_object_returns_an_instance():
    assert type(built(rule=named("lightning_dqn.QLearning"))["rule"]) is QLearning
    assert type(built(rule="lightning_dqn.QLearning")["rule"]) is QLearning
    assert built(rule=None) == {"rule": None}


def test_builder_builds_objects_inside_containers():
    expected = LinearSchedule(1.0, 0.5, 3)
    assert built(schedules=[LINEAR, LINEAR])["schedules"] == [expected, expected]
    assert built(pair=[4, LINEAR])["pair"] == (4, expected)
    assert built(by_name={"a": LINEAR})["by_name"] == {"a": expected}
    assert built(kind="lightning_dqn.LinearSchedule")["kind"] is LinearSchedule


def test_builder_keeps_plain_values_and_turns_lists_into_tuples_where_asked():
    assert built(sizes=[1, 2], text="os.system", mode="a") == {"sizes": (1, 2), "text": "os.system", "mode": "a"}
    assert built(text_or_factory="os.system") == {"text_or_factory": "os.system"}
    assert built(unknown="os.system") == {"unknown": "os.system"}
    assert built(unknown=[1, {"a": None}]) == {"unknown": [1, {"a": None}]}


def test_builder_leaves_out_names_that_the_class_does_not_have():
    assert built(_instantiator="os.system", other=named("os.system")) == {}


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("layer", "torch.nn.Linear"),
        ("layer", "torch.nn.modules.linear.Linear"),
        ("layer", "lightning_dqn.NoisyLinear"),
        ("layer", "lightning_dqn.learner.convolutions.convolution_3x3"),
        ("loss", "lightning_dqn.functional.huber_error"),
        ("wrappers", ["gymnasium.wrappers.FlattenObservation"]),
        ("wrappers", ["lightning_dqn.UnitObservation"]),
    ],
)
def test_builder_with_an_allowed_name_returns_it(field, path):
    assert built(**{field: path})[field]


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "RMSprop", "RAdam", "Adafactor", "NAdam", "LBFGS"])
def test_builder_takes_every_optimizer_by_its_own_path(optimizer):
    kind = getattr(torch.optim, optimizer)
    builder = CheckpointBuilder("x.ckpt")
    for path in (f"torch.optim.{optimizer}", f"{kind.__module__}.{optimizer}"):
        assert builder.arguments(DQNLightningModule, {"optimizer": path}, "model") == {"optimizer": kind}


# refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("torso", "timeit.timeit"),
        ("torso", named("timeit.timeit", stmt="1")),
        ("torso", "os.system"),
        ("torso", "MLPTorso"),
        ("torso", "lightning_dqn"),
        ("torso", f"{HERE}.OwnTorso"),
        ("torso", "lightning_dqn.__main__.main"),
        ("torso", "lightning_dqn.files.os.system"),
        ("torso", "lightning_dqn_of_another.Torso"),
        ("torso", "../x.yaml"),
        ("torso", "x.yaml"),
        ("torso", ""),
        ("layer", "torch.hub.load"),
        ("layer", "torch.package.PackageImporter"),
        ("layer", "torch.nn.functional.linear"),
        ("loss", "torch.nn.functional.smooth_l1_loss"),
        ("loss", "lightning_dqn.experience.envs.make_env"),
        ("wrappers", ["lightning_dqn.experience.envs.make_env"]),
        ("wrappers", [named("gymnasium.wrappers.RecordVideo", video_folder="x")]),
        ("wrappers", [named("gymnasium.wrappers.TransformObservation", func="os.system")]),
        ("scheduler", "os.getenv"),
        ("rule", named("lightning_dqn.QLearning.__class__")),
        ("unknown", named("lightning_dqn.QLearning")),
        ("unknown", [{"a": named("os.system")}]),
        ("text_or_factory", named("os.system")),
        ("text", named("os.system")),
        ("sizes", [named("os.system")]),
        ("schedules", [{"class_path": ["os", "system"]}]),
        ("schedules", [{"class_path": None}]),
    ],
)
def test_builder_with_a_name_outside_is_refused_with_the_cure(field, value):
    with pytest.raises(
        CheckpointError, match=rf"^ckpt_path: x\.ckpt names .* for model\.{field}.*--trust \S*\.?"
    ) as refused:
        built(**{field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("torso", "lightning_dqn.QLearning"),
        ("torso", "lightning_dqn.learner.networks.nn.Module"),
        ("rule", "lightning_dqn.MLPTorso"),
        ("rule", named("torch.nn.Linear", in_features=1, out_features=1)),
        ("schedules", ["torch.optim.Adam"]),
        ("kind", "lightning_dqn.MLPTorso"),
        ("layer", "torch.optim.Adam"),
        ("wrappers", ["lightning_dqn.MLPTorso"]),
        ("wrappers", ["gymnasium.wrappers.vector.FlattenObservation"]),
    ],
)
def test_builder_with_a_class_of_another_kind_is_refused(field, value):
    with pytest.raises(CheckpointError, match=rf"^ckpt_path: x\.ckpt names .* for model\.{field}.*, which takes only"):
        built(**{field: value})


@pytest.mark.parametrize(
    "value",
    [
        {"class_path": "lightning_dqn.QLearning", "call": "os.system"},
        {"class_path": "lightning_dqn.QLearning", "init_args": ["os.system"]},
        {"class_path": "lightning_dqn.QLearning", "dict_kwargs": 3},
    ],
)
def test_builder_with_settings_that_describe_no_object_is_refused(value):
    with pytest.raises(CheckpointError, match=r"^ckpt_path: x\.ckpt has settings for model\.rule that describe no"):
        built(rule=value)


def test_builder_refuses_before_the_import(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value in ("harmful.Torso", named("harmful.Torso"), "harmful.deeper.Torso"):
        with pytest.raises(CheckpointError, match=r"--trust harmful on the command line\.$"):
            built(torso=value)
    assert "harmful" not in sys.modules


def test_builder_refuses_names_inside_of_the_arguments_of_allowed_classes():
    for head in (
        named("lightning_dqn.ExpectedHead", stream=named("os.system", command="true")),
        named("lightning_dqn.ExpectedHead", loss="os.system"),
        {"class_path": "lightning_dqn.ExpectedHead", "dict_kwargs": {"layer": "timeit.timeit"}},
        named("lightning_dqn.ExpectedHead", layer=named("torch.nn.Linear", device=named("os.system"))),
    ):
        with pytest.raises(CheckpointError, match=r"names \S+ for model\.head\.\w+"):
            CheckpointBuilder("x.ckpt").arguments(DQNLightningModule, {"head": head}, "model")


# trusted


@pytest.mark.parametrize("trust", [(HERE,), HERE, ["other", HERE.partition(".")[0]]])
def test_builder_with_a_trusted_module_takes_its_classes_and_annotated_functions(trust):
    assert built(trust, torso=f"{HERE}.OwnTorso")["torso"] is OwnTorso
    assert built(trust, torso=f"{HERE}.own_torso")["torso"] is own_torso
    assert type(built(trust, unknown=named(f"{HERE}.OwnTorso", observation_shape=[3]))["unknown"]) is OwnTorso


@pytest.mark.parametrize("path", [f"{HERE}.untyped_torso", f"{HERE}.Owner", f"{HERE}.sys.exit", f"{HERE}.named"])
def test_builder_with_a_trusted_module_still_refuses_other_kinds(path):
    with pytest.raises(CheckpointError, match=r"which takes only: Torso|--trust"):
        built([HERE], torso=path)


def test_builder_with_a_trusted_module_does_not_trust_what_it_imported(monkeypatch):
    with pytest.raises(CheckpointError, match="--trust"):
        built([HERE], wrappers=[f"{HERE}.gym.Wrapper"])


def test_builder_with_a_missing_trusted_module_says_where_to_start():
    with pytest.raises(
        CheckpointError,
        match=r"^ckpt_path: x\.ckpt names missing\.Torso for model\.torso, which cannot be imported: No module named "
        r"'missing'\. Start in the folder that holds the module, or put that folder on PYTHONPATH\.$",
    ):
        built(["missing"], torso="missing.Torso")


def test_trusted_modules_are_separated_by_commas():
    assert trusted_modules(" a.b, c,,") == ("a.b", "c")
    assert trusted_modules("") == ()


# checkpoints


@pytest.fixture
def checkpoint(tmp_path, make_trainer):
    """A checkpoint with many kinds of objects, and a function that saves it with other settings."""
    data = ExperienceDataModule(
        "CartPole-v1",
        eval_episodes=1,
        wrappers=[UnboundedObservation],
        buffer=PrioritizedReplayBuffer(500, beta=LinearSchedule(0.4, 1.0, 100)),
    )
    head = partial(ExpectedHead, stream=partial(DuelingStream, hidden_sizes=(5,)), loss=squared_error)
    model = DQNLightningModule(data.observation_shape, data.num_actions, head=head, target_rule=QLearning())
    trainer = make_trainer()
    trainer.validate(model, data, verbose=False)
    path = tmp_path / "x.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)

    def save(model=(), data=(), trained_on="CartPole-v1"):
        state = {"env_id": trained_on, "env_steps": 0}
        torch.save(
            content
            | {"hyper_parameters": content["hyper_parameters"] | dict(model)}
            | {"datamodule_hyper_parameters": content["datamodule_hyper_parameters"] | dict(data)}
            | {"ExperienceDataModule": state},
            path,
        )
        (tmp_path / "x.ckpt.sha256").unlink(missing_ok=True)
        return path

    return save


class UnboundedObservation(gym.ObservationWrapper):
    """A wrapper outside of the allowed packages."""

    def observation(self, observation):
        return observation


def test_load_from_checkpoint_rebuilds_module_and_data(checkpoint):
    module = DQNLightningModule.load_from_checkpoint(checkpoint())
    assert type(module.target_rule) is QLearning
    assert type(module.online.head.stream) is DuelingStream
    data = ExperienceDataModule.load_from_checkpoint(checkpoint(), trust=[HERE], batch_size=7)
    assert list(data.wrappers) == [UnboundedObservation]
    assert data.buffer.beta == LinearSchedule(0.4, 1.0, 100)
    assert data.batch_size == 7


def test_load_from_checkpoint_does_not_read_what_is_given(checkpoint):
    path = checkpoint(model={"optimizer": named("timeit.timeit", stmt="1")}, data={"env_id": "timeit.timeit"})
    module = DQNLightningModule.load_from_checkpoint(path, optimizer=torch.optim.SGD)
    assert module.optimizer_factory is torch.optim.SGD
    data = ExperienceDataModule.load_from_checkpoint(path, env_id="CartPole-v1", wrappers=[UnitObservation])
    assert data.env_id == "CartPole-v1"


@pytest.mark.parametrize(
    "env_id", ["timeit.timeit", "os:system", "antigravity:X-v0", "GymV26Environment-v0", "this.that", "ALE/x:y", "a:"]
)
def test_load_from_checkpoint_with_an_environment_outside_of_the_registry_is_refused(checkpoint, env_id):
    path = checkpoint(data={"env_id": env_id, "wrappers": []})
    with pytest.raises(CheckpointError, match=r"^ckpt_path: \S+ names \S+ for data\.env_id, which .*--trust"):
        ExperienceDataModule.load_from_checkpoint(path)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "settings",
    [
        {"env_id": named("os.system", command="true")},
        {"env_id": named("gymnasium.envs.registration.EnvSpec", id="A-v0", entry_point="os:system")},
        {"env_kwargs": {"render_mode": named("os.system", command="true")}},
        {"wrappers": ["os.system"]},
        {"buffer": named("os.system", command="true")},
        {"buffer": named("lightning_dqn.PrioritizedReplayBuffer", beta=named("os.system", command="true"))},
    ],
)
def test_load_from_checkpoint_with_data_settings_outside_is_refused(checkpoint, settings):
    path = checkpoint(data={"wrappers": []} | settings)
    with pytest.raises(CheckpointError, match=r"^ckpt_path: \S+ names \S+ for data\.\w+"):
        ExperienceDataModule.load_from_checkpoint(path)


def test_load_from_checkpoint_with_a_trusted_environment_makes_it(checkpoint):
    own = "tests.environments.Chain"
    path = checkpoint(data={"env_id": own, "wrappers": []}, trained_on=own)
    assert ExperienceDataModule.load_from_checkpoint(path, trust=["tests"]).env_id == own


def test_load_from_checkpoint_with_a_settings_file_is_refused(checkpoint):
    for kind in (DQNLightningModule, ExperienceDataModule):
        with pytest.raises(ValueError, match=r"^hparams_file: .*in the checkpoint"):
            kind.load_from_checkpoint(checkpoint(), hparams_file="hparams.yaml")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_command_line_with_a_checkpoint_that_names_something_outside_is_refused(checkpoint, command):
    path = checkpoint(model={"optimizer": named("timeit.timeit", stmt="1")})
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: \S+ names timeit\.timeit for model\.optimizer"):
        main([command, "--data.env_id=CartPole-v1", f"--ckpt_path={path}", "--trainer.logger=false"])


def test_command_line_with_a_trusted_module_evaluates_its_network(checkpoint, capsys):
    path = checkpoint(model={"torso": f"{HERE}.OwnTorso"})
    arguments = ["validate", "--data.env_id=CartPole-v1", "--data.eval_episodes=1", f"--ckpt_path={path}"]
    with pytest.raises(SystemExit, match=rf"--trust {HERE.partition('.')[0]} on the command line"):
        main(arguments)
    main([*arguments, f"--trust={HERE}", "--trainer.logger=false"])
    assert "val/return" in capsys.readouterr().out
