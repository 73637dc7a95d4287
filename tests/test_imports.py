"""Who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_dqn"

MAY_IMPORT = {
    # know nothing of ours
    "transition": set(),
    "functional": set(),
    "schedules": set(),
    "exploration": {"schedules"},
    "masks": set(),
    "wrappers": set(),
    "atari": set(),
    "atari_scores": set(),
    "minatar": set(),
    "checked": set(),
    "serial": set(),
    "envs": {"atari", "checked", "masks", "minatar", "serial"},
    "autoreset": set(),
    "reset_probe": {"autoreset"},
    "stepping": {"autoreset", "checked", "envs", "faults", "masks", "reset_probe"},
    "evaluation": {"stepping"},
    "evaluation_envs": {"autoreset", "envs"},
    "settings": set(),
    "files": set(),
    "memory": {"files"},
    "checkpoint_file": {"files"},
    "checkpoint_io": {"checkpoint_file", "files"},
    "shipped": set(),
    "complaints": set(),
    "segments": {"files", "rows"},
    "write_behind": {"files", "rows", "segments"},
    "checkpoint": {"files", "pieces", "rows", "segments"},
    "snapshots": {"checkpoint", "files", "pieces", "rows", "segments", "write_behind"},
    "hparams": set(),
    "trust": {"checkpoint_file", "checkpoint_io", "hparams"},
    "loggers": {"files", "forgiving"},
    "rng": set(),
    "ranks": set(),
    "rewind": {"stepping"},
    "faults": set(),
    "signals": {"checkpoint_io", "ranks"},
    "epoch_checkpoint": {"signals"},
    "run_folder": {"checkpoint_file", "ranks"},
    "threads": set(),
    "watch": set(),
    "forgiving": set(),
    "camera": set(),
    "watchers": set(),
    "strategies": set(),
    "requirements": {"strategies"},
    "resumed_settings": {"hparams"},
    "optimizers": set(),
    "averages": set(),
    "skipping": set(),
    # the learner
    "distributions": {"functional"},
    "targets": {"distributions", "functional", "transition"},
    "heads": {"distributions", "functional"},
    "categorical": {"distributions", "functional", "heads"},
    "quantile": {"distributions", "functional", "heads"},
    "noisy": set(),
    "trying": set(),
    "networks": {"distributions", "heads", "trying"},
    "convolutions": {"networks"},
    "spectral": set(),
    "modes": set(),
    "normalization": {"convolutions", "networks"},
    "metrics": {"functional"},
    "adam": {"functional"},
    "capture": set(),
    "graphs": {"capture"},
    "compiled": {"adam", "graphs", "networks", "transition"},
    "module": {
        "averages",
        "compiled",
        "functional",
        "heads",
        "hparams",
        "metrics",
        "modes",
        "networks",
        "normalization",
        "optimizers",
        "ranks",
        "requirements",
        "resumed_settings",
        "rng",
        "skipping",
        "targets",
        "threads",
        "transition",
        "trust",
        "watchers",
    },
    # experience
    "pieces": set(),
    "rows": {"memory", "pieces"},
    "observations": {"pieces", "rows"},
    "frames": {"observations", "pieces", "rows"},
    "n_step": {"transition"},
    "replay": {"observations", "pieces", "rows", "transition"},
    "sum_tree": set(),
    "prioritized": {"observations", "pieces", "replay", "rows", "schedules", "sum_tree", "transition"},
    "datamodule": {
        "atari_scores",
        "envs",
        "evaluation",
        "evaluation_envs",
        "hparams",
        "n_step",
        "ranks",
        "replay",
        "rows",
        "settings",
        "stepping",
        "trust",
    },
    # where they meet
    "resume": {
        "checkpoint",
        "checkpoint_io",
        "datamodule",
        "hparams",
        "pieces",
        "ranks",
        "rewind",
        "signals",
        "snapshots",
    },
    "monitors": set(),
    "agreement": {"datamodule", "trying"},
    "collector": {
        "agreement",
        "checkpoint_io",
        "datamodule",
        "exploration",
        "faults",
        "hparams",
        "monitors",
        "ranks",
        "resume",
        "rewind",
        "stepping",
        "transition",
    },
    "curves": {"datamodule", "files", "forgiving", "loggers"},
    "video": {"camera", "datamodule", "envs", "evaluation", "files", "forgiving", "rng", "signals"},
    "charts": {"datamodule", "evaluation", "forgiving", "module", "video"},
    "ckpt_path": {"charts", "checkpoint_io"},
    "cli": {
        "charts",
        "ckpt_path",
        "collector",
        "complaints",
        "curves",
        "datamodule",
        "epoch_checkpoint",
        "hparams",
        "loggers",
        "module",
        "ranks",
        "shipped",
        "signals",
        "strategies",
        "trust",
        "video",
        "watch",
    },
    # what is done with runs that are over
    "command": {"trust"},
    "statistics": {"functional"},
    "runs": {"command", "loggers"},
    "groups": {"command", "runs", "statistics"},
    "compare": {"command", "curves", "files", "groups", "statistics"},
    "space": {"command"},
    "trial": {"cli", "command", "runs", "signals", "space"},
    "study": {"command", "space", "trial"},
    "tune": {"command", "files", "shipped", "space", "trial"},
    "export": {"command", "datamodule", "files", "loading", "module", "networks"},
    "card": {"apps", "command", "files", "report", "runs"},
    "loading": {"checkpoint_file", "command", "datamodule", "module", "trust"},
    "report": {"command", "datamodule", "files", "groups", "loading", "runs", "statistics"},
    # on the machines of a Ray cluster
    "ray_head": {"command", "ray_cluster"},
    "ray_line": set(),
    "ray_learners": {
        "checkpoint_io",
        "cli",
        "collector",
        "complaints",
        "ray_head",
        "ray_line",
        "ray_worker",
        "signals",
    },
    "ray_training": {"cli", "collector", "command", "complaints", "ray_head", "ray_learners", "ray_line", "ray_worker"},
    "ray_search": {"complaints", "ray_head", "ray_line", "ray_worker", "study"},
    "ray_worker": {"cli"},
    "ray_cli": {"cli", "collector", "command", "shipped"},
    "ray_messages": {"replay", "transition"},
    "ray_actor": {"collector", "datamodule", "exploration", "module", "ray_messages", "rewind", "transition"},
    "ray_cluster": set(),
    "ray_pool": {"complaints", "ray_messages"},
    "ray_collector": {
        "collector",
        "datamodule",
        "exploration",
        "ranks",
        "ray_actor",
        "ray_cluster",
        "ray_messages",
        "ray_pool",
        "rewind",
    },
}
AT_RUN_TIME = {
    "module": {"collector", "run_folder", "signals"},
    "cli": {"apps", "command", "report"},
    "tune": {"study"},
    "ray_cli": {"ray", "ray_collector", "ray_head", "ray_search", "tune"},
}


def _room(name: str, folder: str) -> str:
    """What a module is called here: those of the folder that has a sibling of others' by its name."""
    return f"ray_{name}" if folder == "ray" else name


