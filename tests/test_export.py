"""Exported networks: they say what the module says, or are not there."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_dqn import (
    CategoricalHead,
    DQNLightningModule,
    DuelingStream,
    ExperienceDataModule,
    ImpalaTorso,
    ImplicitQuantileHead,
    MinAtarTorso,
    MLPTorso,
    NatureTorso,
    NoisyLinear,
    QuantileHead,
    SpectralConv2d,
)
from lightning_dqn.apps import export as exports
from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.export import export, observations
from lightning_dqn.cli import main
from lightning_dqn.learner.networks import QValues
from tests.environments import Pictures

PAGE = (Path(__file__).parent.parent / "docs/shipping.md").read_text()
SMALL_MLP = partial(MLPTorso, hidden_sizes=(8,))


@pytest.fixture
def checkpoint(tmp_path, make_trainer, make_model):
    """Of CartPole, with weights and data settings; and its model."""
    data = ExperienceDataModule("CartPole-v1", num_envs=2, learning_starts=16, steps_per_epoch=16, batch_size=8, seed=0)
    model, trainer = make_model(data), make_trainer()
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    return tmp_path / "best.ckpt", model


def network(torso=SMALL_MLP, shape=(4,), **slots):
    torch.manual_seed(0)
    return DQNLightningModule(shape, 3, torso=torso, **slots)


def numbers(shape=(4,), dtype=np.float32, count=9):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(count, *shape)).astype(np.float32)
        if dtype == np.float32
        else (rng.integers(2 if dtype is bool else 256, size=(count, *shape)).astype(dtype))
    )


def test_torch_export_says_what_the_module_says(checkpoint, capsys):
    path, model = checkpoint
    main(["export", f"--ckpt_path={path}", "--output=policy.pt2"])
    said = capsys.readouterr().out
    assert "observation [B, 4] float32 -> q_values [B, 2] float32\n" in said
    assert re.search(r"largest difference to the module on \d+ observations of CartPole-v1: \d\.\de-\d\d\n", said)
    exported = torch.export.load("policy.pt2").module()
    for count in (1, 3, 70):
        rows = torch.from_numpy(numbers(count=count))
        assert torch.allclose(exported(rows), model.eval()(rows), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "slots",
    [
        {"head": ImplicitQuantileHead},
        {"head": partial(CategoricalHead, layer=NoisyLinear, stream=DuelingStream)},
        {"head": QuantileHead},
    ],
    ids=["implicit quantiles", "noisy dueling categories", "quantiles"],
)
def test_every_head_can_be_exported(slots, tmp_path):
    assert export(network(**slots), numbers(), tmp_path / "policy.pt2") < 1e-5


@pytest.mark.parametrize(
    ("torso", "shape", "dtype"),
    [(NatureTorso, (4, 36, 36), np.uint8), (MinAtarTorso, (4, 10, 10), bool), (ImpalaTorso, (4, 12, 12), np.uint8)],
)
def test_images_go_in_as_the_environment_gives_them(torso, shape, dtype, tmp_path):
    images, model = numbers(shape, dtype), network(torso, shape)
    assert export(model, images, tmp_path / "policy.pt2") < 1e-5
    exported = torch.export.load(tmp_path / "policy.pt2").module()
    assert torch.allclose(exported(torch.from_numpy(images)), model.eval()(torch.from_numpy(images)), atol=1e-5)


RAINBOW = {"head": partial(CategoricalHead, layer=NoisyLinear, stream=DuelingStream)}


@pytest.mark.parametrize(
    ("torso", "shape", "dtype", "slots"),
    [
        (MinAtarTorso, (4, 10, 10), bool, RAINBOW),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (SMALL_MLP, (4,), np.float32, {}),
                (SMALL_MLP, (4,), np.float32, {"head": ImplicitQuantileHead}),
                (SMALL_MLP, (4,), np.float32, {"head": QuantileHead}),
                (SMALL_MLP, (4,), np.float32, RAINBOW),
                (NatureTorso, (4, 36, 36), np.uint8, {}),
                (MinAtarTorso, (4, 10, 10), bool, {}),
                (partial(ImpalaTorso, residual_layer=SpectralConv2d), (4, 12, 12), np.uint8, {}),
            )
        ),
    ],
)
def test_every_network_as_onnx(torso, shape, dtype, slots, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    rows, model = numbers(shape, dtype), network(torso, shape, **slots)
    assert export(model, rows, tmp_path / "policy.onnx") < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]
    (found,) = onnxruntime.InferenceSession(tmp_path / "policy.onnx").run(None, {"observation": rows[:5]})
    with torch.no_grad():
        assert found == pytest.approx(model.eval()(torch.from_numpy(rows[:5])).numpy(), abs=1e-5)


def test_the_example_of_the_docs_needs_onnxruntime_and_gymnasium_alone(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    path, model = checkpoint
    main(["export", f"--ckpt_path={path}", "--output=policy.onnx"])
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "onnxruntime" in block)
    assert len([line for line in example.splitlines() if line]) <= 10
    without = "import sys; sys.modules.update(dict.fromkeys(['torch', 'lightning', 'lightning_dqn']))\n"
    ended = subprocess.run([sys.executable, "-c", without + example], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    data = ExperienceDataModule("CartPole-v1")
    env = data._make_envs(1, "sync")
    observation, total, done = env.reset(seed=0)[0], 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(model.eval().act(observation).numpy())
        total, done = total + reward[0], terminated[0] or truncated[0]
    assert ended.stdout == f"return {total}\n"


def test_observations_are_those_of_the_environment():
    data = ExperienceDataModule(Pictures, eval_episodes=3, eval_num_envs=3, max_eval_steps=5, seed=0)
    seen = observations(data, network(NatureTorso, (4, 36, 36)))
    assert seen.dtype == np.uint8
    assert seen.shape == (15, 4, 36, 36)
    assert len(np.unique(seen.reshape(15, -1), axis=0)) == 15


def test_a_network_that_says_something_else_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def other(policy, example, path):
        changed = QValues(network().online.eval())
        with torch.no_grad():
            changed.online.head.stream.layers[-1].bias += 1e-3
        write(changed, example, path)

    write, read = exports._FORMATS[".pt2"]
    monkeypatch.setitem(exports._FORMATS, ".pt2", (other, read))
    with pytest.raises(
        Refusal, match=r"^export: policy.pt2 would differ from the module by 1.0e-03 \(allowed: 1.0e-05\)"
    ):
        export(network(), numbers(), tmp_path / "policy.pt2")
    assert list(tmp_path.iterdir()) == []


class _Counting(MLPTorso):
    def forward(self, observation):
        return super().forward(observation) * len(observation.tolist())


def test_a_network_that_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "policy.pt2").write_bytes(b"of before")
    with pytest.raises(Refusal, match=r"^export: policy.pt2 cannot be made, and nothing was written: \w+: "):
        export(network(partial(_Counting, hidden_sizes=(8,))), numbers(), tmp_path / "policy.pt2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"of before"]


def test_what_is_wrong_is_one_line(checkpoint, tmp_path, monkeypatch):
    path, _ = checkpoint
    for output, said in {
        "policy.pt": r"^error: --output must end in .onnx or .pt2, got policy.pt$",
        "none/policy.pt2": r"^error: --output: there is no folder none$",
    }.items():
        with pytest.raises(SystemExit, match=said):
            main(["export", f"--ckpt_path={path}", f"--output={output}"])
    with pytest.raises(SystemExit, match=r"^error: ckpt_path: none.ckpt cannot be loaded"):
        main(["export", "--ckpt_path=none.ckpt", "--output=policy.pt2"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match=r'^error: onnxscript is not installed: .* "lightning-dqn\[export\]"$'):
        main(["export", f"--ckpt_path={path}", "--output=policy.onnx"])
    assert not list(tmp_path.glob("policy.*"))
