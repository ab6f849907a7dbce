"""The sheet of a sweep: what its runs have learned, beside what they should have, on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable

from plots.figure import Window, add_axes, add_color_bar, box, new_figure, pixels, set_ticks, style_axes, write_png
from plots.gif import write_gif
from plots.painting import highest, paint_bar, paint_density
from plots.palette import DENSITY_MAP, density_palette
from plots.text import draw_text, to_grey_indices

__all__ = ["Panel", "Sheet", "Strip"]

SIDE, GAP, LINE = 170, 12, 13  # pixels: of a panel, between panels, of a line of text
BESIDE = 40  # pixels more between strips side by side, for the numbers of the second one's axis
LEFT, TOP, RIGHT, BOTTOM = 54, 40, 68, 24
MOST_PANELS = 5  # beside a target, in a line
LETTERS = 27  # of a line of a panel's title
LETTER, EPOCHS = 8, 150  # pixels: of a letter of the sheet's title, and of the epoch beside it
MOST_FRAMES, FRAME_MILLISECONDS, LAST_MILLISECONDS = 60, 250, 2000
FEWEST_FRAMES, MOST_PICTURES = 10, 3000  # of all panels in all frames: six kilobytes each


@dataclass(frozen=True)
class Panel:
    """One run.

    Attributes:
        words: what sets the run apart.
        note: the last line of its title, such as its KL.
        densities: what it has learned by the end of each epoch, each on the grid of the target; maybe none.
    """

    words: list[str]
    note: str
    densities: Sequence[np.ndarray]

    @property
    def title(self) -> str:
        return "\n".join([*_lines(self.words), self.note])


def _lines(words: Iterable[str]) -> list[str]:
    """Words in lines, as many to each as go above a panel."""
    lines: list[str] = []
    for word in words:
        word = word if len(word) <= LETTERS else f"…{word[1 - LETTERS :]}"
        if lines and len(lines[-1]) + len(word) < LETTERS:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@dataclass(frozen=True)
class Strip:
    """A target, per unit area on a grid, shape (rows, columns), the lowest y first, and the runs that learn it."""

    words: list[str]
    target: np.ndarray
    window: Window
    panels: list[Panel]

    @property
    def title(self) -> str:
        return "\n".join(_lines(self.words))

    def share(self, density: np.ndarray) -> np.ndarray:
        """`density` as a share of the target's highest."""
        return density / highest(self.target)


class Sheet:
    """A strip for each target: the target first, then its runs. Short strips stand side by side.

    Every density is shown as a share of its target's highest: so one colour scale serves all.
    """

    def __init__(self, strips: list[Strip], title: str) -> None:
        most = max(len(strip.panels) for strip in strips)
        columns = 1 + math.ceil(most / math.ceil(most / MOST_PANELS))  # lines as equal as can be
        titles = [part.title for strip in strips for part in (strip, *strip.panels)]
        head = LINE * (1 + max(title.count("\n") for title in titles)) + 8
        beside = min(len(strips), (1 + MOST_PANELS) // columns)  # where it is more than one, a strip is one line
        places = []  # strip, panel or None for the target, column, row
        row = 0
        for number, strip in enumerate(strips):
            first = number % beside * columns
            places.append((strip, None, first, row))
            for index, panel in enumerate(strip.panels):
                places.append((strip, panel, first + 1 + index % (columns - 1), row + index // (columns - 1)))
            if number % beside == beside - 1 or number == len(strips) - 1:
                row += -(-len(strip.panels) // (columns - 1))
        right = LEFT + beside * (columns * (SIDE + GAP) + BESIDE) - BESIDE
        self.width = max(right, LEFT + LETTER * len(title) + EPOCHS) + RIGHT
        self.height = TOP + row * (SIDE + head + GAP) + BOTTOM
        self.figure = new_figure(self.width, self.height)
        self.images: list[tuple[Axes, Strip, Panel]] = []
        self.targets: list[tuple[Axes, Strip]] = []
        for strip, panel, column, line in places:
            top = TOP + line * (SIDE + head + GAP) + head
            left = LEFT + column * (SIDE + GAP) + column // columns * BESIDE
            axes = add_axes(self.figure, left, top, SIDE, SIDE)
            style_axes(axes, strip.window, "")
            axes.set_title(strip.title if panel is None else panel.title, fontsize=8, pad=4, parse_math=False)
            if panel is None:
                set_ticks(axes, 3, apart=0)
                self.targets.append((axes, strip))
                continue
            axes.set(xticks=[], yticks=[])
            if panel.densities:
                self.images.append((axes, strip, panel))
            else:
                axes.text(0.5, 0.5, "no epoch", fontsize=9, ha="center", va="center", transform=axes.transAxes)
        self.bar = add_axes(self.figure, right + 4, TOP + head, 11, SIDE)
        add_color_bar(self.bar, ScalarMappable(cmap=DENSITY_MAP), "of the target's peak (1: and above)")
        self.figure.text(LEFT / self.width, 1 - 20 / self.height, title, fontsize=11, va="center", parse_math=False)

    def save_png(self, path: Path) -> None:
        """Write the last density of each run."""
        shown = [(axes, strip, strip.target) for axes, strip in self.targets]
        shown += [(axes, strip, panel.densities[-1]) for axes, strip, panel in self.images]
        drawn = []
        for axes, strip, density in shown:
            share = np.nan_to_num(strip.share(density), nan=0.0, posinf=1.0)
            extent = (*strip.window[0], *strip.window[1])
            aspect = axes.get_aspect()
            drawn.append(
                axes.imshow(share, origin="lower", extent=extent, vmin=0, vmax=1, cmap=DENSITY_MAP, aspect=aspect)
            )
        write_png(path, pixels(self.figure))
        for image in drawn:
            image.remove()

    def save_gif(self, path: Path) -> None:
        """Write the densities epoch by epoch; a run that has had its last stays at it."""
        write_gif(path, density_palette(), self._frames())

    def _frames(self) -> Iterator[tuple[np.ndarray, int]]:
        canvas = to_grey_indices(pixels(self.figure))
        paint_bar(canvas, box(self.bar))
        for axes, strip in self.targets:
            paint_density(canvas, box(axes), strip.share(strip.target))
        boxes = [box(axes) for axes, _, _ in self.images]
        last = max((len(panel.densities) for _, _, panel in self.images), default=1) - 1
        frames = min(MOST_FRAMES, max(FEWEST_FRAMES, MOST_PICTURES // max(1, len(self.images))))
        for epoch in np.unique(np.linspace(0, last, frames).round().astype(int)):
            for where, (_, strip, panel) in zip(boxes, self.images):
                density = panel.densities[min(epoch, len(panel.densities) - 1)]
                paint_density(canvas, where, strip.share(density))
            right = self.width - RIGHT
            draw_text(canvas, (right, 20), f"epoch {epoch + 1} of {last + 1}", size=13,
                      clear=(right - EPOCHS, 6, right + 1, 34))  # fmt: skip
            yield canvas.copy(), LAST_MILLISECONDS if epoch == last else FRAME_MILLISECONDS
