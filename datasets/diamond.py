"""A lattice of small Gaussians, standing on its corner."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from datasets.target import TargetDensity, Window, gauss_legendre, in_float64, square

__all__ = ["Diamond"]

BOUND = 2.5  # the lattice's outermost Gaussians, before the turn


class Diamond(TargetDensity):
    """Equal Gaussians on a square lattice in [-2.5, 2.5]^2, turned by 45 degrees.

    As in the code of neural spline flows (Durkan et al. 2019, arXiv 1906.04032, `data/plane.py`), less the random
    shifts of up to 0.001 that each training set there gives its Gaussians.

    Args:
        side: Gaussians along each side.
        noise: standard deviation of each.
    """

    cells = 200

    @checked
    def __init__(
        self, side: Annotated[int, Range(ge=2, le=200)] = 20, noise: Annotated[float, Range(ge=0.001, le=1e6)] = 0.04
    ) -> None:
        self.side, self.noise = side, noise
        self.means = torch.linspace(-BOUND, BOUND, side, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        mean = self.means[torch.randint(self.side, (n, 2), generator=generator)]
        a, b = (mean + self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)).unbind(1)
        return (torch.stack([a + b, b - a], dim=1) / math.sqrt(2)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        a, b = y.unbind(-1)  # turned back, the coordinates are independent
        return (self._log_prob_along((a - b) / math.sqrt(2)) + self._log_prob_along((a + b) / math.sqrt(2))).to(x.dtype)

    def _log_prob_along(self, t: Tensor) -> Tensor:
        """The log-density of one coordinate of the lattice, elementwise."""
        squares = ((t.unsqueeze(-1) - self.means.to(t)) / self.noise) ** 2
        return torch.logsumexp(-squares / 2, dim=-1) - math.log(self.side * self.noise * math.sqrt(2 * math.pi))

    @property
    def entropy(self) -> float:
        """Twice that of a coordinate: an integral by Gauss-Legendre on intervals as long as a standard deviation."""
        reach = BOUND + 9 * self.noise
        cuts = torch.linspace(-reach, reach, math.ceil(2 * reach / self.noise) + 1, dtype=torch.float64)
        width = cuts[1] - cuts[0]
        nodes, weights = gauss_legendre(12)
        log_p = self._log_prob_along(cuts[:-1, None] + width * nodes)
        return 2 * float((-log_p * log_p.exp() @ weights).sum() * width)

    @property
    def window(self) -> Window:
        return square(math.sqrt(2) * BOUND + 4.5 * self.noise)
