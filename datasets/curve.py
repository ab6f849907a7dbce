"""Densities spread along a curve: an integral over the curve, by a quadrature that is taken only where it counts."""

from __future__ import annotations

import abc
import functools
import math

import numpy as np
import torch
from torch import Tensor

from datasets.target import TargetDensity, gauss_legendre, in_float64

__all__ = ["CurveDensity"]

NODES, WEIGHTS = gauss_legendre(10)
PANEL = 3.0  # length of a panel in standard deviations of the noise, at most
FEWEST_PANELS = 16  # which are short beside the turns of a curve, too
NEGLIGIBLE = 22.0  # e^-22 = 3e-10
REACH = 8.0  # standard deviations of the noise around the curve, outside of which nothing adds to the entropy
CHUNK = 256  # points at a time: what stays in a CPU's cache


class CurveDensity(TargetDensity):
    r"""A random point of a curve :math:`c(t)`, t in [0, 1], plus symmetric noise that is the same everywhere.

    :math:`p(y) = \int_0^1 w(t) K(y - c(t))\,dt` by Gauss-Legendre rules on panels short beside the noise, so that they
    converge: ln p is right to 1e-6 within eight standard deviations of the curve, and to 1e-3 of itself far away.
    Panels that add less than e^-22 of p each are left out.
    """

    noise: float
    """Standard deviation of the Gaussian part of the noise."""
    spread = 0.0
    """How far the part of the noise that is not Gaussian can move a point."""

    @abc.abstractmethod
    def curve(self, t: Tensor) -> Tensor:
        """The point at t, shapes (...) to (..., 2), in float64."""

    def log_weight(self, t: Tensor) -> Tensor:
        """The log-density of t, shapes (...) to (...): uniform unless said otherwise."""
        return torch.zeros_like(t)

    @abc.abstractmethod
    def log_kernel(self, offset: Tensor) -> Tensor:
        """The log-density, with `noise` as the unit of length, of all the noise together: shapes (..., 2) to (...)."""

    def log_prob(self, x: Tensor) -> Tensor:
        y = in_float64(x).reshape(-1, 2)
        return torch.cat([self._log_prob(part) for part in y.split(CHUNK)]).view(x.shape[:-1]).to(x.dtype)

    def _log_prob(self, y: Tensor) -> Tensor:
        nodes, log_weights, centres, radii = (array.to(y) for array in self._quadrature)
        distance = torch.cdist(y, centres)
        nearest = (distance - (radii + self.spread)).clamp(min=0)
        # Without `spread`: symmetric noise beside the Gaussian makes the kernel smaller by a constant factor at most,
        # at any distance.
        furthest = (distance + radii).amin(dim=1, keepdim=True)
        point, panel = torch.nonzero(nearest**2 - furthest**2 < 2 * NEGLIGIBLE * self.noise**2, as_tuple=True)
        log_terms = self.log_kernel((y / self.noise)[point].unsqueeze(1) - nodes[panel]) + log_weights[panel]
        log_terms = torch.logsumexp(log_terms, dim=1)
        largest = y.new_full((len(y),), -math.inf).scatter_reduce(0, point, log_terms.detach(), "amax")
        total = torch.zeros_like(largest).index_add(0, point, (log_terms - largest[point]).exp())
        return total.log() + largest - 2 * math.log(self.noise)

    @functools.cached_property
    def entropy(self) -> float:
        """By the trapezoidal rule, which converges at once for what Gaussian noise has smoothed."""
        _, _, centres, radii = self._quadrature
        reach = REACH * self.noise + self.spread
        low, high = (centres - radii[:, None]).amin() - reach, (centres + radii[:, None]).amax() + reach
        step = self.noise / 2
        axis = torch.arange(float(low), float(high) + step, step, dtype=torch.float64)
        total = 0.0
        for x in axis:
            points = torch.stack([x.expand_as(axis), axis], dim=1)
            near = ((torch.cdist(points, centres) - radii) < reach).any(dim=1)
            log_p = self.log_prob(points[near])
            total -= float((log_p.exp() * log_p).sum())
        return total * step**2

    @functools.cached_property
    def _quadrature(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Panels: nodes in units of the noise (panels, n, 2), log-weights (panels, n), centre (panels, 2), radius."""
        # Of equal length: t where the length, added up along a fine polygon, passes its multiples.
        t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        steps = torch.linalg.vector_norm(self.curve(t).diff(dim=0), dim=1)
        length = np.concatenate([[0.0], steps.cumsum(0).numpy()])
        n = max(math.ceil(length[-1] / (PANEL * self.noise)), FEWEST_PANELS)
        cuts = torch.from_numpy(np.interp(np.linspace(0, length[-1], n + 1), length, t.numpy()))
        start, width = cuts[:-1, None], cuts.diff()[:, None]
        t = start + width * NODES
        nodes, log_weights = self.curve(t), self.log_weight(t) + (width * WEIGHTS).log()
        centres = nodes.mean(dim=1)
        radii = torch.linalg.vector_norm(nodes - centres.unsqueeze(1), dim=-1).amax(dim=1)
        return nodes / self.noise, log_weights, centres, radii
