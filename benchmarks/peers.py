"""Other libraries in a benchmark, each in a virtual environment and a process of its own.

A worker is the benchmark's own script, started by a peer's interpreter. It answers requests one at a time, a line of
JSON each, and is kept alive, so that measurements of many libraries can take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "lightning-dqn-benchmarks"


def interpreter(name: str, requirements: Sequence[str], folder: Path = CACHE) -> Path:
    """The Python of a virtual environment that holds the requirements; made at first use, which takes a minute.

    Args:
        name: Of the environment.
        requirements: Installed in this order, so that a later one cannot choose another build of an earlier one. Pip
            reads its settings as always, for instance from which index to take a build of torch without CUDA.
        folder: Where environments are kept.

    Raises:
        RuntimeError: If one of them cannot be installed.
    """
    root = folder / "_".join((name, f"py{sys.version_info.major}.{sys.version_info.minor}", *requirements))
    python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = root / "ready"
    if not ready.exists():
        venv.create(root, with_pip=True, clear=True)
        for count in range(1, len(requirements) + 1):
            command = [str(python), "-m", "pip", "install", "--quiet", *requirements[:count]]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise RuntimeError(f"{name}: pip install {' '.join(requirements[:count])} failed\n{ended.stderr}")
        ready.touch()
    return python


class Worker:
    """A process that runs :func:`serve`.

    Args:
        python: Its interpreter.
        arguments: What that runs.
    """

    def __init__(self, python: Path | str, *arguments: str) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [str(python), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | threads,
        )

    def ask(self, **request: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            RuntimeError: If the worker reports an error, or has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"the worker ended: {self._errors.read()[-2_000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._errors.close()


def serve(answer: Callable[..., Any]) -> None:
    """Answers requests until there are no more.

    Args:
        answer: Takes the fields of a request and returns what JSON can hold.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not get among the replies
    for line in sys.stdin:
        try:
            reply = {"result": answer(**json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
