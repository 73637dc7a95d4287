"""What the how-to pages make runs, and the site has every page and every public name."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gymnasium.utils.env_checker import check_env

import lightning_dqn

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("new-environment", "new-network", "new-algorithm")


def parts(page):
    """The file that a page has one write, its name, and the command that uses it."""
    text = (DOCS / f"{page}.md").read_text()
    name = re.search(r"With this in `(\w+)\.py`", text).group(1)
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    (command,) = re.findall(r"```bash\n(.*?)\n```", text, re.DOTALL)
    return name, program, command


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_command_of_the_page_trains_with_the_file_of_the_page(page, tmp_path):
    name, program, command = parts(page)
    (tmp_path / f"{name}.py").write_text(program)
    _, *words = shlex.split(command)
    words += ["--trainer.fast_dev_run", "true", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    ended = subprocess.run(
        [sys.executable, "-m", "lightning_dqn", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr


def test_the_environment_of_the_page_is_one_and_can_be_solved(tmp_path, monkeypatch):
    name, program, _ = parts("new-environment")
    (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    corridor = __import__(name).Corridor(length=3)
    check_env(corridor, skip_render_check=True)
    corridor.reset(seed=0)
    assert [corridor.step(1)[1:4] for _ in range(3)] == [(-0.01, False, False)] * 2 + [(1.0, True, False)]


def test_every_page_is_in_the_navigation():
    pages = re.findall(r"[\w-]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    notebooks = [f"{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")]  # pages, on the site
    assert sorted(pages) == sorted([*(path.name for path in DOCS.glob("*.md")), *notebooks])


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_a_page_with_all_that_is_in_it(path):
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("notebooks_on_the_site", DOCS / "notebooks.py")
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    notebook = json.loads(path.read_text())

    page = site.page(notebook)

    assert all("".join(cell["source"]) in page for cell in notebook["cells"])
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    images = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert page.count("<img ") == len(images)
    assert all("".join(output["text"]).strip("\n") in page for output in outputs if "text" in output)
    link = f"[it](../notebooks/{path.name})"
    assert site.on_page_markdown(link) == f"[it](notebooks/{path.stem}.md)"


def test_every_public_name_is_in_the_api():
    told = re.findall(r"^::: lightning_dqn\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    source = (ROOT / "lightning_dqn" / "__init__.py").read_text()
    public = re.findall(r"import \w+ as (\w+)$", source, re.MULTILINE)
    assert sorted(told) == sorted(public)
    assert all(getattr(lightning_dqn, name).__doc__ for name in told)
