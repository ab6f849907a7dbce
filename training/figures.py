"""Figures as people read them, the same wherever they stand."""

from __future__ import annotations

__all__ = ["in_digits", "with_error"]


def in_digits(figure: float, like: float | None = None) -> str:
    """Four decimals, five of what is below 0.001, and four digits from 1000 on.

    Args:
        figure: in nats, say.
        like: whose decimals it has; None for its own.
    """
    size = abs(figure if like is None else like)
    text = f"{figure:.4g}" if size >= 1000 else f"{figure:.{5 if size < 0.001 else 4}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def with_error(figure: float, stderr: float) -> str:
    """A figure and its standard error, of equal decimals."""
    return f"{in_digits(figure)} ± {in_digits(stderr, like=figure)}"
