"""Points of one's own, from a CSV or NumPy file."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from arguments import Range, checked
from datasets.point_table import LARGEST, PointTable
from datasets.target import Target, Window

__all__ = ["Points", "window_of"]

FEWEST = 20
FURTHEST = 1e4  # standard deviations from zero: a float32 has seven digits
MIDDLE_FURTHEST = 1e5  # interquartile ranges from zero: so far out, about a hundred float32 numbers are in one
NARROWEST, WIDEST = 1e-18, 1e18  # standard deviations: a density is per unit area, and a float32 ends at 3e38
OUTSIDE = 0.0005  # share of the points that the window leaves out to each side
# In a window with heavy tails, such as Cauchy's, all other points would fill only a few cells. So where the tails make
# the window more than EXTREME times as wide, they are left out: a share TAIL of the points to each side. Half the
# window is then WITH_TAILS times the range of the other points.
TAIL, WITH_TAILS, EXTREME = 0.025, 1.25, 8
PER_CELL = 10  # points in a cell of the histogram, on average


class Points(PointTable, Target):
    """The points of a file: a part of them is trained on, again and again, and the rest held out.

    `mean` and `std` are of that part.

    Which points are held out depends on the file alone.

    Args:
        path: of the file.
        held_out: share of the points that is held out.
        sha256: digest that the file must have; None for any.
    """

    in_own_units = True
    drawn_as = "histogram of the data"

    @checked
    def __init__(
        self,
        path: str | None = None,
        held_out: Annotated[float, Range(gt=0, lt=1)] = 0.1,
        sha256: str | None = None,
    ) -> None:
        super().__init__(path, sha256, FEWEST)
        shuffled = self.table[torch.randperm(len(self.table), generator=torch.Generator().manual_seed(0)).numpy()]
        n = min(max(round(held_out * len(shuffled)), 2), len(shuffled) - 2)
        held_out_part, part = shuffled[:n], shuffled[n:]
        self.held_out, self.train = (torch.from_numpy(points).float() for points in (held_out_part, part))
        self.mean, self.std = (torch.from_numpy(figure) for figure in (part.mean(axis=0), part.std(axis=0)))
        for column, name, mean, std in zip(part.T, "xy", self.mean.tolist(), self.std.tolist(), strict=True):
            if np.ptp(column) < 1 / LARGEST:
                raise self.refused(f"all points have the same {name}")
            if not NARROWEST < std < WIDEST:
                raise self.refused(f"{name} is {mean:.6g} ± {std:.2g}, beyond what float32 holds: change its unit")
            if abs(mean) > FURTHEST * std:
                raise self.refused(
                    f"{name} is {mean:.6g} ± {std:.2g}, too far from zero for float32: subtract its mean"
                )
            low, high = np.quantile(column, [0.25, 0.75]).tolist()  # std may be huge because of one wrong row
            # Not checked where a run, maybe of an earlier version, has begun with the file.
            if sha256 is None and low < high < low + max(abs(low), abs(high)) / MIDDLE_FURTHEST:
                raise self.refused(
                    f"half of all {name} are between {low:.9g} and {high:.9g}, too far from zero for float32: "
                    "subtract their mean, or is a row of the file wrong?"
                )
        del self.table  # both parts are there

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points to train on, each of them once in a random order before any comes again."""
        passes = [torch.randperm(len(self.train), generator=generator) for _ in range(math.ceil(n / len(self.train)))]
        return self.train[torch.cat(passes)[:n]]

    def hold_out(self, n: int, generator: torch.Generator) -> Tensor:
        return self.held_out[:n]

    @property
    def window(self) -> Window:
        return window_of(self.train)

    def on_grid(self) -> np.ndarray:
        """A histogram. Where points are few, neighbouring cells share their mean."""
        bins = self.cells
        points = torch.cat([self.train, self.held_out]).numpy()
        most = max(10, math.sqrt(len(points) / PER_CELL))
        fit = max(size for size in range(1, bins + 1) if bins % size == 0 and size <= most)
        counts, x, y = np.histogram2d(points[:, 0], points[:, 1], fit, self.window)
        density = counts.T / (len(points) * (x[1] - x[0]) * (y[1] - y[0]))
        return np.kron(density, np.ones((bins // fit, bins // fit)))


def window_of(points: Tensor) -> Window:
    """The rectangle that holds all but a few of the `points`, shape (n, 2), or all but extreme tails.

    A square, unless one axis is much longer.
    """
    part = points[: 2**20].double()
    outside = max(OUTSIDE, 1 / len(part))  # at least one point to each side, which may be a slip
    shares = torch.tensor([outside, TAIL, 1 - TAIL, 1 - outside]).to(part)
    quantiles = torch.quantile(part, shares, dim=0, interpolation="nearest").T.tolist()
    spans = (part.amax(dim=0) - part.amin(dim=0)).tolist()  # where all but a few have one value
    middle, half = [], []
    for (lowest, low, high, highest), span in zip(quantiles, spans, strict=True):
        wide, narrow = 0.55 * (highest - lowest or span) or 1.0, WITH_TAILS * (high - low)
        tails = 0 < EXTREME * narrow < wide
        middle.append((low + high) / 2 if tails else (lowest + highest) / 2)
        half.append(narrow if tails else wide)
    if max(half) <= 3 * min(half):
        half = [max(half)] * 2
    (left, bottom), (right, top) = ([m + sign * h for m, h in zip(middle, half, strict=True)] for sign in (-1, 1))
    return (left, right), (bottom, top)
