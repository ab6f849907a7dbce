"""Figures measured in pixels, without pyplot: no global state, no display."""

from __future__ import annotations

__all__ = [
    "add_axes",
    "blank_figure",
    "bold_and_plain",
    "describe_kl",
    "describe_seconds",
    "pixels",
    "place",
    "write_png",
]

DPI = 100
