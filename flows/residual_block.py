"""The residual block, and the same the other way round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flows.bijection import Bijection
from flows.estimators import Exact, LogDetEstimator
from flows.estimators.exact import log_det_plus_identity
from flows.fixed_point import solve_fixed_point, solve_in_training, with_implicit_gradient
from flows.lipschitz import LipschitzNet, NormalizedNet
from flows.precision import evaluation_device

__all__ = ["InverseBlock", "Measure", "ResidualBlock"]

Measure = Callable[[NormalizedNet, Tensor], tuple[Tensor, Tensor]]
"""Maps g and points x to g(x) and to what is needed of the Jacobian there: itself, or its log-det estimate."""

_EXACT = Exact()


class ResidualBlock(Bijection):
    """f(x) = x + g(x) with Lip(g) < 1, hence a bijection (Behrmann et al. 2019, arXiv 1811.00995, theorem 1).

    Args:
        net: g, a Lipschitz network from R^d to R^d.
        estimator: of the log-determinant while training. In evaluation mode it is exact.
    """

    sign = 1
    """The sign with which log det(I + J) enters the block's log-determinant."""

    tolerance = 1e-7
    """Guaranteed distance of `inverse`'s result from the true one, relative where |z| exceeds 1."""

    def __init__(self, net: LipschitzNet, estimator: LogDetEstimator) -> None:
        super().__init__()
        self.net, self.estimator = net, estimator

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.carry(self.net.normalize(x.dtype), x, self.estimator if self.training else _EXACT)
        return z, self.sign * log_det

    def carry(self, net: NormalizedNet, x: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        """Return z, shape (batch, d), and what `measure` finds; `net` is the block's own, its weights normalized.

        Raises:
            InverseError: of an :class:`InverseBlock`, see :func:`~flows.fixed_point.solve_fixed_point`.
        """
        g, found = measure(net, x)
        return x + g, found

    @torch.no_grad()
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x within the tolerance of the solution of f(x) = z, and the exact log-determinant. No gradient.

        Raises:
            InverseError: see :func:`~flows.fixed_point.solve_fixed_point`.
        """
        x = self._solution(z)
        log_det = log_det_plus_identity(self.net.forward_with_jacobian(x)[1])
        return x.to(z.dtype), -log_det.to(z.dtype)

    @torch.no_grad()
    def preimage(self, z: Tensor) -> Tensor:
        return self._solution(z).to(z.dtype)

    def _solution(self, z: Tensor) -> Tensor:
        x, bounds = solve_fixed_point(self.net, z, self.tolerance)
        self.inverse_bound = float(bounds.max()) if len(bounds) else 0.0
        return x

    def lipschitz(self) -> float:
        return self.net.lipschitz()


class InverseBlock(ResidualBlock):
    """The inverse of x + g(x) as a bijection of its own: z is the solution of z + g(z) = x.

    It can be steeper than any residual block: its slopes reach from 1 / (1 + L) to 1 / (1 - L), those of x + g(x)
    only from 1 - L to 1 + L (Lu et al. 2021, arXiv 2103.09527). Its gradient is that of an implicit function.
    """

    sign = -1

    def carry(self, net: NormalizedNet, x: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
        L = self.net.bound()
        learning = self.training and torch.is_grad_enabled()
        if learning or evaluation_device(x.device) != x.device:  # without float64 it cannot be solved more closely
            z = solve_in_training(net, L, x)
        else:
            z = solve_fixed_point(self.net, x, self.tolerance)[0].to(x.dtype)
        z = with_implicit_gradient(net, L, z, x)  # there x is the solution and z is given, as in a residual block
        return z, measure(net, z)[1]

    @torch.no_grad()
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        g, J = self.net.forward_with_jacobian(z)
        return z + g, log_det_plus_identity(J)

    @torch.no_grad()
    def preimage(self, z: Tensor) -> Tensor:
        return z + self.net(z)
