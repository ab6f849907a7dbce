"""Densities on a grid: what is drawn of a flow, and kept of every epoch of a run."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import torch

from atomic import write_atomically
from datasets import Points, Target
from flows import Flow
from training.evaluation import log_prob

__all__ = ["DensityGrid", "load_density", "save_density"]

SIDE = 100  # points along each side of the window


class DensityGrid:
    """The midpoints of 100 x 100 pixels that cover a target's window.

    Attributes:
        points: shape (10000, 2), on `device`, row by row, the lowest y first.
    """

    def __init__(self, target: Target, device: torch.device) -> None:
        self.target = target
        x, y = (torch.linspace(low, high, 2 * SIDE + 1)[1::2] for low, high in target.window)
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        self.points = torch.stack([columns, rows], dim=-1).view(-1, 2).to(device)

    @functools.cached_property
    def of_target(self) -> np.ndarray:
        """The target's density per unit area, shape (100, 100), the lowest y first; of points, a histogram."""
        if isinstance(self.target, Points):
            return self.target.histogram(SIDE)
        return self.target.log_prob(self.points.cpu().double()).exp().view(SIDE, SIDE).numpy()

    @property
    def name_of_target(self) -> str:
        return "histogram of the data" if isinstance(self.target, Points) else "target density"

    def density_of(self, flow: Flow) -> np.ndarray:
        """The same of `flow`, which is in evaluation mode."""
        return log_prob(flow, self.points).exp().view(SIDE, SIDE).cpu().numpy()


def save_density(run: Path, epoch: int, density: np.ndarray) -> None:
    """Keep the density that a run has learned by the end of `epoch`, in half precision: 20 kB."""
    buffer = io.BytesIO()
    with np.errstate(over="ignore"):  # what is too high for half precision becomes infinite, and is drawn as the top
        np.save(buffer, density.astype(np.float16))
    write_atomically(_path(run, epoch), buffer.getvalue())


def load_density(run: Path, epoch: int) -> np.ndarray:
    """What `save_density` kept."""
    return np.load(_path(run, epoch)).astype(np.float32)


def _path(run: Path, epoch: int) -> Path:
    return run / "densities" / f"epoch_{epoch:04d}.npy"
