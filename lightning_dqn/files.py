"""Files that are whole or not there: written beside their place, flushed to disk, and moved there at once."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_UNFINISHED = re.compile(r"\.(.+)\.([0-9a-f]{8})([0-9a-f]{8})\.tmp", re.DOTALL)
_CHUNK = 2**20


class HashedFile:
    """A new file whose bytes are hashed as they go by, and are on disk when the context is left.

    Args:
        path: Where it is made; nothing may be there yet.

    Attributes:
        error: What the first failed write raised; libraries that call :meth:`write` may raise something else instead.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self.path.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if exception is None:
                self.settle()

    def write(self, chunk: bytes | memoryview) -> int:
        """Takes bytes over; returns how many.

        Raises:
            OSError: If they cannot be written, as on a full disk.
        """
        try:
            self._file.write(chunk)
        except OSError as error:
            self.error = self.error or error
            raise
        self._hash.update(chunk)
        return len(chunk)

    def flush(self) -> None:
        """Gives the operating system what is still held back."""
        self._file.flush()

    def settle(self) -> None:
        """Waits until everything is on disk.

        Raises:
            OSError: If it cannot be written.
        """
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal digits."""
        return self._hash.hexdigest()


class NewFile(HashedFile):
    """A file that takes its place, perhaps another's, only when it is complete and on disk.

    Leaving the context puts it there; an exception leaves everything as it was.

    Args:
        path: Where it is to stand.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(unfinished(path))
        self._place = path

    def __enter__(self) -> Self:
        """Begins it under a name that :func:`clean_leftovers` knows."""
        super().__enter__()
        _hold(self._file.fileno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts it in its place, or takes it away."""
        try:
            super().__exit__(kind, exception, trace)
            if exception is None:
                self.path.replace(self._place)
                flush_directory(self._place.parent)
        finally:
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Makes a directory beside a path that is gone when the context is left; see :func:`clean_leftovers`.

    Args:
        path: Something to be named after.

    Yields:
        The directory, which is held: nobody takes it for a leftover, where there are locks.

    Raises:
        OSError: If it cannot be made.
    """
    temporary = unfinished(path)
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        _hold(descriptor)
        yield temporary
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Makes a directory that takes its place only when it is complete and on disk.

    Args:
        path: Where it is to stand; nothing may be there yet.

    Yields:
        The directory to fill, with files that are flushed already.

    Raises:
        OSError: If it cannot be made or moved; nothing is left then.
    """
    with scratch_directory(path) as temporary:
        yield temporary
        flush_directory(temporary)
        temporary.replace(path)
    flush_directory(path.parent)


def unfinished(path: Path) -> Path:
    """A name beside a path that nothing has, under which it can be prepared; see :func:`clean_leftovers`."""
    # Lightning takes whatever has hpc_ckpt_ in its name for the checkpoint of a SLURM job
    name, token = path.name.replace("hpc_ckpt_", "hpc_"), secrets.token_hex(4)
    return path.with_name(f".{name}.{token}{_signature(name, token)}.tmp")


def is_unfinished(name: str) -> bool:
    """Return whether :func:`unfinished` made a name: a user's own ``.tmp`` file lacks the signature in the name."""
    match = _UNFINISHED.fullmatch(name)
    return match is not None and match[3] == _signature(match[1], match[2])


def discard(directory: Path) -> None:
    """Remove a directory, under a name that :func:`clean_leftovers` knows: if the process is killed, no half stays."""
    aside = unfinished(directory)
    with contextlib.suppress(OSError):
        directory.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)


def clean_leftovers(directory: Path) -> list[Path]:
    """Removes what saves that were killed have left in a directory; those still under way are let be.

    Only names that :func:`unfinished` made are removed.

    Args:
        directory: Where files stand that were made here; it need not exist.

    Returns:
        What was removed.
    """
    if not directory.is_dir():
        return []
    removed = []
    for path in directory.iterdir():
        if is_unfinished(path.name) and not path.is_symlink() and not is_held(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def check_space(directory: Path, num_bytes: int) -> None:
    """Refuses to begin what a disk has no room for.

    Args:
        directory: Where it would be written.
        num_bytes: How much.

    Raises:
        OSError: With what is needed and what is free.
    """
    free = free_space(directory)
    if num_bytes > free:
        figures = f"needed: {num_bytes / 2**20:,.1f} MiB, free: {free / 2**20:,.1f} MiB"
        raise OSError(errno.ENOSPC, f"no space left on the disk ({figures})", str(directory))


def free_space(directory: Path) -> int:
    """Bytes that can still be written to the disk of a directory, which need not be there yet."""
    there = next(folder for folder in (directory.absolute(), *directory.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading if it is one: no link to somewhere else, no device, no pipe to wait at.

    Raises:
        OSError: If it is not there, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def sha256(file: BinaryIO) -> str:
    """Of a file from where it stands to its end, read in chunks; in hexadecimal digits."""
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def flush_directory(directory: Path) -> None:
    """Waits until the names in a directory are on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a file or directory is being made by a process that lives; false where there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _signature(name: str, token: str) -> str:
    return hashlib.sha256(os.fsencode(f"lightning-dqn {name} {token}")).hexdigest()[:8]


def _hold(descriptor: int) -> None:
    # the lock ends with the process, however that ends; where there are none, nothing is known to be under way
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