def imports_of_ours(path: Path) -> dict[str, set[str]]:
    """Names of our modules that a file imports, at its top and inside functions."""
    tree = ast.parse(path.read_text())
    found: dict[str, set[str]] = {"top": set(), "inside": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_dqn"):
            where = "top" if node in tree.body else "inside"
            *folder, name = (node.module or "").split(".")
            found[where].add(_room(name, folder[-1]) if folder else name)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("lightning_dqn") for alias in node.names), "import from, by name"
    return found


FILES = sorted(PACKAGE.glob("**/*.py"))
ROOMS = {_room(path.stem, path.parent.name): path for path in FILES if path.stem not in ("__init__", "__main__")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    found = imports_of_ours(ROOMS[room])
    assert found["top"] <= MAY_IMPORT[room]
    assert found["inside"] <= AT_RUN_TIME.get(room, set())


@pytest.mark.parametrize("side", ["learner", "experience"])
def test_the_two_sides_never_import_each_other(side):
    inside = {room for room, path in ROOMS.items() if path.parent.name == side}
    shared = {room for room, path in ROOMS.items() if path.parent == PACKAGE} - {
        "resume",
        "agreement",
        "collector",
        "signals",
        "watch",
        "charts",
        "curves",
        "video",
        "cli",
    }
    assert inside
    assert all(MAY_IMPORT[room] <= inside | shared for room in inside)
    assert not any(MAY_IMPORT[room] & inside for room in shared)
    assert not any(imports_of_ours(PACKAGE / side / "__init__.py").values())


def test_nothing_but_the_command_line_knows_of_the_apps():
    apps = {room for room, path in ROOMS.items() if path.parent.name == "apps"} | {"apps"}
    assert len(apps) > 2
    for room, path in ROOMS.items():
        if room not in apps and path.parent.name != "ray":
            found = imports_of_ours(path)
            assert not found["top"] & apps, room
            assert not found["inside"] & apps or room == "cli"


def test_nothing_outside_of_its_folder_knows_of_ray():
    for room, path in ROOMS.items():
        if path.parent.name != "ray":
            assert not re.search(r"^\s*(import ray|from ray|from lightning_dqn.ray)", path.read_text(), re.M), room


def test_functional_imports_torch_alone():
    tree = ast.parse((PACKAGE / "functional.py").read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {module.split(".")[0] for module in modules if module} <= {"__future__", "torch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles(path):
    source = path.read_text()
    for unsafe in ("import pickle", "cloudpickle", "allow_pickle=True", "weights_only=False"):
        assert unsafe not in source


def test_the_package_can_be_imported_without_the_extras():
    absent = "ale_py", "cv2", "minatar", "Box2D", "tensorboard", "optuna", "onnx", "onnxruntime", "onnxscript", "ray"
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import lightning_dqn, lightning_dqn.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_fit_starts_without_what_only_other_commands_need():
    code = (
        "import sys, lightning_dqn.cli; later = 'optuna', 'sqlalchemy', 'onnx', 'onnxruntime', 'onnxscript', 'pandas',"
        "'lightning_dqn.apps'; assert not set(later) & set(sys.modules), set(later) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_room_has_a_test_of_its_name():
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(ROOMS) <= tests


def test_every_public_name_can_be_imported_from_the_package():
    import lightning_dqn

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    names = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert names
    assert all(hasattr(lightning_dqn, name) for name in names)
