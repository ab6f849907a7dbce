"""A checkerboard."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from datasets.target import TargetDensity, Window, in_float64, panels, square

__all__ = ["Checkerboard"]

# Columns (and rows) of side 2 in [-4, 4], by parity: a square belongs to the board where both parities are equal,
# so the square with corners (0, 0) and (2, 2) does.
EVEN, ODD = (-4.0, 0.0), (-2.0, 2.0)
SIDE, AREA = 2.0, 32.0


class Checkerboard(TargetDensity):
    """Uniform on eight squares of side 2 in [-4, 4]^2.

    Args:
        noise: standard deviation of a Gaussian blur; 0 for sharp squares.
    """

    @checked
    def __init__(self, noise: Annotated[float, Range(ge=0, le=1e6)] = 0.0) -> None:
        self.check_noise(noise, 4.0)
        self.noise = noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        parity, column, row = torch.randint(2, (3, n), generator=generator)
        starts = torch.tensor([EVEN, ODD], dtype=torch.float64)
        corner = torch.stack([starts[parity, column], starts[parity, row]], dim=1)
        x = corner + SIDE * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        x = (x + self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()
        if self.noise > 0:
            return x
        # One coordinate in sixty million is rounded to its square's upper edge, where the density is zero.
        return torch.minimum(x, torch.nextafter((corner + SIDE).float(), torch.tensor(-math.inf)))

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        even, odd = (self._log_share(y, starts) for starts in (EVEN, ODD))  # of x and of y, shape (..., 2)
        return (torch.logaddexp(even.sum(-1), odd.sum(-1)) - math.log(AREA)).to(x.dtype)

    def _log_share(self, y: Tensor, starts: tuple[float, ...]) -> Tensor:
        """ln of the blurred indicator of the intervals [start, start + 2), elementwise."""
        lower = y.unsqueeze(-1) - y.new_tensor(starts)
        if self.noise == 0:
            inside = (lower >= 0) & (lower < SIDE)
            return torch.where(inside.any(-1), 0.0, -math.inf).to(y.dtype)
        # Phi(b) - Phi(a) for a < b, mirrored where both are positive, so that no digits cancel.
        b, a = lower / self.noise, (lower - SIDE) / self.noise
        a, b = torch.where(a > 0, -b, a), torch.where(a > 0, -a, b)
        log_b = torch.special.log_ndtr(b)
        return torch.logsumexp(log_b + torch.log(-torch.expm1(torch.special.log_ndtr(a) - log_b)), dim=-1)

    def integrate(self) -> tuple[float, float]:
        if self.noise > 0.05:
            return super().integrate()
        cuts = panels((*EVEN, *ODD, 4.0), self.noise, reach=10.0)  # the edges
        return self.integrate_cartesian(cuts, cuts)

    @property
    def entropy(self) -> float:
        return math.log(AREA) if self.noise == 0 else super().entropy

    @property
    def window(self) -> Window:
        return square(4.25 + 4.5 * self.noise)
