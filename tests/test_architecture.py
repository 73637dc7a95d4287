"""How much a newcomer reads from ``env.step`` to ``optimizer.step``, counted."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parent.parent

PATH = {
    "collector": [
        "ExperienceCollector.on_train_batch_end",
        "ExperienceCollector._act",
        "ExperienceCollector._collect",
        "ExperienceCollector._store",
        "ExperienceCollector._explore",
        "ExperienceCollector._choose",
    ],
    "experience/stepping": [
        "SeededEnvs.step",
        "SeededEnvs._next_observation",
        "SeededEnvs.start_episodes",
        "SeededEnvs._begin",
    ],
    "experience/n_step": ["NStepAccumulator.add"],
    "experience/replay": [
        "ReplayBuffer.remember",
        "ReplayBuffer.add",
        "ReplayDataset.__iter__",
        "ReplayBuffer.sample",
        "ReplayBuffer._gather",
    ],
    "experience/observations": ["WholeObservations.remember", "WholeObservations.put", "WholeObservations.take"],
    "experience/rows": ["HostRows.put", "HostRows.take", "Rows._parts"],
    "learner/module": [
        "DQNLightningModule.on_train_batch_start",
        "DQNLightningModule.optimizer_step",
        "DQNLightningModule._gradients",
        "DQNLightningModule.training_step",
        "DQNLightningModule.losses",
        "DQNLightningModule.update_target",
    ],
    "learner/networks": ["QNetwork.forward", "MLPTorso.forward"],
    "learner/heads": ["ExpectedHead.forward", "LinearStream.forward"],
    "learner/distributions": [
        "ExpectedReturn.at",
        "ExpectedReturn.backup",
        "ExpectedReturn.loss",
        "ExpectedReturn.td_error",
    ],
    "learner/targets": ["DoubleQLearning.__call__"],
    "functional": ["take_action", "bellman_backup", "huber_error"],
}


def lines_of_code(path: Path, names: list[str]) -> int:
    """Lines in the bodies of functions that hold code: no docstrings, comments or blank lines."""
    source = path.read_text()
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    with_code = {
        line for token in tokens if token.type not in ignored for line in range(token.start[0], token.end[0] + 1)
    }
    count = 0
    found = set()
    for top in ast.parse(source).body:
        prefix = f"{top.name}." if isinstance(top, ast.ClassDef) else ""
        for node in top.body if isinstance(top, ast.ClassDef) else [top]:
            if isinstance(node, ast.FunctionDef) and prefix + node.name in names:
                found.add(prefix + node.name)
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                count += len(with_code & set(range(body[0].lineno, node.end_lineno + 1)))
    assert found == set(names)
    return count


def test_the_path_is_as_short_as_the_architecture_page_says():
    counts = {room: lines_of_code(ROOT / "lightning_dqn" / f"{room}.py", functions) for room, functions in PATH.items()}
    page = (ROOT / "docs/architecture.md").read_text()
    said = int(re.search(r"about (\d+) lines of it", " ".join(page.split())).group(1))
    assert sum(counts.values()) == said, counts
    assert len(counts) <= 12
