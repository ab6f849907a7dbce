"""Many points, worked on in passes under a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from torch import Tensor
from tqdm import tqdm

__all__ = ["in_passes"]

PATIENCE = 1.0  # seconds without a bar

Array = TypeVar("Array", Tensor, np.ndarray)


def in_passes(what: str, points: Array, size: int) -> Iterator[Array]:
    """Cut `points`, shape (n, ...), into parts of `size`, between which Ctrl-C is heard and a progress bar moves."""
    with tqdm(
        total=len(points), desc=what, unit="point", unit_scale=True, delay=PATIENCE, disable=None, dynamic_ncols=True,
        leave=False,
    ) as bar:  # fmt: skip
        for begin in range(0, max(len(points), 1), size):
            part = points[begin : begin + size]
            yield part
            bar.update(len(part))
