"""The bar that moves while many points are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch import Tensor
from tqdm import tqdm

__all__ = ["in_passes"]

PATIENCE = 1.0  # seconds without a bar

Points = TypeVar("Points", Tensor, np.ndarray)


def in_passes(what: str, points: Points, size: int) -> Iterator[Points]:
    """Cut `points`, shape (n, ...), into parts of `size`, between which Ctrl-C is heard and a progress bar moves."""
    with tqdm(
        total=len(points), desc=what, unit="point", unit_scale=True, delay=PATIENCE, disable=None, dynamic_ncols=True,
        leave=False,
    ) as bar:  # fmt: skip
        for begin in range(0, max(len(points), 1), size):
            part = points[begin : begin + size]
            yield part
            bar.update(len(part))
