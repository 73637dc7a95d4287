"""What the pages say is true: commands exist, files and links are there, examples parse."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lightning_dqn.apps.space import read_search
from lightning_dqn.apps.trial import ParsedFit, check
from lightning_dqn.cli import _APPS
from lightning_dqn.shipped import find_config

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path in re.findall(r"\]\((?!http)([^)#\s]+)", PAGES[page]):
        assert (DOCS / path).exists(), path


@pytest.mark.parametrize("page", ["comparing", "scaling", "search", "shipping"])
def test_commands_are_there_and_so_are_the_files_that_they_name(page, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])  # the pages name files of the repository
    lines = re.findall(r"lightning-dqn (.*)", "".join(re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)))
    assert lines
    for line in lines:
        command, *words = shlex.split(line.replace("\\", "").partition(";")[0])
        assert command in {"fit", "test", *_APPS}
        for option, value in pairwise(words):
            if option in ("--config", "--search") and not value.startswith("runs/"):
                assert Path(find_config(value, option.removeprefix("--"))).is_file()


def test_the_search_file_of_the_page_is_one(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGES["search"], re.DOTALL)
    (tmp_path / "page.yaml").write_text(example)
    search = read_search(tmp_path / "page.yaml")
    assert len(search.space) == 4
    check(["--config=cartpole"], search.space)


def test_the_loops_of_the_page_set_what_there_is():
    (loop,) = re.findall(r"```bash\n(for lr .*?)```", PAGES["search"], re.DOTALL)
    (line,) = re.findall(r"lightning-dqn fit (.*\\\n.*)", loop)
    values = {"lr": "1e-4", "n_step": "3", "seed": "1"}
    words = shlex.split(re.sub(r"\$(lr|n_step|seed)\b", lambda match: values[match.group(1)], line.replace("\\\n", "")))
    config = ParsedFit(
        ["--config=cartpole" if word == "cartpole" else word for word in words if word != "--config"]
    ).config
    assert (config.model.optimizer.init_args.lr, config.data.n_step, config.seed_everything) == (1e-4, 3, 1)
    assert yaml.safe_load(str(config.trainer.logger.init_args.version)) == 1
