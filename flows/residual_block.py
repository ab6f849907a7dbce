"""The residual block."""

from __future__ import annotations

import torch
from torch import Tensor

from flows.bijection import Bijection
from flows.estimators import Exact, LogDetEstimator
from flows.fixed_point import solve_fixed_point
from flows.lipschitz import LipschitzMLP

__all__ = ["ResidualBlock"]

_EXACT = Exact()


class ResidualBlock(Bijection):
    """f(x) = x + g(x) with Lip(g) < 1, hence a bijection (Behrmann et al. 2019, arXiv 1811.00995, theorem 1).

    Args:
        net: g, a Lipschitz network from R^d to R^d.
        estimator: of the log-determinant while training. In evaluation mode it is exact.
        tolerance: guaranteed distance of `inverse`'s result from the true one, relative where |z| exceeds 1.
    """

    def __init__(self, net: LipschitzMLP, estimator: LogDetEstimator, tolerance: float = 1e-7) -> None:
        super().__init__()
        self.net, self.estimator, self.tolerance = net, estimator, tolerance

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        g, log_det = (self.estimator if self.training else _EXACT)(self.net.normalize(x.dtype), x)
        return x + g, log_det

    @torch.no_grad()
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x within the tolerance of the solution of f(x) = z, and the exact log-determinant. No gradient.

        Raises:
            InverseError: see :func:`~flows.fixed_point.solve_fixed_point`.
        """
        x, log_det = solve_fixed_point(self.net, z, self.tolerance)
        return x.to(z.dtype), -log_det.to(z.dtype)

    def lipschitz(self) -> float:
        return self.net.lipschitz()
