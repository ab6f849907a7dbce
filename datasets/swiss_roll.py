"""A swiss roll, seen from its side."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from datasets.curve import CurveDensity
from datasets.target import Window, square

__all__ = ["SwissRoll"]

SCALE = 5.0  # everything is divided by this
START, TURNS = 1.5 * math.pi, 3 * math.pi  # the angle goes from START to START + TURNS


class SwissRoll(CurveDensity):
    r"""The spiral :math:`t (\cos t, \sin t)`, t uniform on :math:`[3\pi/2, 9\pi/2]`, with Gaussian noise, over 5.

    As in FFJORD's and the residual flows' toy data (Grathwohl et al. 2019, arXiv 1810.01367, `lib/toy_data.py`):
    coordinates 0 and 2 of scikit-learn's `make_swiss_roll`, with noise 1.

    Args:
        noise: standard deviation of the noise, before the division.
    """

    @checked
    def __init__(self, noise: Annotated[float, Range(ge=0.05, le=1e6)] = 1.0) -> None:
        self.noise = noise / SCALE

    def curve(self, t: Tensor) -> Tensor:
        angle = START + TURNS * t
        return torch.stack([angle * torch.cos(angle), angle * torch.sin(angle)], dim=-1) / SCALE

    def log_kernel(self, offset: Tensor) -> Tensor:
        return -(offset**2).sum(-1) / 2 - math.log(2 * math.pi)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        point = self.curve(torch.rand(n, generator=generator, dtype=torch.float64))
        return (point + self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()

    @property
    def window(self) -> Window:
        return square((START + TURNS) / SCALE + 4.5 * self.noise)
