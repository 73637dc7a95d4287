"""What the commands beside Lightning's have in common: arguments, and refusals of one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from lightning_dqn.trust import TRUST_HELP, trusted_modules


class Refusal(ValueError):
    """Something that cannot be done, said in one line with its cure; nothing has been written."""


class Arguments(argparse.ArgumentParser):
    """Says in one line what is wrong, and takes no name for the beginning of another.

    Args:
        command: Name of the command.
        description: What it does.
        program: Of which it is a command.
    """

    def __init__(self, command: str, description: str, program: str = "lightning-dqn") -> None:
        super().__init__(prog=f"{program} {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Ends the process.

        Args:
            message: What is wrong.
        """
        self.exit(2, f"error: {message}\n")

    def add_trust(self) -> None:
        """Add the option ``--trust``, which allows a checkpoint to name classes of more modules."""
        self.add_argument("--trust", type=trusted_modules, default=(), metavar="MODULES", help=TRUST_HELP)


def at_least(least: int, name: str, value: int) -> int:
    """A number that is not too small.

    Raises:
        Refusal: If it is; names the argument.
    """
    if value < least:
        raise Refusal(f"{name} must be at least {least}, got {value}")
    return value


def check_output_file(path: Path) -> None:
    """Refuses an ``--output`` that no file can be written to; what is there may be replaced.

    Args:
        path: Of the file.

    Raises:
        Refusal: If it is a folder, its own is missing, or nothing can be written there.
    """
    folder = path.absolute().parent
    if path.is_dir():
        raise Refusal(f"--output: {path} is a folder; name a file in it")
    if not folder.is_dir():
        raise Refusal(f"--output: there is no folder {path.parent}")
    if not os.access(folder, os.W_OK):
        raise Refusal(f"--output: nothing can be written to {path.parent}; choose another folder")


def needed(module: str, extra: str) -> ModuleType:
    """A library that an extra brings.

    Args:
        module: Its name.
        extra: Of this package.

    Raises:
        Refusal: If it is not installed; says how to do it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        package = (missing.name or module).partition(".")[0]
        raise Refusal(f'{package} is not installed: python -m pip install "lightning-dqn[{extra}]"') from missing


@contextlib.contextmanager
def errors_only(*loggers: str) -> Iterator[None]:
    """Keeps what is less than an error out of the log, and then lets it in again.

    Args:
        loggers: Their names.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
