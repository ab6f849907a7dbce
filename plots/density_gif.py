"""density.gif: the learned density beside the target, a frame for each epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plots.figure import Window, add_axes, add_color_bar, box, new_figure, pixels, style_axes
from plots.gif import GifFile
from plots.painting import highest, paint_bar, paint_density
from plots.palette import DENSITY_MAP, density_palette
from plots.text import draw_text, to_grey_indices

__all__ = ["DensityGif"]

WIDTH, HEIGHT = 748, 400
SIDE, LEFT, TOP, GAP = 300, 48, 66, 12  # pixels: of a panel, and around the two; room for labels such as -2500
FRAME_MILLISECONDS, NEWEST_MILLISECONDS = 250, 2000


class DensityGif:
    """Frames of the training animation, a few milliseconds each: the axes are drawn once, and a frame is an array.

    Args:
        path: of the GIF.
        target: the target's density on a grid, per unit area, shape (rows, columns), the lowest y first.
        window: the rectangle that the grid covers.
        title: what the animation is of.
        name: what `target` is.
    """

    def __init__(
        self, path: Path, target: np.ndarray, window: Window, title: str, name: str = "target density"
    ) -> None:
        self.file = GifFile(path, density_palette(), FRAME_MILLISECONDS, NEWEST_MILLISECONDS)
        self.top = 1.05 * highest(target)
        figure = new_figure(WIDTH, HEIGHT)
        left, right = (add_axes(figure, LEFT + n * (SIDE + GAP), TOP, SIDE, SIDE) for n in (0, 1))
        style_axes(left, window, name)
        style_axes(right, window, "learned density")
        right.set_yticklabels([])
        shown = right.imshow(target, origin="lower", extent=(*window[0], *window[1]), vmin=0, vmax=self.top,
                             cmap=DENSITY_MAP, aspect=left.get_aspect())  # fmt: skip
        bar = add_axes(figure, LEFT + 2 * SIDE + GAP + 6, TOP, 10, SIDE)
        add_color_bar(bar, shown, "probability per unit area (top: and above)")
        figure.text(LEFT / WIDTH, 1 - 21 / HEIGHT, title, fontsize=11, va="center")
        background = pixels(figure)
        self._canvas = to_grey_indices(background)
        paint_density(self._canvas, box(left), target / self.top)
        paint_bar(self._canvas, box(bar))
        self._learned = box(right)
        # What changes from frame to frame: the right half, up to the colour bar.
        self._part = slice(0, HEIGHT), slice(self._learned[0], self._learned[0] + self._learned[2])

    def append(self, learned: np.ndarray, caption: str) -> None:
        """Add a frame with the density `learned`, on the grid of the target."""
        rows, columns = self._part
        paint_density(self._canvas, self._learned, learned / self.top)
        strip = (columns.start, 4, columns.stop, 38)
        draw_text(self._canvas, (columns.stop, 21), caption, size=14, clear=strip)
        if self.file.length == 0:
            self.file.start(self._canvas)
        else:
            self.file.append(self._canvas[rows, columns], (columns.start, rows.start))
