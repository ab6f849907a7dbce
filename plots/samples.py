"""The picture of a set of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plots.figure import Window, add_axes, add_color_bar, new_figure, pixels, style_axes, write_png
from plots.palette import DENSITY_MAP

__all__ = ["draw_samples"]

SIDE, TOP = 390, 56  # pixels: of a panel, and above it
MOST_POINTS = 20_000  # more would only cover each other
AT_ONCE = 2**20  # points counted in the histogram at a time: each takes some tens of bytes


def draw_samples(path: Path, samples: np.ndarray, log_prob: np.ndarray, window: Window, title: str) -> None:
    """Draw samples, coloured by their log-density, beside their histogram, and write a PNG.

    Args:
        samples: points, shape (n, 2).
        log_prob: the model's log-density at each in nats, shape (n,).
        window: the rectangle that is shown.
    """
    figure = new_figure(1050, 480)
    scatter, histogram = (add_axes(figure, left, TOP, SIDE, SIDE) for left in (48, 568))
    style_axes(scatter, window, "samples" if len(samples) <= MOST_POINTS else f"first {MOST_POINTS:,} samples")
    style_axes(histogram, window, f"histogram of {len(samples):,} samples")
    x, value = samples[:MOST_POINTS], log_prob[:MOST_POINTS]
    low, high = np.quantile(value, [0.02, 1.0])
    shown = scatter.scatter(x[:, 0], x[:, 1], s=1.5, c=value, cmap="viridis", vmin=low, vmax=high, linewidths=0)
    bins = int(np.clip(np.sqrt(len(samples)), 20, 160))
    parts = np.split(samples, range(AT_ONCE, len(samples), AT_ONCE))
    counts = sum(np.histogram2d(part[:, 0], part[:, 1], bins, window)[0] for part in parts)
    area = (window[0][1] - window[0][0]) * (window[1][1] - window[1][0]) / bins**2
    density = counts.T / (len(samples) * area)
    image = histogram.imshow(density, origin="lower", extent=(*window[0], *window[1]), cmap=DENSITY_MAP,
                             aspect=histogram.get_aspect())  # fmt: skip
    # Colours begin at the 2% quantile: the few values below it are so low that all others would look alike.
    add_color_bar(add_axes(figure, 48 + SIDE + 5, TOP, 12, SIDE), shown, "model's log p(x), nats", extend="min")
    add_color_bar(add_axes(figure, 568 + SIDE + 5, TOP, 12, SIDE), image, "share of samples per unit area")
    figure.text(0.5, 0.965, title, fontsize=12, ha="center", va="center")
    write_png(path, pixels(figure))
