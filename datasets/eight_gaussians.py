"""Gaussians on a circle."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from datasets.target import Noise, TargetDensity, Window, in_float64, square

__all__ = ["EightGaussians"]

DIVISOR = 1.414  # as in the literature: not the square root of two


class EightGaussians(TargetDensity):
    """Eight equal Gaussians at equal angles on a circle, everything divided by 1.414.

    Args:
        radius: of the circle, before the division.
        noise: standard deviation of each Gaussian, before the division.
    """

    @checked
    def __init__(self, radius: Annotated[float, Range(ge=0, le=1e6)] = 4.0, noise: Noise = 0.5) -> None:
        self.check_noise(noise, radius)
        t = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
        self.means = torch.stack([torch.cos(t), torch.sin(t)], dim=1) * (radius / DIVISOR)
        self.radius, self.noise = radius, noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        mean = self.means[torch.randint(8, (n,), generator=generator)]
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64) * (self.noise / DIVISOR)
        return (mean + noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        variance = (self.noise / DIVISOR) ** 2
        squares = ((y.unsqueeze(-2) - self.means.to(y)) ** 2).sum(-1)
        return (torch.logsumexp(-squares / (2 * variance), dim=-1) - math.log(8 * 2 * math.pi * variance)).to(x.dtype)

    def integrate(self) -> tuple[float, float]:
        distance, s = 2 * self.radius / DIVISOR * math.sin(math.pi / 8), self.noise / DIVISOR
        # Gaussians far apart do not know of each other: since ln(1 + r) <= sqrt(r), each of the seven others changes
        # the entropy by at most the integral of sqrt(p q), e^(-distance^2 / 8 s^2).
        if 7 * math.exp(-(distance**2) / (8 * s**2)) < 1e-9:
            return 1.0, math.log(8 * 2 * math.pi * math.e * s**2)
        return super().integrate()

    @property
    def window(self) -> Window:
        return square((self.radius + 4.5 * self.noise) / DIVISOR)
