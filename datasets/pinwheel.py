"""A pinwheel: Gaussian blades that bend the more, the further out they reach."""

from __future__ import annotations

import functools
import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import ArgumentError, Range, checked
from datasets.target import TargetDensity, Window, in_float64, square

__all__ = ["Pinwheel"]

RATE = 0.25
SCALE = 2.0
FAR = 12.0  # radii beyond are bent no further: the density there is below e^-670 at the usual noise
REACH = 8.0  # standard deviations that count


class Pinwheel(TargetDensity):
    r"""Gaussians around (1, 0), long towards the origin, turned by equal angles and bent; times 2.

    With r ~ N(1, radial_noise^2) and t ~ N(0, tangential_noise^2), the point (r, t) is turned clockwise by
    :math:`2\pi k / \mathrm{blades} + e^r / 4`, k at random, and doubled. As in FFJORD's and the residual flows' toy
    data (Grathwohl et al. 2019, arXiv 1810.01367, `lib/toy_data.py`; Johnson et al. 2016, arXiv 1603.06277).

    Bending moves a point along its circle around the origin, and :math:`|\det| = |1 + t e^r / 4|`: so the density at y
    is a sum over the points that bending moves to y, all on the circle of y. There is one for each blade where the
    circle is small, and more where :math:`t e^r / 4` falls below -1: there the outermost parts of the blades overtake
    themselves. Beyond fifteen standard deviations only a part of the sum is taken, so ln p is too low there.

    Args:
        blades: their number.
        radial_noise: standard deviation along a blade, before the doubling.
        tangential_noise: standard deviation across a blade, before the doubling.
    """

    @checked
    def __init__(
        self,
        blades: Annotated[int, Range(ge=1, le=100)] = 5,
        radial_noise: Annotated[float, Range(gt=0, le=0.5)] = 0.3,
        tangential_noise: Annotated[float, Range(gt=0, le=0.2)] = 0.1,
    ) -> None:
        self.check_noise(radial_noise, 1.0, "radial_noise")
        self.check_noise(tangential_noise, 1.0, "tangential_noise")
        self.blades, self.radial_noise, self.tangential_noise = blades, radial_noise, tangential_noise
        # How many roots to each side of a blade's middle count: those at up to REACH standard deviations.
        rho = 1 + REACH * radial_noise
        phi = min(math.pi, REACH * tangential_noise / rho)
        way = phi + RATE * (math.exp(rho) - math.exp(rho * math.cos(phi)))
        self.roots = math.ceil(way * blades / (2 * math.pi)) + 1

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        blade = torch.randint(self.blades, (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        r, t = 1 + self.radial_noise * noise[:, 0], self.tangential_noise * noise[:, 1]
        return self.bend(r, t, blade).float()

    def bend(self, r: Tensor, t: Tensor, blade: Tensor | int) -> Tensor:
        """The points at (r, t) of the numbered blades, shapes (...) to (..., 2)."""
        angle = blade * (2 * math.pi / self.blades) + RATE * r.exp()
        cos, sin = torch.cos(angle), torch.sin(angle)
        return SCALE * torch.stack([r * cos + t * sin, t * cos - r * sin], dim=-1)

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x).reshape(-1, 2) / SCALE
        rho, theta = torch.linalg.vector_norm(y, dim=1), torch.atan2(y[:, 1], y[:, 0])
        # Where a circle is bent too little to overtake itself: only the ascending roots, one for each blade.
        bent = rho.clamp(max=FAR)
        folded = _slope(bent, _steepest(bent)) < 0
        log_p = torch.empty_like(rho)
        log_p[~folded] = self._log_sum(rho[~folded], theta[~folded], folded=False)
        log_p[folded] = self._log_sum(rho[folded], theta[folded], folded=True)
        return log_p.view(x.shape[:-1]).to(x.dtype)

    def _log_sum(self, rho: Tensor, theta: Tensor, folded: bool) -> Tensor:
        """The log-density at polar coordinates `rho` and `theta`, both before the doubling, shapes (n,) to (n,)."""
        bent, rho = rho.clamp(max=FAR).unsqueeze(1), rho.unsqueeze(1)
        with torch.no_grad():
            phi = _roots(bent, theta.unsqueeze(1), self.blades, self.roots, folded)
        none = phi.isnan()
        phi = torch.where(none, 0.0, phi)
        if rho.requires_grad:  # a Newton step of length 0, which gives phi the gradient of the root
            moved = _u(bent, phi) - theta.unsqueeze(1)
            phi = phi - (moved - moved.detach()) / _slope(bent, phi).detach()
        r, t = rho * torch.cos(phi), rho * torch.sin(phi)
        log_slope = _slope(bent, phi).abs().log()
        squares = ((r - 1) / self.radial_noise) ** 2 + (t / self.tangential_noise) ** 2
        terms = torch.where(none, -math.inf, -squares / 2 - log_slope)
        area = 2 * math.pi * self.radial_noise * self.tangential_noise * SCALE**2
        return torch.logsumexp(terms, dim=1) - math.log(area * self.blades)

    @functools.cached_property
    def entropy(self) -> float:
        """The mean of -ln p over a blade, all being alike.

        Raises:
            ArgumentError: blades are so thin where they cross that two grids of the integral differ.
        """
        found, other = self._entropy(10, 0.0), self._entropy(16, 0.37)
        if abs(found - other) > 1e-4:
            thinner = min(("radial_noise", "tangential_noise"), key=lambda name: getattr(self, name))
            got = f"{getattr(self, thinner)!r}, for which two grids have {found:.6g} and {other:.6g} as the entropy"
            raise ArgumentError(thinner, "what makes blades wide enough to integrate", got)
        return found

    def _entropy(self, nodes: int, shift: float) -> float:
        """An integral over (r, t) by the trapezoidal rule, of so many nodes in a standard deviation."""
        u = (torch.arange(-8 * nodes, 8 * nodes + 1, dtype=torch.float64) + shift) / nodes
        weight = (-(u**2) / 2).exp()
        weight = torch.outer(weight, weight).flatten() / weight.sum() ** 2
        r, t = torch.cartesian_prod(1 + self.radial_noise * u, self.tangential_noise * u).unbind(1)
        return float(-weight @ self.log_prob(self.bend(r, t, 0)))

    @property
    def window(self) -> Window:
        return square(SCALE * (1 + 4.5 * self.radial_noise))


def _roots(rho: Tensor, theta: Tensor, blades: int, most: int, folded: bool) -> Tensor:
    r"""The angles :math:`\varphi` on a circle that bending takes to `theta`, in some blade: (n, 1) to (n, m).

    They solve :math:`u(\varphi) = \varphi - e^{\rho \cos \varphi} / 4 = \theta` modulo :math:`2\pi / \mathrm{blades}`.
    Unless `folded`, u rises all around the circle, and there is a root for each blade. Otherwise u falls between two
    angles. With k = max(`most`, `blades`), the k roots on either side of a blade's middle are found where u rises, and
    the k nearest to the middle where u falls. NaN where there is none.
    """
    lowest = _steepest(rho)
    spacing = 2 * math.pi / blades
    if not folded:
        first = torch.ceil((_u(rho, lowest) - theta) / spacing)
        goals = theta + spacing * (first + torch.arange(blades).to(rho))
        return _solve(rho, goals, lowest, lowest + 2 * math.pi)
    start = _bisect_slope(rho, lowest - math.pi, lowest)
    end = _bisect_slope(rho, torch.zeros_like(lowest), lowest)
    # The rising part: around phi = 0, where a blade's middle is.
    middle = torch.round((_u(rho, torch.zeros_like(rho)) - theta) / spacing)
    count = max(most, blades)
    goals = theta + spacing * (middle + torch.arange(-count, count + 1).to(rho))
    low, high = _u(rho, end), _u(rho, start) + 2 * math.pi
    rising = _solve(rho, torch.where((goals >= low) & (goals < high), goals, math.nan), end, start + 2 * math.pi)
    # The falling part: from its end, which is nearest to a blade's middle.
    goals = theta + spacing * (torch.ceil((low - theta) / spacing) + torch.arange(count).to(rho))
    falling = _solve(rho, torch.where(goals < _u(rho, start), goals, math.nan), end, start)
    return torch.cat([rising, falling], dim=1)


def _u(rho: Tensor, phi: Tensor) -> Tensor:
    return phi - RATE * (rho * torch.cos(phi)).exp()


def _slope(rho: Tensor, phi: Tensor) -> Tensor:
    return 1 + RATE * rho * torch.sin(phi) * (rho * torch.cos(phi)).exp()


def _steepest(rho: Tensor) -> Tensor:
    """Where the slope, 1 + rho sin(phi) e^(rho cos(phi)) / 4, is least: there cos(phi) = rho sin(phi)^2."""
    return -torch.acos(2 * rho / (1 + (1 + 4 * rho**2).sqrt()))


def _bisect_slope(rho: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Where the slope of u is zero, between an angle where it is positive and one where it is negative."""
    for _ in range(54):
        middle = (positive + negative) / 2
        up = _slope(rho, middle) > 0
        positive, negative = torch.where(up, middle, positive), torch.where(up, negative, middle)
    return negative


def _solve(rho: Tensor, goals: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The angles where u equals `goals`, shape (n, m), between `low`, where u is below them, and `high`, where above.

    By Newton steps; one that would leave the bracket is replaced by bisection. NaN goals give NaN.
    """
    low, high = low.expand_as(goals), high.expand_as(goals)
    phi = (low + high) / 2
    for _ in range(60):
        error = _u(rho, phi) - goals
        low, high = torch.where(error < 0, phi, low), torch.where(error < 0, high, phi)
        step = phi - error / _slope(rho, phi)
        inside = (step - low) * (step - high) <= 0
        step = torch.where(inside, step, (low + high) / 2)
        moved, phi = (step - phi).abs(), step
        if not (moved > 1e-15 * (1 + phi.abs())).any():
            break
    return torch.where(goals.isnan(), math.nan, phi)
