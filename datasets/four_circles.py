"""Four circles that cross each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from arguments import checked
from datasets.rings import log_ring
from datasets.target import Noise, TargetDensity, Window, in_float64, square

__all__ = ["FourCircles"]

RADIUS = 2.0
CENTRES = ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))


class FourCircles(TargetDensity):
    r"""Four circles of radius 2 and equal mass around :math:`(\pm 1, \pm 1)`, with Gaussian noise.

    As in the code of neural spline flows (Durkan et al. 2019, arXiv 1906.04032, `data/plane.py`).

    Args:
        noise: standard deviation of the noise.
    """

    @checked
    def __init__(self, noise: Noise = 0.1) -> None:
        self.check_noise(noise, RADIUS)
        self.noise = noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        centre = torch.tensor(CENTRES, dtype=torch.float64)[torch.randint(len(CENTRES), (n,), generator=generator)]
        t = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        circle = RADIUS * torch.stack([torch.cos(t), torch.sin(t)], dim=1)
        noise = self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return (centre + circle + noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        r = torch.linalg.vector_norm(y.unsqueeze(-2) - y.new_tensor(CENTRES), dim=-1)
        log_circle = log_ring(r, RADIUS, self.noise)
        return (torch.logsumexp(log_circle, dim=-1) - math.log(len(CENTRES))).to(x.dtype)

    @property
    def window(self) -> Window:
        return square(1 + RADIUS + 4.5 * self.noise)
