"""Points of one's own, from a CSV or NumPy file."""

from __future__ import annotations

import io
import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from arguments import Range, checked
from datasets.data_file import DataFile
from datasets.target import Target, Window

__all__ = ["Points", "window_of"]

FEWEST = 20
LARGEST = 1e30  # a float32 ends at 3e38, and points are squared
FURTHEST = 1e4  # standard deviations from zero: a float32 has seven digits
OUTSIDE = 0.0005  # share of the points that the window leaves out to each side


class Points(DataFile, Target):
    """The points of a file: a part of them is trained on, again and again, and the rest held out.

    A `.csv` file has two numbers a line, with a comma, a semicolon or a tab between them; its first line may be a
    header. A `.npy` file has an array of shape (n, 2). Which points are held out depends on the file alone.

    Args:
        path: of the file.
        held_out: share of the points that is held out.
        sha256: digest that the file must have; None for any.
    """

    @checked
    def __init__(
        self,
        path: str | None = None,
        held_out: Annotated[float, Range(gt=0, lt=1)] = 0.1,
        sha256: str | None = None,
    ) -> None:
        super().__init__(
            path, sha256, f"a .csv file of two numbers a line, or a .npy file of shape (n, 2), n >= {FEWEST}"
        )
        table = self._read_npy() if self.path.suffix.lower() == ".npy" else self._read_csv()
        if len(table) < FEWEST:
            raise self.refused(f"only {len(table)} points")
        self.mean, self.std = (torch.from_numpy(figure) for figure in (table.mean(axis=0), table.std(axis=0)))
        for name, mean, std in zip("xy", self.mean.tolist(), self.std.tolist(), strict=True):
            if std < 1 / LARGEST:
                raise self.refused(f"all points have the same {name}")
            if abs(mean) > FURTHEST * std:
                raise self.refused(
                    f"{name} is {mean:.6g} ± {std:.2g}, too far from zero for float32: subtract its mean"
                )
        shuffled = torch.from_numpy(table)[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
        n = min(max(round(held_out * len(table)), 2), len(table) - 2)
        self.held_out, self.train = shuffled[:n].float(), shuffled[n:].float()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points to train on, each of them once in a random order before any comes again."""
        passes = [torch.randperm(len(self.train), generator=generator) for _ in range(math.ceil(n / len(self.train)))]
        return self.train[torch.cat(passes)[:n]]

    @property
    def window(self) -> Window:
        return window_of(self.train)

    def histogram(self, bins: int) -> np.ndarray:
        """Points per unit area of the window, as a share of all: shape (bins, bins), the lowest y first.

        Where points are few, neighbouring bins share their mean.
        """
        points = torch.cat([self.train, self.held_out]).numpy()
        fit = max(size for size in range(1, bins + 1) if bins % size == 0 and (size <= 10 or size**2 <= len(points)))
        counts, x, y = np.histogram2d(points[:, 0], points[:, 1], fit, self.window)
        density = counts.T / (len(points) * (x[1] - x[0]) * (y[1] - y[0]))
        return np.kron(density, np.ones((bins // fit, bins // fit)))

    def _read_npy(self) -> np.ndarray:
        try:
            table = np.load(io.BytesIO(self.content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise self.refused(f"not a NumPy array: {str(error).splitlines()[0]}") from error
        if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind not in "fiu":
            raise self.refused(
                f"it holds {table.dtype} of shape {table.shape}" if hasattr(table, "shape") else "no array"
            )
        bad = np.nonzero(~(np.abs(table.astype(np.float64)) < LARGEST).all(axis=1))[0]
        if len(bad):
            raise self.refused(f"row {bad[0]} (from 0) is {table[bad[0]].tolist()}")
        return table.astype(np.float64)

    def _read_csv(self) -> np.ndarray:
        try:
            text = self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.content.count(b"\n", 0, error.start) + 1
            raise self.refused(f"line {line} is not text") from error
        text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")
        lines = text.replace(";", ",").replace("\t", ",").split("\n")
        header = int(not any(_is_number(field, finite=False) for field in lines[0].split(",")))
        try:
            table = np.loadtxt(lines[header:], delimiter=",", comments=None, ndmin=2) if lines[header:] else None
        except ValueError:
            table = None
        if table is not None and table.shape == (len(lines) - header, 2) and (np.abs(table) < LARGEST).all():
            return table
        for number, line in enumerate(lines[header:], header + 1):
            fields = line.split(",")
            if len(fields) != 2 or not all(_is_number(field, finite=True) for field in fields):
                raise self.refused(f"line {number} is {text.split(chr(10))[number - 1][:60]!r}")
        raise self.refused("no points")


def _is_number(text: str, finite: bool) -> bool:
    try:
        value = float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return False
    return value is not None and (not finite or abs(value) < LARGEST)


def window_of(points: Tensor) -> Window:
    """Where all but a few of the `points`, shape (n, 2), are: a square, unless one axis is much longer."""
    part = points[: 2**20].double()
    low, high = torch.quantile(part, torch.tensor([OUTSIDE, 1 - OUTSIDE]).to(part), dim=0).tolist()
    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    half = [0.55 * (b - a) or 1.0 for a, b in zip(low, high, strict=True)]
    if max(half) <= 3 * min(half):
        half = [max(half)] * 2
    (left, bottom), (right, top) = ([m + sign * h for m, h in zip(middle, half, strict=True)] for sign in (-1, 1))
    return (left, right), (bottom, top)
