"""The figure of an epoch: target, learned density, samples, and where the flow sends the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from plots.figure import Window, add_axes, add_color_bar, new_figure, style_axes, write_png
from plots.painting import highest
from plots.palette import DENSITY_MAP

__all__ = ["EpochFigure"]

SIDE, TOP = 290, 66  # pixels: of a panel, and above it
LEFTS = (48, 352, 770, 1096)  # room for labels such as -2500, and for the colour bar
BASE_WINDOW: Window = ((-4.0, 4.0), (-4.0, 4.0))
POINT = {"linestyle": "none", "marker": ".", "markeredgewidth": 0}


class EpochFigure:
    """Four panels, built once: an epoch replaces the arrays alone.

    Args:
        target: the target's density on a grid, per unit area, shape (rows, columns), the lowest y first.
        window: the rectangle that the grid covers.
        title: what the figure is of.
        origin: points of the data, shape (n, 2), whose images in the base are shown.
        name: what `target` is.
    """

    def __init__(
        self, target: np.ndarray, window: Window, title: str, origin: np.ndarray, name: str = "target density"
    ) -> None:
        self.title = title
        self.figure = new_figure(1400, 390)
        extent = (*window[0], *window[1])
        top = 1.05 * highest(target)
        names = [name, "learned density", "samples of the model", "data carried to the base"]
        self.axes = []
        for index, heading in enumerate(names):
            axes = add_axes(self.figure, LEFTS[index], TOP, SIDE, SIDE)
            style_axes(axes, window if index < 3 else BASE_WINDOW, heading)
            self.axes.append(axes)
        self.axes[1].set_yticklabels([])
        shared = {"origin": "lower", "extent": extent, "cmap": DENSITY_MAP, "vmin": 0.0, "vmax": top,
                  "aspect": self.axes[0].get_aspect()}  # fmt: skip
        self.axes[0].imshow(target, **shared)
        self.learned = self.axes[1].imshow(np.zeros_like(target), **shared)
        bar = add_axes(self.figure, LEFTS[1] + SIDE + 8, TOP, 11, SIDE)
        add_color_bar(bar, self.learned, "probability per unit area", extend="max")

        color = colormaps[DENSITY_MAP](0.35)
        self.samples = self.axes[2].plot([], [], markersize=2.6, alpha=0.8, color=color, **POINT)[0]
        # Coloured by where in the data they come from, so that one sees how the flow unfolds it.
        colors = self._colors(origin, window)
        self.images = self.axes[3].scatter(origin[:, 0], origin[:, 1], s=4, c=colors, linewidths=0)
        self.heading = self.figure.text(0.5, 0.957, title, fontsize=12, ha="center", va="center")
        circles = [self._circle(self.axes[3], radius) for radius in (1, 2, 3)]
        # All the rest is drawn once.
        self._moving = [self.learned, self.samples, self.images, *(part for circle in circles for part in circle)]
        for artist in [*self._moving, self.heading]:
            artist.set_animated(True)
        self.figure.canvas.draw()
        self._still = self.figure.canvas.copy_from_bbox(self.figure.bbox)

    @staticmethod
    def _circle(axes: Axes, radius: int) -> tuple[Artist, Artist]:
        circle = Circle((0, 0), radius, fill=False, linewidth=0.8, color="0.15", linestyle=(0, (4, 3)))
        label = axes.annotate(f"{radius}σ", (0, radius), fontsize=9, ha="center", va="bottom", color="0.15")
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # it lies among the points
        return axes.add_patch(circle), label

    @staticmethod
    def _colors(origin: np.ndarray, window: Window) -> np.ndarray:
        """A colour that changes smoothly over the window: hue from left to right, brightness from bottom to top."""
        (left, right), (bottom, top) = window
        across, up = (origin[:, 0] - left) / (right - left), (origin[:, 1] - bottom) / (top - bottom)
        colors = colormaps["turbo"](0.08 + 0.84 * np.clip(across, 0, 1))
        colors[:, :3] *= (0.55 + 0.45 * np.clip(up, 0, 1))[:, None]
        return colors

    def update(self, learned: np.ndarray, samples: np.ndarray, images: np.ndarray, subtitle: str) -> None:
        """Show another model.

        Args:
            learned: its density, on the grid of the target.
            samples: points, shape (n, 2).
            images: of the points `origin`, in the base, shape (n, 2).
            subtitle: follows the title.
        """
        self.learned.set_data(learned)
        self.samples.set_data(samples[:, 0], samples[:, 1])
        self.images.set_offsets(images)
        self.heading.set_text(f"{self.title}   ·   {subtitle}")

    def picture(self) -> np.ndarray:
        """The figure as an array, shape (height, width, 3), uint8."""
        canvas = self.figure.canvas
        canvas.restore_region(self._still)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        self.figure.draw_artist(self.heading)
        return np.array(canvas.buffer_rgba())[..., :3]

    def save(self, path: Path) -> None:
        """Write a PNG."""
        write_png(path, self.picture())
