"""The colours of all pictures: one map for densities, one wheel for points, greys for the rest.

An animation is drawn in indices into its palette from the start, so that no frame has to be quantized.
"""

from __future__ import annotations

import colorsys

import numpy as np
from matplotlib import colormaps

__all__ = ["DENSITY_LEVELS", "DENSITY_MAP", "GREYS", "color_of_angle", "density_palette", "point_palette"]

DENSITY_MAP = "magma"
DENSITY_LEVELS = 64
GREYS = 16  # from black to white
HUES, SHADES = 24, 4  # of points, by their angle and distance in the base


def _greys() -> np.ndarray:
    return np.repeat(np.linspace(0, 255, GREYS)[:, None], 3, axis=1)


def density_palette() -> np.ndarray:
    """Greys, then the levels of the density map: shape (80, 3), uint8."""
    levels = colormaps[DENSITY_MAP](np.linspace(0, 1, DENSITY_LEVELS))[:, :3] * 255
    return np.concatenate([_greys(), levels]).round().astype(np.uint8)


def point_palette() -> np.ndarray:
    """Greys, then the colours of points, all shades of one hue together: shape (112, 3), uint8."""
    wheel = [
        colorsys.hls_to_rgb(hue / HUES, 0.38 + 0.09 * shade, 0.75) for hue in range(HUES) for shade in range(SHADES)
    ]
    return np.concatenate([_greys(), np.array(wheel) * 255]).round().astype(np.uint8)


def color_of_angle(points: np.ndarray) -> np.ndarray:
    """The index in `point_palette` of points of the base, shape (n, 2): hue by angle, lighter further out."""
    angle = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1
    radius = np.linalg.norm(points, axis=1)
    shade = np.minimum(radius / 3 * SHADES, SHADES - 1).astype(int)
    return (GREYS + (angle * HUES).astype(int) % HUES * SHADES + shade).astype(np.uint8)
