"""Densities painted into pictures that are arrays of palette indices: greys first, then the levels of the map."""

from __future__ import annotations

import numpy as np
from PIL import Image

from plots.palette import DENSITY_LEVELS, GREYS

__all__ = ["highest", "paint_bar", "paint_density"]

Box = tuple[int, int, int, int]
"""Left, top, width, height, in pixels."""


def highest(target: np.ndarray) -> float:
    """The highest density of a target on a grid, which sets the top of the colour scale.

    1 where it is zero, because the target falls between all points of the grid.
    """
    return float(target.max()) or 1.0


def paint_density(canvas: np.ndarray, where: Box, share: np.ndarray) -> None:
    """Paint a density over `where`.

    Args:
        canvas: palette indices, shape (height, width), uint8, changed in place.
        share: of the top of the colour scale, on a grid, shape (rows, columns), the lowest y first.
    """
    left, top, width, height = where
    finite = np.nan_to_num(share[::-1], nan=0.0)  # a flow that overflows somewhere still has a picture
    image = Image.fromarray(np.clip(finite, 0, 1).astype(np.float32))
    smooth = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    levels = GREYS + np.minimum(smooth * DENSITY_LEVELS, DENSITY_LEVELS - 1).astype(np.uint8)
    canvas[top : top + height, left : left + width] = levels


def paint_bar(canvas: np.ndarray, where: Box) -> None:
    """Paint the colour scale over `where`, its top at the top."""
    left, top, width, height = where
    levels = GREYS + np.linspace(DENSITY_LEVELS - 1, 0, height).astype(np.uint8)
    canvas[top : top + height, left : left + width] = levels[:, None]
