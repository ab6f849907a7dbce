"""Matplotlib figures without pyplot: no global state, and never a display."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from atomic import write_atomically

__all__ = [
    "Window",
    "add_axes",
    "add_color_bar",
    "box",
    "new_figure",
    "pixels",
    "set_ticks",
    "style_axes",
    "write_png",
]

DPI = 100
Window = tuple[tuple[float, float], tuple[float, float]]


def new_figure(width: int, height: int) -> Figure:
    """An empty white figure, measured in pixels."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Axes at a place measured in pixels, from the upper left corner."""
    across, down = figure.bbox.width, figure.bbox.height
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def style_axes(axes: Axes, window: Window, title: str) -> None:
    """Axes over `window`, drawn as a square, with a title and few, small ticks."""
    (left, right), (bottom, top) = window
    axes.set(xlim=window[0], ylim=window[1], aspect=(right - left) / (top - bottom))
    axes.set_title(title, fontsize=11, pad=5)
    set_ticks(axes, 5, apart=0.08)  # further out they would meet those of the next panel
    axes.ticklabel_format(scilimits=(-2, 4), useOffset=False)  # long labels would be cut off
    axes.yaxis.get_offset_text().set(fontsize=9, ha="right")  # above the numbers, not under the title
    axes.xaxis.get_offset_text().set_fontsize(9)
    axes.tick_params(length=2, pad=2, color="0.6", labelcolor="0.35")
    for name, axis, room in (("x", axes.xaxis, 60), ("y", axes.yaxis, 44)):
        labels = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
        axes.tick_params(axis=name, labelsize=min(9, room / max(map(len, labels), default=1)))
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color="0.6")


def set_ticks(axes: Axes, intervals: int, apart: float) -> None:
    """Ticks at round numbers, so many intervals at most, none nearer to an end than the share `apart` of an axis."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        ticks = MaxNLocator(intervals, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        room = apart * (high - low) - 1e-9 * (high - low)  # which rounding may take
        axis.set_ticks(ticks[(ticks >= low + room) & (ticks <= high - room)])


def add_color_bar(axes: Axes, shown: ScalarMappable, label: str, extend: str = "neither") -> None:
    """Fill `axes` with the colour scale of `shown`; `extend` is matplotlib's."""
    bar = axes.figure.colorbar(shown, cax=axes, extend=extend)
    bar.ax.tick_params(labelsize=9, length=2, pad=2)
    bar.formatter.set_powerlimits((-3, 4))  # long labels would push the bar's own out of the picture
    bar.outline.set(linewidth=0.4)
    bar.set_label(label, fontsize=9, labelpad=2)


def pixels(figure: Figure) -> np.ndarray:
    """Draw, and return the picture: shape (height, width, 3), uint8."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write `picture`, shape (height, width, 3), uint8, so that the file is always whole."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    write_atomically(path, buffer.getvalue())


def box(axes: Axes) -> tuple[int, int, int, int]:
    """Where the axes are in the picture, in whole pixels: left, top, width, height. The figure must be drawn."""
    extent, height = axes.get_window_extent(), axes.figure.bbox.height
    left, right = round(extent.x0), round(extent.x1)
    top, bottom = round(height - extent.y1), round(height - extent.y0)
    return left, top, right - left, bottom - top
