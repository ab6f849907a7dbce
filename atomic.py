"""Files that are always whole: the old content or the new, even if the process is killed in the middle."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Make `data` the content of `path`, at once: a reader sees the old file or the new one, never a part of either.

    A process that is killed in the middle leaves a hidden temporary file beside `path`; the next write reuses it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # in the same folder: a file system replaces only its own files
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the data must be on the disk before the name points to it
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
