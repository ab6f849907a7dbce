"""The pictures of a sweep, from what its runs have kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from plots.painting import highest, paint_density
from plots.palette import density_palette
from plots.sheet import Panel, Sheet, Strip
from training.configuration import load_config
from training.density_grid import has_density, load_density, load_target
from training.run_folder import load_metrics
from training.sweep_table import SweepRow, differences, in_words, of_data, read_rows

__all__ = ["draw_sheets", "thumbnail"]

MOST = 200  # runs on a sheet: more would not be looked at, and a GIF has at most 65,535 lines of pixels


def draw_sheets(sweep: Path) -> None:
    """Draw sheet.png, each run's last density, and sheet.gif, all their epochs: a strip for each target."""
    begun = [(row, target) for row in read_rows(sweep) if (target := load_target(row.folder)) is not None]
    if not begun:
        return
    runs = f"{len(begun)} run{'s' * (len(begun) > 1)}"
    if len(begun) > MOST:
        runs = f"the best {MOST} of {runs}"
    begun = sorted(sorted(begun, key=lambda each: each[0].rank)[:MOST], key=lambda each: each[0].number)
    rows = [row for row, _ in begun]
    strips: dict[str, Strip] = {}
    for (row, target), difference in zip(begun, differences(rows)):
        config = load_config(row.folder, "resume")
        key = OmegaConf.to_yaml(config.data)
        if key not in strips:
            words = [*f"{target.name}: {config.choices.data}".split(), *in_words(of_data(difference))]
            strips[key] = Strip(words, target.density, target.window, [])
        strips[key].panels.append(_panel(row, difference))
    measures = " or ".join(sorted({row.measure.upper() for row in rows if row.figures}))
    sheet = Sheet(list(strips.values()), f"{sweep.name}: {runs}{measures and f', {measures} in nats'}")
    sheet.save_png(sweep / "sheet.png")
    sheet.save_gif(sweep / "sheet.gif")


def thumbnail(run: Path) -> bytes | None:
    """A PNG of the last density that a run has learned, on its target's colour scale; None where there is none."""
    found, target = _Densities(run), load_target(run)
    if not found or target is None:
        return None
    learned = found[-1]
    canvas = np.zeros(learned.shape, np.uint8)
    paint_density(canvas, (0, 0, canvas.shape[1], canvas.shape[0]), learned / highest(target.density))
    image = Image.fromarray(canvas)
    image.putpalette(density_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(row: SweepRow, difference: dict[str, str]) -> Panel:
    words = in_words({key: value for key, value in difference.items() if key.partition(".")[0] != "data"})
    note = "failed" if row.error is not None else row.headline or "not finished"
    return Panel(words, f"{row.number}: {note}", _Densities(row.folder))


class _Densities(Sequence[np.ndarray]):
    """The densities that a run kept at the ends of its epochs, each of shape (rows, columns).

    Each is read from its file only when it is used, because all those of a long sweep would not fit in memory.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.epochs = [epoch for row in load_metrics(run) if has_density(run, epoch := int(row["epoch"]))]

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, index: int) -> np.ndarray:
        return load_density(self.run, self.epochs[index])
