"""Colours: of densities, and of points by their place in the plane."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import Colormap

__all__ = ["FAINT", "INK", "density_colormap", "oklch", "place_colors"]

INK = "#1f2328"
"""Text and axes."""

FAINT = "#b8bcc4"
"""Guides that lie under the data: grid lines, the circles of a Gaussian."""


def density_colormap(levels: int = 256) -> Colormap:
    """Perceptually uniform, dark at zero; a density that is not a number is grey."""
    return matplotlib.colormaps["magma"].resampled(levels).with_extremes(bad="#808080")


def oklch(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Colours of the Oklch space (Ottosson 2020), in which equal steps look equally large.

    Args:
        lightness: in [0, 1].
        chroma: in [0, about 0.3]; what no screen can show is clipped.
        hue: radians.

    Returns:
        (..., 3): sRGB in [0, 1].
    """
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cones**3 @ to_linear.T, 0.0, 1.0)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def place_colors(points: np.ndarray, centre: tuple[float, float] = (0.0, 0.0), radius: float = 2.5) -> np.ndarray:
    """A colour for each place: hue for the direction from `centre`, vividness for the distance.

    Args:
        points: (n, 2).
        radius: distance at which colours are as vivid as they get.

    Returns:
        (n, 3): sRGB in [0, 1].
    """
    x, y = np.nan_to_num(np.asarray(points, dtype=float) - centre).T
    vividness = np.clip(np.hypot(x, y) / radius, 0.0, 1.0)
    return oklch(0.60 + 0.08 * vividness, 0.03 + 0.14 * np.sqrt(vividness), np.arctan2(y, x))
