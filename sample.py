"""Sample a trained flow: `python sample.py run=outputs/resflow-moons/2026-01-01_12-00-00 n=10000`."""

from __future__ import annotations

if __name__ == "__main__":
    from training.interruption import exit_quietly

    exit_quietly()  # on a signal while all the rest is imported

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from arguments import ArgumentError, Range
from atomic import write_atomically
from datasets.point_table import PointTable
from datasets.target import Window, midpoints
from plots.samples import draw_samples
from training import evaluation
from training.command_line import command
from training.configuration import choose_device
from training.passes import in_passes
from training.run_folder import LoadedRun, load_run

ROWS = 20_000  # of a CSV file, written at a time
SAMPLES = 10_000  # unless told otherwise


@dataclass(frozen=True)
class Settings:
    """The settings at the top level."""

    run: str | int | None  # a sweep calls its runs by number
    n: Annotated[int, Range(ge=1)] | None
    points: str | None
    grid: Annotated[int, Range(ge=1, le=4096)] | None
    seed: Annotated[int, Range(ge=0)]
    format: Literal["npy", "csv"]
    out: str | None
    device: str


@torch.no_grad()
def sample(config: DictConfig, settings: Settings, folder: Path) -> None:
    """Write samples of a run's flow, their log-densities in nats and a picture of both, or log-densities elsewhere.

    With `points` or `grid`, the log-densities there are written, and samples only if `n` is set as well.
    """
    if settings.run is None:
        raise ArgumentError("run", "a folder written by train.py", "none")
    points = None if settings.points is None else _read_points(settings.points)
    run = load_run(os.path.expanduser(str(settings.run)), choose_device(settings.device))
    out = run.folder if settings.out is None else Path(os.path.expanduser(settings.out))
    n = settings.n
    if n is None and points is None and settings.grid is None:
        n = SAMPLES
    needs_window = n is not None or settings.grid is not None
    window = run.window if needs_window else None  # before anything is written: it may be damaged
    if points is not None:
        log_q = _log_prob(run, points)
        if len(bad := np.nonzero(np.isnan(log_q))[0]):
            got = f"{points[bad[0]].tolist()}, row {bad[0]} (from 0)"
            raise ArgumentError("points", "points that the flow can be evaluated at", got)
    written = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        if points is not None:
            _write(out / f"points_log_prob.{settings.format}", log_q, "log_prob")
            written.append(f"points_log_prob.{settings.format}")
        if settings.grid is not None:
            _write_grid(out / "density.npz", run, window, settings.grid)
            written.append("density.npz")
        if n is not None:
            _write_samples(out, run, window, n, settings)
            written += [f"samples.{settings.format}", f"log_prob.{settings.format}", "samples.png"]
    except OSError as error:
        raise ArgumentError("out", "a folder that can be written", f"'{out}': {error.strerror}") from error
    print(f"{', '.join(written)} in {out}")


def _read_points(path: str) -> Tensor:
    try:
        return torch.from_numpy(PointTable(path).table)
    except ArgumentError as error:
        raise ArgumentError("points", error.accepts, error.got) from None


def _write_samples(out: Path, run: LoadedRun, window: Window, n: int, settings: Settings) -> None:
    samples = evaluation.sample(run.flow, n, torch.Generator().manual_seed(settings.seed))
    x, log_q = samples.cpu().numpy(), _log_prob(run, samples)
    _write(out / f"samples.{settings.format}", x, "x,y")
    _write(out / f"log_prob.{settings.format}", log_q, "log_prob")
    draw_samples(out / "samples.png", x, log_q, window, f"{n:,} samples of {run.title}")


def _write_grid(path: Path, run: LoadedRun, window: Window, side: int) -> None:
    """Write the midpoints of cells over the window, x and y, shapes (side,), and log_prob[y, x], shape (side, side)."""
    points = midpoints(window, side)
    grid, log_q = points.view(side, side, 2).numpy(), _log_prob(run, points).reshape(side, side)
    buffer = io.BytesIO()
    np.savez(buffer, x=grid[0, :, 0], y=grid[:, 0, 1], log_prob=log_q)
    write_atomically(path, buffer.getvalue())


def _log_prob(run: LoadedRun, x: Tensor) -> np.ndarray:
    """The run's log-density in nats at `x`, shapes (n, 2) to (n,)."""
    return evaluation.log_prob(run.flow, x.to(next(run.flow.parameters()).device)).cpu().numpy()


def _write(path: Path, array: np.ndarray, header: str) -> None:
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, array)
    else:
        buffer.write(f"{header}\n".encode())
        for rows in in_passes(f"writing {path.name}", array, ROWS):
            np.savetxt(buffer, rows, fmt="%.9g", delimiter=",")  # 9 digits keep a float32
    write_atomically(path, buffer.getvalue())


# Hydra's shell completion asks only scripts that hold the text @hydra.main: this comment is for it to find.
if __name__ == "__main__":
    command(sample, Settings, "sample")
