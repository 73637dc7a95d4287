"""A process of Ray becomes one that our commands can run in."""

from __future__ import annotations

import os
import sys

from lightning_dqn.cli import prepare_process


class FieldError(ValueError):
    """A setting that cannot work: trying once more would not help."""


def begin_in(folder: str) -> None:
    """Goes where the command was started, and forgets the arguments that Ray has given this process.

    Args:
        folder: Working directory of the command.

    Raises:
        FieldError: If it is not on this machine.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise FieldError(
            f"config: {folder} is not on {os.uname().nodename} ({error.strerror}); start from a folder that all "
            "machines see"
        ) from error
    prepare_process()
    sys.argv[1:] = []  # LightningCLI warns of arguments given twice
