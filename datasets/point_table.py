"""Points read from a CSV or NumPy file."""

from __future__ import annotations

import codecs
import io
import math
import re

import numpy as np

from datasets.data_file import DataFile

__all__ = ["LARGEST", "PointTable"]

LARGEST = 1e30  # a float32 ends at 3e38, and points are squared


class PointTable(DataFile):
    """The points of a file, as `table`, shape (n, 2), float64.

    A `.csv` file has two numbers a line, with a comma, a semicolon, a tab or spaces between them; its first line may be
    a header. A `.npy` file has an array of shape (n, 2).

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
        self.table = self._read_npy() if self.path.suffix.lower() == ".npy" else self._read_csv(sha256 is not None)
        del self.content
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
        table = table.astype(np.float64, copy=False)
        bad = np.nonzero(~((table > -LARGEST) & (table < LARGEST)).all(axis=1))[0]
        if len(bad):
            why = f"; numbers are below {LARGEST:g}" if np.isfinite(table[bad[0]]).all() else ""
            raise self.refused(f"row {bad[0]} (from 0) is {table[bad[0]].tolist()}{why}")
        return table

    def _read_csv(self, is_known: bool) -> np.ndarray:
        """
        Args:
            is_known: whether this very file has been read before.
        """
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
        commas = text.replace(";", ",").replace("\t", ",")
        if "," not in commas:
            commas = re.sub(r"(?<=\S) +(?=\S)", ",", commas)
        lines = commas.split("\n")
        may_be_names = lines[0] == "0,1" and all("." in field for field in ",".join(lines[1:2]).split(","))
        if may_be_names and not is_known:  # a run that began with it, in an earlier version, took it for a point
            raise self.refused("line 1 is '0,1', pandas' names of columns or a point: leave it out, or write 0.0,1.0")
        header = int(lines == [""] or _is_header(lines[0]))
        try:
            table = np.loadtxt(lines[header:], delimiter=",", comments=None, ndmin=2) if lines[header:] else None
        except ValueError:
            table = None
        if table is not None and table.shape == (len(lines) - header, 2) and (np.abs(table) < LARGEST).all():
            return table
        for number, line in enumerate(lines[header:], header + 1):
            fields = line.split(",")
            if len(fields) != 2 or not all(_is_number(field, LARGEST) for field in fields):
                is_large = len(fields) == 2 and all(_is_number(field, math.inf) for field in fields)
                why = f"; numbers are below {LARGEST:g}" if is_large else ""
                raise self.refused(f"line {number} is {text.split(chr(10))[number - 1][:60]!r}{why}")
        raise self.refused("no points")


def _is_header(first: str) -> bool:
    """Whether the first line names the columns; if not, it is read as a point, so that an error in it is reported."""
    if not any(letter.isalpha() or letter == "\ufffd" for letter in first):  # U+FFFD: a letter in another encoding
        return False
    numeric = re.compile(r"""["' ]*[-+]?(\.?\d|(nan|inf|infinity)\b)""", re.IGNORECASE)
    return not any(numeric.match(field) for field in first.split(","))


def _is_number(text: str, limit: float) -> bool:
    try:
        return text.isascii() and "_" not in text and abs(float(text)) < limit
    except ValueError:
        return False
