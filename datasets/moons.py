"""Two interleaved half circles."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from arguments import checked
from datasets.target import Noise, TargetDensity, Window, gauss_legendre, in_float64, panels, square

__all__ = ["Moons"]

RADIUS = 2.0
UPPER, LOWER = (-1.0, -0.2), (1.0, 0.8)  # centres of the two arcs, after the scaling


class Moons(TargetDensity):
    r"""Two half circles :math:`(\cos t, \sin t)` and :math:`(1 - \cos t, 0.5 - \sin t)`, :math:`t \in [0, \pi]`.

    Gaussian noise is added, then the plane is mapped by :math:`x \mapsto 2x + (-1, -0.2)`: both arcs have radius 2,
    and the noise is twice as large.

    Args:
        noise: standard deviation of the noise, before the scaling.
    """

    @checked
    def __init__(self, noise: Noise = 0.1) -> None:
        self.check_noise(noise, RADIUS / 2)  # before the scaling
        self.noise = noise

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        t = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        lower = torch.rand(n, generator=generator) < 0.5
        arc = torch.stack([torch.cos(t), torch.sin(t)], dim=1) * RADIUS
        x = torch.where(lower.unsqueeze(1), arc.new_tensor(LOWER) - arc, arc.new_tensor(UPPER) + arc)
        return (x + 2 * self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x)
        centres = y.new_tensor([UPPER, LOWER])
        offset = (y.unsqueeze(-2) - centres) * y.new_tensor([[1.0], [-1.0]])  # turned, so that both arcs face up
        return (torch.logsumexp(self._log_prob_of_arc(offset), dim=-1) - math.log(2)).to(x.dtype)

    def _log_prob_of_arc(self, y: Tensor) -> Tensor:
        r"""ln of :math:`\frac{1}{\pi} \int_0^\pi N(y; 2 (\cos t, \sin t), s^2 I)\,dt`, shapes (..., 2) to (...).

        With :math:`y = \rho (\cos\varphi, \sin\varphi)` the exponent is
        :math:`-(\rho - 2)^2 / 2s^2 - \kappa (1 - \cos(t - \varphi))`, :math:`\kappa = 2\rho / s^2`.
        """
        s = 2 * self.noise
        rho = torch.linalg.vector_norm(y, dim=-1)
        kappa = rho * RADIUS / s**2
        # Angle between y and the middle of the arc, in [0, pi]. The arc spans pi / 2 to either side of its middle.
        away = torch.atan2(y[..., 0].abs(), y[..., 1])
        near, far = away - math.pi / 2, away + math.pi / 2
        # The integrand is even and falls from 0 to pi: three pieces on which it falls, some of them empty.
        pieces = [
            _log_falling_integral(kappa, near.clamp(min=0), far.clamp(max=math.pi)),
            _log_falling_integral(kappa, torch.zeros_like(near), (-near).clamp(min=0)),
            _log_falling_integral(kappa, (2 * math.pi - far).clamp(max=math.pi), torch.full_like(far, math.pi)),
        ]
        log_integral = torch.logsumexp(torch.stack(pieces), dim=0)
        return log_integral - (rho - RADIUS) ** 2 / (2 * s**2) - math.log(2 * math.pi**2 * s**2)

    def integrate(self) -> tuple[float, float]:
        return _integrals(self.noise)

    def _integrate(self) -> tuple[float, float]:
        s = 2 * self.noise
        if s > 0.03:
            return super().integrate()
        # Around the upper arc alone: the lower one does not reach there, and a half turn of the plane swaps the two.
        mass, entropy = self.integrate_polar(UPPER, panels([RADIUS], s), panels([0.0, math.pi], s / RADIUS, reach=14.0))
        return 2 * mass, 2 * entropy

    @property
    def window(self) -> Window:
        return square(3 + 10 * self.noise)


@functools.cache
def _integrals(noise: float) -> tuple[float, float]:
    """Cached, because each run of a sweep would repeat half a second of work."""
    return Moons(noise)._integrate()


NEGLIGIBLE = 38.0  # e^-38 = 3e-17


def _log_falling_integral(kappa: Tensor, start: Tensor, end: Tensor) -> Tensor:
    r"""ln of :math:`\int e^{-\kappa (1 - \cos t)} dt` over 0 <= start <= end <= pi, elementwise; all of one shape.

    By Gauss-Legendre on the part that counts: :math:`1 - \cos t = 2 \sin^2(t/2)` has risen by NEGLIGIBLE / kappa at
    the end of it, so that the rule converges whatever kappa is.
    """
    first = torch.sin(start / 2) ** 2
    last = torch.asin((first + NEGLIGIBLE / (2 * kappa.clamp(min=1e-30))).clamp(max=1).sqrt()) * 2
    length = torch.minimum(end, last) - start
    value = torch.zeros_like(kappa)
    for node, weight in zip(*(part.tolist() for part in gauss_legendre(32)), strict=True):
        t = start + length * node
        value += weight * torch.exp(-2 * kappa * (torch.sin(t / 2) ** 2 - first))
    integral = value * length.clamp(min=0)
    some = integral > 0  # an empty piece must have gradient 0, not that of a logarithm at 0
    return torch.where(some, torch.where(some, integral, 1.0).log(), -math.inf) - 2 * kappa * first
