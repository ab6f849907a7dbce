"""The residual block."""

from __future__ import annotations

import torch
from torch import Tensor

from flows.bijection import Bijection
from flows.estimators import Exact, LogDetEstimator
from flows.estimators.exact import log_det_plus_identity
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
        x = self._solve(z)
        log_det = log_det_plus_identity(self.net.forward_with_jacobian(x)[1])
        return x.to(z.dtype), -log_det.to(z.dtype)

    @torch.no_grad()
    def preimage(self, z: Tensor) -> Tensor:
        return self._solve(z).to(z.dtype)

    def _solve(self, z: Tensor) -> Tensor:
        x, bounds = solve_fixed_point(self.net, z, self.tolerance)
        self.inverse_bound = float(bounds.max()) if len(bounds) else 0.0
        return x

    def lipschitz(self) -> float:
        return self.net.lipschitz()
