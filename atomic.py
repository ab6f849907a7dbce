"""Files that are whole even if the process is killed while it writes, and locks that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ["blaming", "locked", "patiently", "remove_unfinished", "write_atomically"]

Result = TypeVar("Result")

UNFINISHED = ".unfinished"  # how the names end of files that are being written
PATIENCE = 3.0 if os.name == "nt" else 0.0  # seconds to wait for other programs to close a file
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)  # by a file system


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `data` the content of `path`, at once: a reader sees the old file or the new one, never a part of either.

    A process that is killed in the middle leaves a hidden file beside `path`: see `remove_unfinished`.

    Raises:
        OSError: `path` could not be written and keeps its old content; the error names it.
    """
    path = Path(path)
    # In the same folder, because a file can replace another only within one file system. Named after this process,
    # because another may be writing the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    with blaming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the data must be on the disk before the name points to it
            patiently(lambda: os.replace(temporary, path))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def patiently(work: Callable[[], Result]) -> Result:
    """Return `work()`, retried on Windows, which refuses it while a program such as a virus scanner has the file open.

    Raises:
        PermissionError: the file is still refused after `PATIENCE` seconds.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except PermissionError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.05)


def _sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk: until then a power failure may bring the old file back."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # as by folders that a virtual machine shares with its host
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(handle: int, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder while entered; do nothing where the system has no such locks.

    Args:
        handle: descriptor of the open file or folder.
        wait: whether to wait until another process has released the lock.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is false.
    """
    held = False
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    try:
        yield
    finally:
        if held:  # a process that is killed lets go of it as well
            fcntl.flock(handle, fcntl.LOCK_UN)


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Make an OSError from inside name `path`: one from writing to an open file, as on a full disk, names no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder: Path) -> None:
    """Remove the files that processes killed in `write_atomically` left in `folder`; none may be writing there now."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink()
