"""Text on pictures that are arrays of palette indices, the greys first."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plots.palette import GREYS

__all__ = ["draw_text", "to_grey_indices"]


def to_grey_indices(picture: np.ndarray) -> np.ndarray:
    """The nearest grey's index for each pixel of `picture`, shape (height, width, 3) to (height, width), uint8."""
    return np.rint(picture.mean(axis=2) * (GREYS - 1) / 255).astype(np.uint8)


def draw_text(canvas: np.ndarray, at: tuple[int, int], text: str, size: int, clear: tuple[int, int, int, int]) -> None:
    """Write `text` in black so that it ends at `at`, (x, y), after whitening `clear`: left, top, right, bottom.

    Args:
        canvas: palette indices, shape (height, width), uint8, changed in place.
        at: the right end and the middle of the line.
    """
    left, top, right, bottom = clear
    canvas[top:bottom, left:right] = _strip((right - left, bottom - top), (at[0] - left, at[1] - top), text, size)


@functools.lru_cache(maxsize=64)  # an animation has the same text in many frames
def _strip(shape: tuple[int, int], at: tuple[int, int], text: str, size: int) -> np.ndarray:
    strip = Image.new("L", shape, 255)
    ImageDraw.Draw(strip).text(at, text, fill=0, font=_font(size), anchor="rm")
    return np.rint(np.asarray(strip) * ((GREYS - 1) / 255)).astype(np.uint8)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The one font that is certainly there.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
