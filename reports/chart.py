"""Line charts as SVG text, coloured by the page's style sheet, so that they follow its light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Series", "chart", "swatch"]

COLORS = 8  # of the style sheet; more series than that are dashed as well
DASHES = ("", "7 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 38
TICKS = 5  # on an axis, about
# A logarithmic axis reaches down to the highest value / MOST_RATIO at most, or to LEAST if that is lower.
MOST_RATIO, LEAST = 1e5, 1e-5
MOST_POINTS = WIDTH  # of a line: more cannot be seen


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: shown where the pointer is.
        index: of its colour, and of the row of the table that it belongs to.
        x, y: its points; those that are not finite are left out.
    """

    name: str
    index: int
    x: Sequence[float]
    y: Sequence[float]


def chart(title: str, x_label: str, series: Sequence[Series], logarithmic: bool = False) -> str:
    """A figure with a title and one line for each of `series`.

    Args:
        logarithmic: whether the vertical axis is logarithmic; it is linear if no value is above zero. It reaches down
            five decades from the highest value at most, or to 1e-5 if that is lower. Lower values, also those not
            above zero, such as the estimate of a small KL, are drawn at its lower end.
    """
    lines = [
        (line, [(x, y) for x, y in zip(line.x, line.y) if math.isfinite(x) and math.isfinite(y)]) for line in series
    ]
    points = [point for _, line in lines for point in line]
    if not points:
        return f"<figure><figcaption>{html.escape(title)}</figcaption><p>no values</p></figure>"
    high = max(y for _, y in points)
    logarithmic = logarithmic and high > 0
    least = max(min(y for _, y in points if y > 0), min(high / MOST_RATIO, LEAST)) if logarithmic else -math.inf
    low = max(least, min(y for _, y in points))
    scale = math.log10 if logarithmic else float
    x_ticks = _ticks(0.0, max(x for x, _ in points))
    y_ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    left, right = min(0.0, x_ticks[0]), max(max(x for x, _ in points), x_ticks[-1])
    bottom, top = scale(min(low, y_ticks[0])), scale(max(high, y_ticks[-1]))

    def across(x: float) -> float:
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (scale(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)} against {x_label}">']
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {down(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks:
        parts.append(f'<path class="tick" d="M{across(tick):.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(
            f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(tick)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(x_label)}</text>')
    for line, found in lines:
        if not found:
            continue
        kind = "line dot" if len(found) == 1 else "line"
        found = found * 2 if len(found) == 1 else found  # a line of one point would not be drawn
        found = [*found[: -1 : -(-len(found) // MOST_POINTS)], found[-1]]
        where = " ".join(f"{across(x):.1f},{down(max(y, low)):.1f}" for x, y in found)
        values = " ".join(f"{x:.10g},{y:.6g}" for x, y in found)
        parts.append(
            f'<polyline class="{kind}" style="--color: {_color(line.index)}" stroke-dasharray="{_dash(line.index)}" '
            f'data-index="{line.index}" data-name="{html.escape(line.name)}" data-values="{values}" points="{where}"/>'
        )
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{''.join(parts)}</svg></figure>"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that hold `low` and `high` between them."""
    if high - low < 1e-4 * max(abs(low), abs(high), 1e-12):  # a constant, rounding aside: a little room around it
        room = 0.05 * abs(high) or 1.0
        low, high = low - room, high + room
    rough = (high - low) / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    if high < 3 * low:
        return [tick for tick in _ticks(low, high) if tick > 0]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first < 4 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below, above = [t for t in ticks if t <= low * 1.001], [t for t in ticks if t >= high * 0.999]
    return [t for t in ticks if below[-1] <= t <= above[0]] if below[-1] < above[0] else [below[-1], 10 * below[-1]]


def _number(value: float) -> str:
    text = f"{value:.10g}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def _color(index: int) -> str:
    return f"var(--c{index % COLORS})"


def _dash(index: int) -> str:
    return DASHES[index // COLORS % len(DASHES)]


def swatch(index: int) -> str:
    """The line of the series of that index, as charts draw it; from the 32nd on lines look like earlier ones."""
    look = f'stroke="{_color(index)}" stroke-width="2.5" stroke-dasharray="{_dash(index)}"'
    return f'<svg class="swatch" viewBox="0 0 24 6" aria-hidden="true"><path d="M0 3H24" {look}/></svg>'
