"""Points read from a CSV or NumPy file."""

from __future__ import annotations

import codecs
import io
import re

import numpy as np

from datasets.data_file import DataFile

__all__ = ["LARGEST", "PointTable"]

LARGEST = 1e30  # a float32 ends at 3e38, and points are squared


class PointTable(DataFile):
    """The points of a file, as `table`, shape (n, 2), float64.

    A `.csv` file has two numbers a line, with a comma, a semicolon or a tab between them; its first line may be a
    header. A `.npy` file has an array of shape (n, 2).

    Args:
        path: of the file.
        sha256: digest that the file must have; None for any.
        fewest: points that there must be.

    Raises:
        ArgumentError: the file is anything else; of a `.csv` file, the first bad line is named.
    """

    def __init__(self, path: str | None, sha256: str | None = None, fewest: int = 1) -> None:
        super().__init__(
            path, sha256, f"a .csv file of two numbers a line, or a .npy file of shape (n, 2), n >= {fewest}"
        )
        self.table = self._read_npy() if self.path.suffix.lower() == ".npy" else self._read_csv()
        if len(self.table) < fewest:
            raise self.refused(f"only {len(self.table)} points")

    def _read_npy(self) -> np.ndarray:
        try:
            table = np.load(io.BytesIO(self.content), allow_pickle=False)
        except Exception as error:  # whatever the damage leads to
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise self.refused(f"not a NumPy array: {reason}") from error
        if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "fiu":
            raise self.refused(
                f"it holds {table.dtype} of shape {table.shape}" if hasattr(table, "shape") else "no array"
            )
        bad = np.nonzero(~(np.abs(table.astype(np.float64)) < LARGEST).all(axis=1))[0]
        if len(bad):
            raise self.refused(f"row {bad[0]} (from 0) is {table[bad[0]].tolist()}")
        return table.astype(np.float64)

    def _read_csv(self) -> np.ndarray:
        content = self.content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if (zero := content.find(b"\0")) >= 0:  # UTF-16, say
            line = content.count(b"\n", 0, zero) + 1
            raise self.refused(f"line {line} is not UTF-8 text")
        first, *rest = content.rstrip(b"\n").split(b"\n", 1)
        try:  # a header may be in another encoding
            text = "\n".join([first.decode(errors="replace"), *(part.decode() for part in rest)])
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 2
            raise self.refused(f"line {line} is not UTF-8 text") from error
        lines = text.replace(";", ",").replace("\t", ",").split("\n")
        header = int(not any(_begins_as_number(field) for field in lines[0].split(",")))
        try:
            table = np.loadtxt(lines[header:], delimiter=",", comments=None, ndmin=2) if lines[header:] else None
        except ValueError:
            table = None
        if table is not None and table.shape == (len(lines) - header, 2) and (np.abs(table) < LARGEST).all():
            return table
        for number, line in enumerate(lines[header:], header + 1):
            fields = line.split(",")
            if len(fields) != 2 or not all(_is_number(field) for field in fields):
                raise self.refused(f"line {number} is {text.split(chr(10))[number - 1][:60]!r}")
        raise self.refused("no points")


def _begins_as_number(text: str) -> bool:
    """Whether it is no column's name: what is wrong with it is to be said then."""
    return re.match(r"""["' ]*([-+]?\.?\d|[-+]?(nan|inf)\b)""", text, re.IGNORECASE) is not None


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and "_" not in text and abs(float(text)) < LARGEST
    except ValueError:
        return False
