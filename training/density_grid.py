"""Densities on a grid: what is drawn of a flow and its target, and kept of every epoch of a run."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from atomic import write_atomically
from datasets import Target
from datasets.target import Window, midpoints
from flows import Flow
from training.diagnosis import first_line
from training.evaluation import log_prob

__all__ = [
    "DensityGrid",
    "DrawnTarget",
    "has_density",
    "load_density",
    "load_target",
    "save_density",
    "save_target",
]

TARGET = Path("densities", "target.npz")


class DensityGrid:
    """The midpoints of n x n cells that cover a target's window, n = `target.cells`.

    Attributes:
        points: shape (n^2, 2), on `device`, row by row, the lowest y first.
    """

    def __init__(self, target: Target, device: torch.device) -> None:
        self.target = target
        self.points = midpoints(target.window, target.cells).to(device)

    @functools.cached_property
    def of_target(self) -> np.ndarray:
        """The target's density per unit area, shape (n, n), the lowest y first; of points, a histogram."""
        return self.target.on_grid()

    def density_of(self, flow: Flow) -> np.ndarray:
        """The density of `flow`, which must be in evaluation mode, on the same grid as the target's."""
        return log_prob(flow, self.points).exp().view(self.target.cells, -1).cpu().numpy()


class DrawnTarget(NamedTuple):
    """All that is drawn of a target."""

    name: str
    density: np.ndarray  # shape (n, n), the lowest y first
    window: Window


def save_target(run: Path, grid: DensityGrid) -> None:
    """Keep what is drawn of the target: its file may be gone, or another, when a sweep's sheet is drawn."""
    buffer = io.BytesIO()
    density = grid.of_target.astype(np.float32)
    np.savez_compressed(buffer, name=grid.target.drawn_as, density=density, window=grid.target.window)
    write_atomically(run / TARGET, buffer.getvalue())


def load_target(run: Path) -> DrawnTarget | None:
    """What `save_target` kept; None where the run ended before.

    Raises:
        ValueError: the file cannot be read.
    """
    path = run / TARGET
    try:
        with np.load(path) as file:
            horizontal, vertical = (tuple(ends) for ends in file["window"].tolist())
            return DrawnTarget(str(file["name"]), file["density"], (horizontal, vertical))
    except FileNotFoundError:
        return None
    except Exception as error:  # on bytes that anyone may have written, the readers raise whatever they meet
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error


def save_density(run: Path, epoch: int, density: np.ndarray) -> None:
    """Keep the density that a run has learned by the end of `epoch`: 40 kB on 100 x 100 cells."""
    buffer = io.BytesIO()
    np.save(buffer, density.astype(np.float32))
    write_atomically(_path(run, epoch), buffer.getvalue())


def has_density(run: Path, epoch: int) -> bool:
    """Whether `save_density` kept it: a run may have ended between its metrics and its pictures."""
    return _path(run, epoch).exists()


def load_density(run: Path, epoch: int) -> np.ndarray:
    """What `save_density` kept."""
    return np.load(_path(run, epoch))


def _path(run: Path, epoch: int) -> Path:
    return run / "densities" / f"epoch_{epoch:04d}.npy"
