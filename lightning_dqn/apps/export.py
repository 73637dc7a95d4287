"""The command ``lightning-dqn export``: the network of a checkpoint as a file that needs none of this package."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_dqn.apps.command import Arguments, Refusal, check_output_file, errors_only, needed
from lightning_dqn.apps.loading import load
from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.files import NewFile, scratch_directory
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.learner.networks import QValues

TOLERANCE = 1e-5
_EPISODES = 8
_LONGEST = 64  # steps of an episode that observations are taken from
INPUT, OUTPUT = "observation", "q_values"


def command(arguments: list[str]) -> None:
    """``lightning-dqn export --ckpt_path X --output policy.onnx``.

    Args:
        arguments: Of the command line.

    Raises:
        Refusal: If a library is missing, the checkpoint cannot be loaded, or the exported network says something
            else than ours; nothing is left then.
    """
    parser = Arguments("export", "Writes the network of a checkpoint as ONNX or torch.export, and checks it.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="best.ckpt, latest.ckpt or any other")
    parser.add_argument("--output", type=Path, required=True, help="policy.onnx, or policy.pt2 for torch.export")
    parser.add_trust()
    options = parser.parse_args(arguments)
    output: Path = options.output
    if output.suffix not in _FORMATS:
        raise Refusal(f"--output must end in {' or '.join(_FORMATS)}, got {output.name}")
    check_output_file(output)
    if output.suffix == ".onnx":
        for library in ("onnx", "onnxscript", "onnxruntime"):
            needed(library, "export")
    short = {"eval_episodes": _EPISODES, "eval_num_envs": _EPISODES, "max_eval_steps": _LONGEST}
    data, module = load(options.ckpt_path, options.trust, **short)
    seen = observations(data, module)
    difference = export(module, seen, output)
    shape = ", ".join(map(str, ["B", *seen.shape[1:]]))
    print(f"{INPUT} [{shape}] {seen.dtype} -> {OUTPUT} [B, {module.hparams['num_actions']}] float32")
    env_id = data.state_dict()["env_id"]
    print(f"largest difference to the module on {len(seen)} observations of {env_id}: {difference:.1e}")
    print(f"written to {output}")


def export(module: DQNLightningModule, observed: NDArray[Any], output: Path) -> float:
    """Writes the network, once it is known that what was written says the same.

    Args:
        module: Ours.
        observed: Observations of its environment, ``[E, *O]``.
        output: The file; its ending is the format.

    Returns:
        The largest difference of a Q-value.

    Raises:
        Refusal: If that is more than 1e-5 (of the largest Q-value, where that is above 1: float32 has seven digits).
    """
    policy, (write, read) = QValues(module.online.eval()), _FORMATS[output.suffix]
    with torch.no_grad():
        ours = policy(torch.from_numpy(observed)).numpy()
    with scratch_directory(output.absolute()) as scratch:
        path = scratch / output.name
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), errors_only("torch.onnx"):
                warnings.simplefilter("ignore")  # of the exporter's own inside
                write(policy, torch.from_numpy(observed[:2]), path)
                run = read(path)
                # one by one and all at once: a batch is of any size
                theirs = [run(observed), np.concatenate([run(observed[[k]]) for k in range(len(observed))])]
        except Exception as error:  # of three libraries, and of networks that cannot be exported
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise Refusal(f"export: {output.name} cannot be made, and nothing was written: {why}") from error
        difference = max(float(np.abs(each - ours).max()) for each in theirs)
        allowed = TOLERANCE * max(1.0, float(np.abs(ours).max()))
        if not difference < allowed:
            raise Refusal(
                f"export: {output.name} would differ from the module by {difference:.1e} (allowed: {allowed:.1e}); "
                "nothing was written"
            )
        with NewFile(output) as file:
            file.write(path.read_bytes())
    return difference


def observations(data: ExperienceDataModule, module: DQNLightningModule) -> NDArray[Any]:
    """What the environments show while the network plays its evaluation episodes, ``[E, *O]``.

    Args:
        data: Short episodes of it are played.
        module: Who plays.
    """
    seen: list[NDArray[Any]] = []
    module.eval()

    def policy(observation: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        seen.append(observation.copy())
        return module.act(observation, mask).numpy()

    for episodes in data.val_dataloader():
        episodes.play(policy)
    data.close()
    return np.concatenate(seen)


def _to_onnx(policy: QValues, example: Tensor, path: Path) -> None:
    torch.onnx.export(
        policy,
        (example,),
        path,
        dynamo=True,
        external_data=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        verbose=False,
    )


def _from_onnx(path: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda observation: session.run([OUTPUT], {INPUT: observation})[0]


def _to_pt2(policy: QValues, example: Tensor, path: Path) -> None:
    exported = torch.export.export(policy, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})
    torch.export.save(exported, path)


def _from_pt2(path: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    module = torch.export.load(path).module()
    return lambda observation: module(torch.from_numpy(observation)).detach().numpy()


_FORMATS = {".onnx": (_to_onnx, _from_onnx), ".pt2": (_to_pt2, _from_pt2)}
