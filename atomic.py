"""Files that are always whole: the old content or the new, even if the process is killed in the middle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["blaming", "remove_unfinished", "write_atomically"]

UNFINISHED = ".unfinished"  # how the names end of files that are being written


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `data` the content of `path`, at once: a reader sees the old file or the new one, never a part of either.

    A process that is killed in the middle leaves a hidden file beside `path`: see `remove_unfinished`.

    Raises:
        OSError: names `path`, which is then what it was.
    """
    path = Path(path)
    # In the same folder: a file system replaces only its own files. Of this process: another may be writing the same.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    with blaming(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the data must be on the disk before the name points to it
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk: until then a power failure may bring the old file back."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Let an OSError from inside name `path`: that of a write to an open file, on a full disk, names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_unfinished(folder: Path) -> None:
    """Remove what processes killed in `write_atomically` left in `folder`. No other may be at work there."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink()
