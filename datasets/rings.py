"""Concentric rings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from arguments import checked
from datasets.target import Length, Noise, TargetDensity, Window, in_float64, panels, square

__all__ = ["Rings", "log_ring"]


class Rings(TargetDensity):
    r"""Rings of equal mass around the origin, with Gaussian noise.

    Args:
        radii: of the rings, before the scaling.
        scale: by which the radii are multiplied.
        noise: standard deviation of the noise, after the scaling.
    """

    @checked
    def __init__(
        self,
        radii: Sequence[Length] = (0.25, 0.5, 0.75, 1.0),
        scale: Length = 3.0,
        noise: Noise = 0.08,
    ) -> None:
        self.radii = torch.tensor(radii, dtype=torch.float64) * scale
        self.check_noise(noise, float(self.radii.max()))
        self.noise = noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        ring = torch.randint(len(self.radii), (n,), generator=generator)
        t = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        circle = torch.stack([torch.cos(t), torch.sin(t)], dim=1)
        noise = self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return (self.radii[ring].unsqueeze(1) * circle + noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        r = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        R = self.radii.to(y)
        return (torch.logsumexp(log_ring(r, R, self.noise), dim=-1) - math.log(len(R))).to(x.dtype)

    def integrate(self) -> tuple[float, float]:
        cuts = [0.0, *(cut for cut in panels(self.radii.tolist(), self.noise) if cut > 0)]
        return self.integrate_polar((0.0, 0.0), cuts, (0.0, 2 * math.pi))

    @property
    def window(self) -> Window:
        return square(float(self.radii.max()) + 4.5 * self.noise)


def log_ring(r: Tensor, R: Tensor | float, noise: float) -> Tensor:
    r"""The log-density of a ring of radius R under noise s, at a distance r from its centre, in nats.

    The density is :math:`\frac{1}{2\pi s^2} e^{-(r^2 + R^2) / 2s^2} I_0(rR / s^2)`, with the modified Bessel function.
    """
    # i0e(u) = e^-u I_0(u) leaves the exponent -(r - R)^2 / 2 s^2, which does not overflow.
    variance = noise**2
    bessel = torch.special.i0e(r * R / variance).log()
    return bessel - (r - R) ** 2 / (2 * variance) - math.log(2 * math.pi * variance)
