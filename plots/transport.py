"""transport.gif: samples, and a grid, carried from the base to the data, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from plots.figure import Window, box, new_figure, pixels, style_axes
from plots.gif import write_gif
from plots.palette import color_of_angle, point_palette
from plots.text import draw_text, to_grey_indices

__all__ = ["TransportGif"]

SIZE, HEIGHT = 480, 508
LINE_GREY = 11  # of the palette's greys
REFINEMENT = 6  # pixels of a line for each of its points
FRAMES, FRAME_MILLISECONDS, FIRST_MILLISECONDS, LAST_MILLISECONDS = 48, 60, 700, 1800
DISK = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if abs(dy) + abs(dx) < 2]  # a point, in pixels


class TransportGif:
    """The animation of a flow as a map; its axes are drawn once.

    Args:
        path: of the GIF.
        window: what is shown throughout; it should hold both the base and the data.
        title: what the animation is of.
        note: what else is to be known of the axes.
    """

    def __init__(self, path: Path, window: Window, title: str, note: str = "") -> None:
        self.path, self.window = path, window
        figure = new_figure(SIZE, HEIGHT)
        axes = figure.add_axes((0.08, 0.05, 0.9, 0.9 * SIZE / HEIGHT))
        style_axes(axes, window, "")
        figure.text(0.08, 0.965, title, fontsize=11, va="center")
        notes = "\n".join(filter(None, [note, "stages between the ends are shifted and scaled to fit"]))
        figure.text(0.97, 0.055, notes, fontsize=8, ha="right", va="bottom", color="0.5")
        self._background = to_grey_indices(pixels(figure))
        self._box = box(axes)

    def write(self, points: np.ndarray, lines: np.ndarray) -> None:
        """Write the animation.

        Args:
            points: samples at every stage, the base first: shape (stages, n, 2).
            lines: points along the grid's lines at every stage: shape (stages, lines, points, 2).
        """
        write_gif(self.path, point_palette(), self._frames(points, lines))

    def _frames(self, points: np.ndarray, lines: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        colors, last = color_of_angle(points[0]), len(points) - 1
        lines = _refine(lines)
        left, _, width, _ = self._box
        for frame in range(FRAMES + 1):
            # A block moves a point along a straight line, from x to x + g(x): so the way between stages is linear.
            position = frame / FRAMES * last
            stage = min(int(position), last - 1)
            share = position - stage
            canvas = self._background.copy()
            self._splat(canvas, (1 - share) * lines[stage] + share * lines[stage + 1], LINE_GREY, [(0, 0)])
            self._splat(canvas, (1 - share) * points[stage] + share * points[stage + 1], colors, DISK)
            caption = "base" if frame == 0 else "data" if frame == FRAMES else f"stage {stage + 1} of {last}"
            draw_text(canvas, (left + width, 18), caption, size=14,
                      clear=(left + width - 130, 4, left + width + 1, 32))  # fmt: skip
            pause = {0: FIRST_MILLISECONDS, FRAMES: LAST_MILLISECONDS}.get(frame, FRAME_MILLISECONDS)
            yield canvas, pause

    def _splat(
        self, canvas: np.ndarray, points: np.ndarray, colors: np.ndarray | int, shape: list[tuple[int, int]]
    ) -> None:
        """Colour the pixels of `points`, shape (n, 2), and those around them that `shape` lists."""
        left, top, width, height = self._box
        (x_min, x_max), (y_min, y_max) = self.window
        x = left + (points[:, 0] - x_min) / (x_max - x_min) * width
        y = top + (y_max - points[:, 1]) / (y_max - y_min) * height
        inside = (x >= left + 2) & (x < left + width - 2) & (y >= top + 2) & (y < top + height - 2)
        column, row = x[inside].astype(int), y[inside].astype(int)
        color = colors[inside] if isinstance(colors, np.ndarray) else colors
        for dy, dx in shape:
            canvas[row + dy, column + dx] = color


def _refine(lines: np.ndarray) -> np.ndarray:
    """Points along the lines, close enough to look like lines: shape (stages, lines, points, 2) to (stages, n, 2)."""
    shares = np.arange(REFINEMENT)[:, None] / REFINEMENT
    between = lines[:, :, :-1, None] * (1 - shares) + lines[:, :, 1:, None] * shares
    return between.reshape(len(lines), -1, 2)
