"""Figures measured in pixels, without pyplot: no global state, no display."""

from __future__ import annotations

import io
import math
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from atomic import write_atomically
from plots.colors import INK
from plots.window import Window

__all__ = [
    "add_axes",
    "bold_and_plain",
    "blank_figure",
    "describe_kl",
    "describe_seconds",
    "pixels",
    "place",
    "write_png",
]

DPI = 100
