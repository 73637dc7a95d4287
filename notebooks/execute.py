"""Runs notebooks and keeps their outputs in them: ``python notebooks/execute.py notebooks/01_quickstart.ipynb``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TIMEOUT = 600  # seconds for a cell


def run(path: Path, folder: Path) -> NotebookNode:
    """A notebook with the outputs of a run, without what differs from one run to the next.

    Args:
        path: Of the notebook, which stays as it is.
        folder: Where it runs, and leaves its files.

    Raises:
        CellExecutionError: If a cell raises something.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # a warning at every start, of what others can listen to
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Runs those that are named, each in a folder of its own that is thrown away."""
    parser = argparse.ArgumentParser(description="Runs notebooks and keeps their outputs in them.")
    parser.add_argument("notebook", type=Path, nargs="+")
    for path in parser.parse_args().notebook:
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(f"{path}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
