"""The pictures of a sweep, from what its runs have kept."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from plots.painting import highest, paint_density
from plots.palette import density_palette
from plots.sheet import Panel, Sheet, Strip
from training.configuration import load_config
from training.density_grid import load_density, load_target
from training.run_folder import load_metrics
from training.sweep_table import SweepRow, differences, in_words, read_rows

__all__ = ["draw_sheets", "thumbnail"]


def draw_sheets(sweep: Path) -> None:
    """Draw sheet.png, each run's last density, and sheet.gif, all their epochs: a strip for each target."""
    begun = [(row, target) for row in read_rows(sweep) if (target := load_target(row.folder)) is not None]
    if not begun:
        return
    rows = [row for row, _ in begun]
    strips: dict[str, Strip] = {}
    for (row, target), difference in zip(begun, differences(rows)):
        config = load_config(row.folder, "resume")
        key = OmegaConf.to_yaml(config.data)
        if key not in strips:
            of_data = {key: value for key, value in difference.items() if key.startswith("data.")}
            title = " ".join([config.choices.data, *in_words(of_data)])
            strips[key] = Strip(f"{target.name}: {title}", target.density, target.window, [])
        strips[key].panels.append(_panel(row, difference))
    measures = " or ".join(sorted({row.measure.upper() for row in rows}))
    sheet = Sheet(list(strips.values()), f"{sweep.name}: {len(rows)} runs, {measures} in nats")
    sheet.save_png(sweep / "sheet.png")
    sheet.save_gif(sweep / "sheet.gif")


def thumbnail(run: Path) -> bytes | None:
    """A PNG of the last density that a run has learned, on its target's colour scale; None where there is none."""
    found, target = _densities(run), load_target(run)
    if not found or target is None:
        return None
    canvas = np.zeros(found[-1].shape, np.uint8)
    paint_density(canvas, (0, 0, canvas.shape[1], canvas.shape[0]), found[-1] / highest(target.density))
    image = Image.fromarray(canvas)
    image.putpalette(density_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _panel(row: SweepRow, difference: dict[str, str]) -> Panel:
    words = in_words({key: value for key, value in difference.items() if key.partition(".")[0] != "data"})
    if row.error is not None:
        note = "failed"
    elif row.figures:
        note = row.headline
    else:
        note = "not finished"
    return Panel(words, f"{row.number}: {note}", _densities(row.folder))


def _densities(run: Path) -> list[np.ndarray]:
    """The density that a run has learned by the end of each of its epochs, each of shape (rows, columns)."""
    return [load_density(run, int(row["epoch"])) for row in load_metrics(run)]
