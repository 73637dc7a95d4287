"""Hostile settings in 200 checkpoints: none of them runs anything that the file names."""

import contextlib
import importlib
import random
import sys

import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_dqn import DQNLightningModule, ExperienceDataModule
from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.loading import load
from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.cli import main

NUM_FILES = 200
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.mkdir",
    "subprocess.Popen",
    "socket.connect",
    "webbrowser.open",
)
SEEN: list[str] | None = None


def watch(event, arguments):
    """Note what a hostile file could do besides touching its canary; an audit hook cannot be removed."""
    if SEEN is not None and event in WATCHED:
        SEEN.append(f"{event}{arguments}")


sys.addaudithook(watch)


def payloads(canary):
    """Paths that harm if they are imported or called, with the arguments that they are called with."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    return [
        ("harmful.Thing", {}),
        ("harmful.Torso", {"path": str(canary)}),
        ("harmful.deeper.Thing", {}),
        ("os.system", {"command": touch}),
        ("posix.system", {"command": touch}),
        ("subprocess.Popen", {"args": ["touch", str(canary)]}),
        ("subprocess.getoutput", {"cmd": touch}),
        ("timeit.timeit", {"stmt": code, "number": 1}),
        ("timeit.Timer", {"stmt": code, "setup": code}),
        ("builtins.exec", {"source": code}),
        ("builtins.open", {"file": str(canary), "mode": "w"}),
        ("builtins.__import__", {"name": "harmful"}),
        ("importlib.import_module", {"name": "harmful"}),
        ("pydoc.locate", {"path": "harmful.Thing"}),
        ("pathlib.Path.touch", {"self": str(canary)}),
        ("lightning_dqn.apps.command.importlib.import_module", {"name": "harmful"}),
        ("lightning_dqn.files.os.system", {"command": touch}),
        ("lightning_dqn.files.NewFile", {"path": str(canary)}),
        ("lightning_dqn.__main__.main", {}),
        ("lightning_dqn.cli.main", {"args": ["fit", "--config", "cartpole"]}),
        ("lightning_dqn.experience.envs.make_env", {"env_id": "harmful.Thing", "kwargs": {}}),
        ("lightning_dqn.ray.fit_on_ray", {}),
        ("torch.os.system", {"command": touch}),
        ("torch.nn.modules.module.os.system", {"command": touch}),
        ("torch.load", {"f": str(canary)}),
        ("torch.save", {"obj": 1, "f": str(canary)}),
        ("torch.hub.load", {"repo_or_dir": str(canary.parent), "model": "harmful", "source": "local"}),
        ("torch.testing._internal.common_utils.run_tests", {}),
        ("torch.utils.cpp_extension.load_inline", {"name": "x", "cpp_sources": "int x;"}),
        ("gymnasium.make", {"id": "harmful:Thing-v0"}),
        ("gymnasium.envs.registration.EnvSpec", {"id": "A-v0", "entry_point": "harmful:Thing"}),
        ("gymnasium.wrappers.RecordVideo", {"video_folder": str(canary)}),
        ("gymnasium.wrappers.TransformReward", {"func": "harmful.Thing"}),
        ("gymnasium.wrappers.array_conversion.module_name_to_namespace", {"name": "harmful"}),
        ("functools.partial", {"func": "os.system"}),
        ("jsonargparse.CLI", {"components": "harmful.Thing"}),
        ("lightning.pytorch.cli.LightningCLI", {}),
        ("antigravity.fly", {}),
    ]


def written(rng, path, arguments):
    """One of the ways to write an object down, some of them for careless parsers."""
    text = ", ".join(f"{name}: {value!r}" for name, value in arguments.items())
    return rng.choice(
        [
            path,
            {"class_path": path},
            {"class_path": path, "init_args": arguments},
            {"class_path": path, "dict_kwargs": arguments},
            {"class_path": path, **arguments},
            {"class_path": {"class_path": path, "init_args": arguments}},
            f"{{class_path: {path}, init_args: {{{text}}}}}",
            f"{path}({text})",
            f"!!python/object/apply:{path} [{text}]",
        ]
    )


def placed(rng, value):
    """Settings of the model and of the data module with a hostile value somewhere in them."""
    own = {"class_path": "lightning_dqn.MLPTorso", "init_args": {"hidden_sizes": value, "activation": value}}
    layer = {"class_path": "torch.nn.Linear", "init_args": {"device": value}}
    head = {"class_path": "lightning_dqn.ExpectedHead", "init_args": {rng.choice(["stream", "layer", "loss"]): value}}
    rule = {"class_path": "lightning_dqn.MunchausenQLearning", "init_args": {"temperature": value}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {rng.choice(["lr", "momentum", "foreach"]): value}}
    scheduler = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": value}}
    buffer = {"class_path": "lightning_dqn.PrioritizedReplayBuffer", "init_args": {"beta": value}}
    storage = {"class_path": "lightning_dqn.ReplayBuffer", "init_args": {"observations": value}}
    transform = {"class_path": "gymnasium.wrappers.TransformObservation", "init_args": {"func": value}}
    nested = {"class_path": "lightning_dqn.ExpectedHead", "init_args": {"layer": layer}}
    model = [{slot: value} for slot in ("torso", "head", "target_rule", "optimizer", "lr_scheduler")]
    model += [{"torso": own}, {"head": head}, {"head": nested}, {"target_rule": rule}, {"optimizer": optimizer}]
    model += [{"lr_scheduler": scheduler}, {"observation_shape": [value]}, {"num_actions": value}, {"more": value}]
    model += [{"_instantiator": value}, {"_class_path": value}, {"compile_updates": value}]
    data = [{slot: value} for slot in ("env_id", "buffer", "wrappers", "env_kwargs", "storage_dir", "seed", "more")]
    data += [{"wrappers": [value]}, {"wrappers": [transform]}, {"buffer": buffer}, {"buffer": storage}]
    data += [{"env_kwargs": {"render_mode": value}}, {"env_id": "harmful:Thing-v0"}, {"env_id": "harmful.Thing"}]
    return rng.choice([(rng.choice(model), {}), ({}, rng.choice(data)), (rng.choice(model), rng.choice(data))])


def attempt(route, path):
    """Load a checkpoint in one of the ways there are; return what came of it."""
    try:
        if route == "command line":
            main(["validate", "--data.env_id=CartPole-v1", "--data.eval_episodes=1", f"--ckpt_path={path}"])
        elif route == "export and test":
            load(path)
        elif route == "data":
            ExperienceDataModule.load_from_checkpoint(path).close()
        else:
            DQNLightningModule.load_from_checkpoint(path)
    except (CheckpointError, Refusal, SystemExit) as error:
        return "refused" if "\n" not in str(error) and "ckpt_path: " in str(error) else f"unclear: {error}"
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):  # plain values that are of no use
        return "failed"
    return "loaded"


@pytest.fixture
def original(tmp_path, monkeypatch, make_trainer):
    """The content of a checkpoint as it should be, and a module on the path that leaves a canary when imported."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Thing: ...\n")
    importlib.invalidate_caches()
    data = ExperienceDataModule("CartPole-v1", eval_episodes=1)
    model = DQNLightningModule(data.observation_shape, data.num_actions)
    trainer = make_trainer()
    trainer.validate(model, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    yield torch.load(tmp_path / "x.ckpt", weights_only=True)
    sys.modules.pop("harmful", None)


def save_hostile(original, path, model, data):
    hyper_parameters = original["hyper_parameters"] | model
    torch.save(
        original
        | {"hyper_parameters": hyper_parameters}
        | {"datamodule_hyper_parameters": original["datamodule_hyper_parameters"] | data},
        path,
    )
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)


