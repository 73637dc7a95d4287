"""The notebooks hold the outputs of a clean run, and still run to outputs of the same kinds."""

import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SHORT = {
    "01_quickstart": {"EPOCHS": 1},
    "02_your_environment_and_network": {"EPOCHS": 1},
    "03_from_dqn_to_rainbow": {"PRESETS": ("dqn", "rainbow"), "SEEDS": 2, "EPOCHS": 1},
    "04_search": {"TRIALS": 4, "EPOCHS": 1, "LEARNING_RATES": (1e-3,), "N_STEPS": (1,)},
}
_MACHINE = re.compile(r"/(home|root|tmp|Users|usr|work)/|site-packages|0x[0-9a-f]{6,}")


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def kinds(notebook):
    """Of every cell with code: what it shows, and on what stream it writes."""
    return [
        sorted({kind for output in cell.outputs for kind in output.get("data", {output.get("name"): ""})})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def text(notebook):
    shown = outputs(notebook)
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in shown)


def test_there_are_four():
    assert [name[:2] for name in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_was_run_from_top_to_bottom_without_a_complaint(name):
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output for output in outputs(notebook) if output.output_type == "error" or output.get("name") == "stderr"
    ]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_of_a_machine_is_in_it(name):
    notebook = committed(name)
    assert not _MACHINE.search(text(notebook))
    assert not [cell for cell in notebook.cells if "execution" in cell.metadata]


@pytest.mark.parametrize("name", ["01_quickstart", "03_from_dqn_to_rainbow", "04_search"])
def test_pictures_can_be_opened_and_show_something(name):
    found = [
        base64.b64decode(content)
        for output in outputs(committed(name))
        for kind, content in output.get("data", {}).items()
        if kind.startswith("image/")
    ]
    assert len(found) == 2
    for each in found:
        with Image.open(io.BytesIO(each)) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 2


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    return lambda name, folder, **parameters: execute.run(FOLDER / f"{name}.ipynb", folder, **parameters)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_from_top_to_bottom_when_everything_is_as_small_as_can_be(name, run, tmp_path):
    short = run(name, tmp_path, **SHORT[name])
    assert kinds(short) == kinds(committed(name))


def test_a_parameter_that_a_notebook_does_not_have_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"^01_quickstart\.ipynb has no parameter EPOCH in its cell of parameters$"):
        run("01_quickstart", tmp_path, EPOCH=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_shows_the_same_kinds_of_things(name, run, tmp_path):
    again = run(name, tmp_path)
    assert kinds(again) == kinds(committed(name))
    if name.startswith("01"):
        assert float(re.search(r"\*\*([\d.]+)\*\* \(random", text(again)).group(1)) >= 475
    if name.startswith("02"):
        assert float(re.search(r"after 17,008 environment steps \| ([\d.-]+)", text(again)).group(1)) > 0.8


def test_the_quickstart_ends_with_what_counts_as_solved():
    assert float(re.search(r"\*\*([\d.]+)\*\* \(random", text(committed("01_quickstart"))).group(1)) >= 475
