"""The part of the plane that a picture shows, and the grid on which densities are drawn there."""

from __future__ import annotations

import numpy as np

__all__ = ["BASE_WINDOW", "Window", "cell_centres", "union"]

Window = tuple[tuple[float, float], tuple[float, float]]
"""((xmin, xmax), (ymin, ymax))"""

BASE_WINDOW: Window = ((-4.0, 4.0), (-4.0, 4.0))
"""All but 6e-4 of a 2D standard Gaussian."""


def cell_centres(window: Window, cells: int) -> np.ndarray:
    """The points at which a density is evaluated for a picture.

    Returns:
        (cells², 2): the centres of cells x cells equal cells of `window`, x fastest and y ascending, so that
        ``density.reshape(cells, cells)`` is what the pictures take.
    """
    x, y = (low + (high - low) * (np.arange(cells) + 0.5) / cells for low, high in window)
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def union(a: Window, b: Window) -> Window:
    """The smallest window that shows both."""
    x, y = ((min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a, b))
    return x, y
