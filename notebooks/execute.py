"""Runs notebooks and keeps their outputs in them: ``python notebooks/execute.py notebooks/01_quickstart.ipynb``."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TIMEOUT = 1_800  # seconds for a cell


def run(path: Path, folder: Path, **parameters: object) -> NotebookNode:
    """A notebook with the outputs of a run, without what differs from one run to the next.

    Args:
        path: Of the notebook, which stays as it is.
        folder: Where it runs, and leaves its files.
        **parameters: Values instead of those in its cell with the tag ``parameters``, for a shorter run.

    Raises:
        CellExecutionError: If a cell raises something.
        ValueError: If the cell sets no parameter of such a name.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    unknown = parameters.keys() - set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE))
    if unknown:
        raise ValueError(f"{path.name} has no parameter {', '.join(sorted(unknown))} in its cell of parameters")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
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
