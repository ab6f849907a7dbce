"""GIF files that grow a frame at a time, at a cost that does not depend on how many came before."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from atomic import blaming, patiently, write_atomically

__all__ = ["GifFile", "write_gif"]

TRAILER = b";"
CONTROL = b"\x21\xf9\x04\x04"  # begins a frame; how long it stands comes next
BEGIN = re.compile(re.escape(CONTROL) + rb"..\x00\x00\x2c", re.DOTALL)  # by chance once in 2^56 bytes of pixels


class GifFile:
    """A GIF of one palette, looping, that opens at any moment, whatever happens while it grows.

    Args:
        path: the file.
        palette: its colours, shape (at most 256, 3), uint8.
        milliseconds: how long each frame but the newest is shown.
        newest: how long the newest frame is shown, in milliseconds.
    """

    def __init__(self, path: Path, palette: np.ndarray, milliseconds: int, newest: int) -> None:
        self.path, self.palette, self.milliseconds, self.newest = path, palette, milliseconds, newest
        self._begin_of_newest: int | None = None  # in the file, where it is known

    @property
    def length(self) -> int:
        """The file's size in bytes; 0 if there is none."""
        return self.path.stat().st_size if self.path.exists() else 0

    def start(self, frame: np.ndarray) -> None:
        """Begin the file with `frame`, the whole picture as palette indices, shape (height, width), uint8."""
        head = _head(frame, self.palette)
        write_atomically(self.path, head + _block(frame, (0, 0), self.newest) + TRAILER)
        self._begin_of_newest = len(head)

    def append(self, part: np.ndarray, corner: tuple[int, int]) -> None:
        """Add a frame that differs from the one before in `part`, whose upper left pixel is at `corner`, (x, y).

        The frame is written behind the trailer, where readers do not look. Then the trailer's one byte becomes the
        frame's first: a process killed at any moment leaves the old animation or the new.
        """
        block = _block(part, corner, self.newest)
        if self._begin_of_newest is None:
            self.truncate(self.length)
        with blaming(self.path), patiently(self._open) as file:
            trailer = file.seek(-len(TRAILER), io.SEEK_END)
            _write_at(file, trailer + 1, block[1:] + TRAILER)
            _write_at(file, trailer, block[:1])
            _write_at(file, self._begin_of_newest + len(CONTROL), _delay(self.milliseconds))
        self._begin_of_newest = trailer

    def truncate(self, length: int) -> None:
        """Take the file back to when it was `length` bytes long; 0 removes it.

        Raises:
            ValueError: the file was never so long, or is no such file.
            OSError: names the file.
        """
        if length == 0:
            self.path.unlink(missing_ok=True)
            return
        if not 0 <= length <= self.length:
            raise ValueError(f"{self.path} has {self.length} bytes, not the {length} that the checkpoint speaks of")
        with blaming(self.path), patiently(self._open) as file:
            begins = [found.start() for found in BEGIN.finditer(file.read(length))]
            if not begins:
                raise ValueError(f"{self.path} holds no frame")
            self._begin_of_newest = begins[-1]
            _write_at(file, length - len(TRAILER), TRAILER)
            file.truncate(length)

    def _open(self) -> BinaryIO:
        return open(self.path, "r+b")


def _write_at(file: BinaryIO, position: int, data: bytes) -> None:
    """Write `data` at `position`, and return when it is on the disk."""
    file.seek(position)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def write_gif(path: Path, palette: np.ndarray, frames: Iterable[tuple[np.ndarray, int]]) -> None:
    """Write a whole animation at once: `frames` are palette indices, shape (height, width), with milliseconds."""
    parts: list[bytes] = []
    before = None
    for frame, milliseconds in frames:
        if before is None:
            parts += [_head(frame, palette), _block(frame, (0, 0), milliseconds)]
        else:  # only the rectangle that changed, or one pixel where nothing did
            rows, columns = np.nonzero((frame != before).any(1))[0], np.nonzero((frame != before).any(0))[0]
            top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 1)
            left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 1)
            parts.append(_block(frame[top:bottom, left:right], (int(left), int(top)), milliseconds))
        before = frame
    write_atomically(path, b"".join([*parts, TRAILER]))


def _head(frame: np.ndarray, palette: np.ndarray) -> bytes:
    """Signature, screen, palette and the wish to loop for ever (GIF89a, sections 17 to 19; NETSCAPE2.0)."""
    bits = max(int(np.ceil(np.log2(len(palette)))), 1)
    height, width = frame.shape
    screen = width.to_bytes(2, "little") + height.to_bytes(2, "little") + bytes([0xF0 | (bits - 1), 0, 0])
    colors = palette.tobytes().ljust(3 << bits, b"\0")
    return b"GIF89a" + screen + colors + b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"


def _delay(milliseconds: int) -> bytes:
    return round(milliseconds / 10).to_bytes(2, "little")


def _block(part: np.ndarray, corner: tuple[int, int], milliseconds: int) -> bytes:
    """One frame: how long it stands, where it goes, and its pixels (the same, sections 20 to 23)."""
    control = CONTROL + _delay(milliseconds) + b"\x00\x00"
    height, width = part.shape
    position = b"".join(number.to_bytes(2, "little") for number in (*corner, width, height))
    # Pillow compresses: a GIF is 13 bytes and colours, as many as the 11th says, the descriptor of 10, then the pixels.
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part)).save(file, "GIF", optimize=False, interlace=False)
    whole = file.getvalue()
    compressed = whole[whole.index(b"\x2c", 13 + (6 << (whole[10] & 7))) + 10 : -len(TRAILER)]
    return control + b"\x2c" + position + b"\x00" + compressed
