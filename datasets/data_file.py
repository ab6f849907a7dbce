"""Data from a file of one's own, which a resumed run finds by its path and recognizes by its digest."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from arguments import ArgumentError

__all__ = ["DataFile"]


class DataFile:
    """Data read from a file.

    Args:
        path: of the file.
        sha256: digest that the file must have; None for any.
        accepts: what the file should be, for errors.

    Raises:
        ArgumentError: there is no such file, it cannot be read, or it has another digest.
    """

    def __init__(self, path: str | None, sha256: str | None, accepts: str) -> None:
        if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ArgumentError("sha256", "64 hexadecimal digits, or null", repr(sha256))
        if path is None:
            raise ArgumentError("path", accepts, "null")
        self.path, self.accepts = Path(os.path.abspath(os.path.expanduser(path))), accepts
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise self.refused("not a file")
        try:
            self.content = self.path.read_bytes()
        except (OSError, ValueError) as error:
            raise self.refused(getattr(error, "strerror", None) or str(error)) from error
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        if sha256 not in (None, self.sha256):
            raise ArgumentError(
                "path", f"the file whose SHA-256 is {sha256}", f"{str(path)!r}, another or a changed one"
            )

    @property
    def origin(self) -> dict[str, str]:
        """The settings that lead to this very file from anywhere."""
        return {"path": str(self.path), "sha256": self.sha256}

    def refused(self, reason: str) -> ArgumentError:
        """The error that the file is not what it should be."""
        return ArgumentError("path", self.accepts, f"{str(self.path)!r}: {reason}")
