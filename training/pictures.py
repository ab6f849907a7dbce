"""The pictures of a run: what the flow is asked for, and where it is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import Target
from flows import Flow
from plots.density_gif import DensityGif
from plots.epoch_figure import EpochFigure
from plots.transport import TransportGif
from training.density_grid import DensityGrid
from training.evaluation import Evaluation
from training.figures import in_digits
from training.run_folder import figure_path

__all__ = ["Pictures"]

SAMPLES = 1000
GRID_LINES, GRID_POINTS = 13, 25  # lines each way, and points along each
GRID_SIDE = 3.0  # the grid covers the base out to this many standard deviations


class Pictures:
    """Draws the figure and the two animations of a run folder after each epoch.

    Args:
        folder: the run folder.
        target: what the flow is trained on.
        title: of the pictures.
        grid: where the densities are drawn.
    """

    def __init__(self, folder: Path, target: Target, title: str, grid: DensityGrid) -> None:
        self.folder, window, self.device = folder, target.window, grid.points.device
        density, name = grid.of_target, target.drawn_as
        # The same points in every epoch, so that what moves is the flow.
        generator = torch.Generator().manual_seed(0)
        self.data = target.sample(SAMPLES, generator)
        base = torch.randn(SAMPLES, 2, generator=generator)
        self.base = torch.cat([base, _grid_lines()]).to(self.device)
        self.figure = EpochFigure(density, window, title, self.data.numpy(), name)
        self.density_gif = DensityGif(folder / "density.gif", density, window, title, name)
        # One's own points are carried from the base to their standardized place.
        self.mean, self.std = target.mean, target.std
        ends = (torch.tensor(window).T - self.mean) / self.std
        widest = max(4.0, float(ends.abs().max()))
        note = "axes: standard deviations of the data" if target.in_own_units else ""
        ends = ((-widest, widest), (-widest, widest))
        self.transport_gif = TransportGif(folder / "transport.gif", ends, title, note)

    @property
    def gif_length(self) -> int:
        """Bytes of density.gif, for :meth:`rewind`."""
        return self.density_gif.file.length

    def rewind(self, gif_length: int) -> None:
        """Take density.gif back to the epoch of a checkpoint."""
        self.density_gif.file.truncate(gif_length)

    @torch.no_grad()
    def draw(self, flow: Flow, learned: np.ndarray, epoch: int, evaluation: Evaluation, seconds: float) -> None:
        """Draw `flow`, which is in evaluation mode, and `learned`, its density on the grid."""
        images = flow(self.data.to(self.device))[0].cpu().numpy()
        *stages, samples = flow.inverse_path(self.base)
        path = torch.stack([*stages, (samples - self.mean.to(samples)) / self.std.to(samples)]).cpu().numpy()

        nll = "" if evaluation.kl is None else f"   ·   NLL {evaluation.nll:.3f} nats"
        subtitle = f"epoch {epoch}   ·   {evaluation.headline}{nll}   ·   {seconds:.0f} s"
        self.figure.update(learned, samples[:SAMPLES].cpu().numpy(), images, subtitle)
        self.figure.save(figure_path(self.folder, epoch))
        self.density_gif.append(learned, f"epoch {epoch}   {evaluation.measure} {in_digits(evaluation.merit)} nats")
        fitted = _fit(path, SAMPLES)
        lines = fitted[:, SAMPLES:].reshape(len(path), 2 * GRID_LINES, GRID_POINTS, 2)
        self.transport_gif.write(fitted[:, :SAMPLES], lines)


def _fit(path: np.ndarray, n: int) -> np.ndarray:
    """Shift and scale every stage so that its first `n` points go from the base's size to the data's steadily.

    Inside the flow only shape means something: the next ActNorm undoes any shift and scale.
    """
    means = path[:, :n].mean(axis=1, keepdims=True)
    sizes = (path[:, :n] - means).std(axis=(1, 2), keepdims=True)
    share = np.linspace(0, 1, len(path))[:, None, None]
    steady_mean = (1 - share) * means[0] + share * means[-1]
    steady_size = sizes[0] ** (1 - share) * sizes[-1] ** share
    return steady_mean + (path - means) / sizes * steady_size


def _grid_lines() -> Tensor:
    """Points along the lines of a square grid in the base, shape (2 * GRID_LINES * GRID_POINTS, 2)."""
    across = torch.linspace(-GRID_SIDE, GRID_SIDE, GRID_LINES)
    along = torch.linspace(-GRID_SIDE, GRID_SIDE, GRID_POINTS)
    upright = torch.cartesian_prod(across, along)
    return torch.cat([upright, upright.flip(1)])
