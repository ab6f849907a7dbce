"""Two spirals, one the other's mirror image through the origin."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from datasets.curve import CurveDensity
from datasets.target import Window, square

__all__ = ["TwoSpirals"]

TURNS = 3 * math.pi  # 540 degrees
SCALE = 3.0  # everything but the Gaussian noise is divided by this
HALF_SIDE = 0.25 / SCALE  # of the square that the uniform part of the noise fills


class TwoSpirals(CurveDensity):
    r"""The spiral :math:`(n(-\cos n, \sin n) + u) / 3`, :math:`n = 3\pi\sqrt{v}`, or its negative, plus Gaussian noise.

    v is uniform on [0, 1], both coordinates of u on [0, 0.5]. As in FFJORD's and the residual flows' toy data
    (Grathwohl et al. 2019, arXiv 1810.01367, `lib/toy_data.py`), and in that of neural spline flows.

    Args:
        noise: standard deviation of the Gaussian noise.
    """

    spread = math.sqrt(2) * HALF_SIDE

    @checked
    def __init__(self, noise: Annotated[float, Range(ge=0.01, le=1e6)] = 0.1) -> None:
        self.noise = noise

    def curve(self, t: Tensor) -> Tensor:
        """One of the spirals, from its middle out, through the centres of the uniform noise's squares."""
        n = TURNS * t
        return torch.stack([-n * torch.cos(n), n * torch.sin(n)], dim=-1) / SCALE + HALF_SIDE

    def log_weight(self, t: Tensor) -> Tensor:
        return (2 * t).log()  # of the root of a uniform number

    def log_kernel(self, offset: Tensor) -> Tensor:
        r"""Of the uniform and the Gaussian noise together: in each coordinate a difference of two :math:`\Phi`."""
        distance, half = offset.abs(), HALF_SIDE / self.noise
        scaled, side = distance / math.sqrt(2), half / math.sqrt(2)
        p = (torch.special.erfc(scaled - side) - torch.special.erfc(scaled + side)).prod(dim=-1) / (4 * half) ** 2
        log_p = p.clamp(min=1e-300).log()
        tiny = p < 1e-250  # soon below the range of numbers: there in logarithms, which cost twice as much
        if tiny.any():
            near, far = (torch.special.log_ndtr(end - distance[tiny]) for end in (half, -half))
            log_p[tiny] = (near + torch.log(-torch.expm1(far - near)) - math.log(2 * half)).sum(-1)
        return log_p

    @functools.cached_property
    def _quadrature(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of both spirals: the kernel is symmetric, so that the other one's panels are this one's, mirrored."""
        nodes, log_weights, centres, radii = super()._quadrature
        return (
            torch.cat([nodes, -nodes]), torch.cat([log_weights, log_weights]) - math.log(2),
            torch.cat([centres, -centres]), torch.cat([radii, radii]),
        )  # fmt: skip

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        point = self.curve(torch.rand(n, generator=generator, dtype=torch.float64).sqrt())
        uniform = HALF_SIDE * (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1)
        sign = torch.randint(2, (n, 1), generator=generator) * 2 - 1
        noise = self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return (sign * (point + uniform) + noise).float()

    @property
    def window(self) -> Window:
        return square(TURNS / SCALE + 2 * HALF_SIDE + 4.5 * self.noise)
