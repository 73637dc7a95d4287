"""The command ``lightning-dqn card``: a run as a folder for others, with a model card in Hugging Face's form."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from lightning_dqn.apps import report
from lightning_dqn.apps.command import Arguments, Refusal
from lightning_dqn.apps.report import Evaluation
from lightning_dqn.apps.runs import Run, read_run
from lightning_dqn.files import new_directory

_CONFIG = "config.yaml"
_EXPORTS = ("policy.onnx", "policy.pt2")
_TAKEN_ALONG = (_CONFIG, report.FILE, "learning_curve.png", "episode.gif", *_EXPORTS)
# what tells agents apart at first sight, as far as a run has it
_SETTINGS = {
    "head": "model.head.class_path",
    "target rule": "model.target_rule.class_path",
    "torso": "model.torso.class_path",
    "replay": "data.buffer.class_path",
    "capacity": "data.buffer.init_args.capacity",
    "n-step": "data.n_step",
    "discount": "data.gamma",
    "optimizer": "model.optimizer.class_path",
    "learning rate": "model.optimizer.init_args.lr",
    "batch size": "data.batch_size",
    "environments": "data.num_envs",
}


def command(arguments: list[str]) -> None:
    """``lightning-dqn card RUN --output FOLDER``.

    Args:
        arguments: Of the command line.

    Raises:
        Refusal: If the folder is there already, the run has no test, or weights or what was exported of them are not
            those that were tested; nothing is left then.
    """
    parser = Arguments("card", "Writes a folder with weights, configuration, pictures and a model card of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run that was tested")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    options = parser.parse_args(arguments)
    run, output = read_run(options.run), options.output
    tested = report.read(run.folder / report.FILE)
    if tested.checkpoint is None:
        raise Refusal(f"run: {run.folder / report.FILE} does not say which checkpoint was tested")
    if os.path.lexists(output):
        raise Refusal(f"--output: {output} is there already; choose another folder")
    weights = run.checkpoint(tested.checkpoint.stem)
    taken = [name for name in _TAKEN_ALONG if (run.folder / name).is_file()]
    _check_that_they_belong_together(run.folder, weights, [name for name in _EXPORTS if name in taken])
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with new_directory(output.absolute()) as folder:
        for path in (*(run.folder / name for name in taken), weights):
            shutil.copyfile(path, folder / path.name)
        _begin_anew(folder / _CONFIG)
        (folder / "README.md").write_text(card(run, tested, output.absolute().name, taken))
    print(f"written to {output}: README.md, {weights.name}, {', '.join(taken)}")


def card(run: Run, tested: Evaluation, name: str, files: list[str]) -> str:
    """The model card.

    Args:
        run: What was trained.
        tested: What it is worth.
        name: Of the model.
        files: What is beside the card, apart from the weights.
    """
    checkpoint = "" if tested.checkpoint is None else tested.checkpoint.name
    settings = {label: run.settings[key] for label, key in _SETTINGS.items() if run.settings.get(key) is not None}
    rows = [f"| {label} | {_short(value)} |" for label, value in settings.items()]
    pictures = {"learning_curve.png": "return over environment steps", "episode.gif": "a greedy episode"}
    parts = [
        f"---\n{yaml.safe_dump(_metadata(tested, name), sort_keys=False)}---",
        f"# {name}",
        f"A Q-network for {tested.env_id}, trained with lightning-dqn for {tested.env_steps:,} environment steps "
        f"(seed {run.seed}).",
        "## Score",
        report.describe([tested]),
        *[f"![{said}]({file})" for file, said in pictures.items() if file in files],
        "## Use",
        "```python\nfrom lightning_dqn import DQNLightningModule\n\n"
        f'model = DQNLightningModule.load_from_checkpoint("{checkpoint}").eval()\n'
        "action = model.act(observation[None])  # of one observation\n```",
    ]
    if "policy.onnx" in files:
        parts.append("`policy.onnx` needs ONNX Runtime alone: `observation` in, `q_values` out.")
    parts += ["## Training", "| setting | |\n|---|---|\n" + "\n".join(rows)]
    parts.append("`config.yaml` has every setting: `lightning-dqn fit --config config.yaml` trains it again.")
    return "\n\n".join(parts) + "\n"


def _check_that_they_belong_together(folder: Path, weights: Path, exports: list[str]) -> None:
    """By their times: a folder that a second run has written into holds the score of the first."""
    written = weights.stat().st_mtime
    if (folder / report.FILE).stat().st_mtime < written:
        raise Refusal(
            f"run: {weights} is newer than {report.FILE}, which has its score; `lightning-dqn test {folder}` makes it "
            "anew"
        )
    for name in exports:
        if (folder / name).stat().st_mtime < written:
            raise Refusal(f"run: {weights} is newer than {folder / name}; export it anew, or remove the latter")


def _begin_anew(config: Path) -> None:
    """Has a configuration not go on from a checkpoint that others do not have."""
    config.write_text(re.sub(r"^ckpt_path:.*$", "ckpt_path: null", config.read_text(), flags=re.MULTILINE))


def _metadata(tested: Evaluation, name: str) -> dict[str, Any]:
    score = f"{tested.returns.mean():.2f} +/- {tested.returns.std():.2f}"  # as the leaderboards read it
    metric = {"type": "mean_reward", "value": score, "name": "mean_reward", "verified": False}
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    result = {"task": task, "dataset": {"name": tested.env_id, "type": tested.env_id}, "metrics": [metric]}
    return {
        "library_name": "lightning-dqn",
        "tags": ["reinforcement-learning", "deep-reinforcement-learning", "dqn", "lightning", tested.env_id],
        "model-index": [{"name": name, "results": [result]}],
    }


def _short(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) else str(value)