def test_checkpoints_with_hostile_settings_run_nothing(tmp_path, monkeypatch, original):
    global SEEN
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    rng, path, canary = random.Random(0), tmp_path / "x.ckpt", tmp_path / "canary"
    routes, harm = ["model", "data", "export and test"] * 9 + ["command line"], payloads(canary)
    came_of = {"refused": 0, "failed": 0, "loaded": 0}
    for i in range(NUM_FILES):
        name, arguments = harm[i % len(harm)]
        model, data = placed(rng, written(rng, name, arguments))
        save_hostile(original, path, model, data)
        route = routes[i % len(routes)]
        SEEN = [] if route != "command line" else None  # which makes the folder of its own run
        came_of[attempt(route, path)] += 1
        assert not SEEN, (SEEN, route, model, data)
        assert not canary.exists(), (route, model, data)
        assert not {"harmful", "antigravity"} & set(sys.modules), (route, model, data)
    SEEN = None
    assert sum(came_of.values()) == NUM_FILES
    assert came_of["refused"] > NUM_FILES // 4
    print(f"\n{NUM_FILES} hostile checkpoints, 0 side effects: {came_of}")


@pytest.mark.parametrize("name", ["harmful.Thing", "timeit.timeit", "os.system"])
def test_hostile_settings_would_harm_a_loader_that_trusts_them(tmp_path, original, name):
    """Show that the files are hostile: Lightning's own loader calls what they name."""
    arguments = dict(payloads(tmp_path / "canary"))[name]
    save_hostile(original, tmp_path / "x.ckpt", {"torso": {"class_path": name, "init_args": arguments}}, {})
    with contextlib.suppress(Exception):  # the harm is done by then
        LightningModule.load_from_checkpoint.__func__(DQNLightningModule, tmp_path / "x.ckpt", weights_only=True)
    assert (tmp_path / "canary").exists()
