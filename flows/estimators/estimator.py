"""What an estimator of log det(I + J) must offer."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from flows.estimators.jacobian import DenseJacobian, Jacobian, VjpJacobian

__all__ = ["JacobianMode", "LogDetEstimator", "Noise", "ResidualNet", "join"]

JacobianMode = Literal["auto", "dense", "vjp"]

# Carrying J forward costs d + 1 forward passes, a product by reverse mode costs two, and a series has ten of them
# or more.
LARGEST_DENSE_DIMENSION = 16


class ResidualNet(Protocol):
    """What an estimator asks of g: every :class:`~flows.lipschitz.NormalizedNet` offers it."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x), shapes (batch, d) to (batch, d)."""

    def parameters(self) -> Iterable[Tensor]:
        """All tensors that g is to be differentiated by."""

    def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(x), shape (batch, d), and J, shape (batch, d, d).

        `jacobian=vjp` does not call it. It calls `linearize(x)` if the net has that, to save time: `linearize` returns
        g(x) and the map w -> w^T J of shape (batch, k, d).
        """


class Noise(NamedTuple):
    """Everything random in an estimate, so that an estimate can be made twice.

    Attributes:
        probes: v of Hutchinson's estimator, shape (batch, n_probes, d).
        orders: N of the Russian roulette, shape (batch,) or (1,), on the host; None without a roulette.
    """

    probes: Tensor
    orders: Tensor | None


def join(noises: Sequence[Noise | None]) -> Noise | None:
    """The noise of several estimates, all of one estimator, as that of one estimate at all their points."""
    if noises[0] is None:
        return None
    if noises[0].orders is None:
        return Noise(torch.cat([noise.probes for noise in noises]), None)
    orders = [noise.orders.expand(len(noise.probes)) for noise in noises]
    return Noise(torch.cat([noise.probes for noise in noises]), torch.cat(orders))


class LogDetEstimator(abc.ABC):
    """An estimator of log det(I + J), J the Jacobian of a residual g at a batch of points.

    A subclass writes `log_det`; one with randomness writes `draw_noise` too.
    """

    compiled = False
    """Whether to compute by compiled code where there is some: see `Flow.compile_for`."""

    is_exact: ClassVar[bool] = False
    """Whether it returns the log-determinant itself."""

    draws_on_host: ClassVar[bool] = False
    """Whether the host draws anew in every step how much is to be computed, so that no two steps are alike."""

    def __init__(self, jacobian: JacobianMode = "auto") -> None:
        self.jacobian = jacobian

    @abc.abstractmethod
    def log_det(self, jacobian: Jacobian, noise: Noise | None) -> Tensor:
        """Return the estimate at every sample in nats, shape (batch,), differentiable as the estimator defines."""

    def draw_noise(self, x: Tensor) -> Noise | None:
        """Draw what one estimate at `x`, shape (batch, d), needs; None if the estimator is deterministic."""
        return None

    def __call__(self, net: ResidualNet, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Return g(x) and the estimate of log det(I + J(x)): shapes (batch, d) and (batch,).

        The value of the second is the estimate of the log-determinant, whatever construction supplies its gradient.
        """
        if self.is_dense(x.shape[1]):
            g, J = net.forward_with_jacobian(x)
            return g, self.from_matrix(J, noise)
        jacobian = VjpJacobian(net, x)
        log_det = self.log_det(jacobian, self.draw_noise(x) if noise is None else noise)
        return jacobian.value, log_det

    def from_matrix(self, J: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the estimate of log det(I + J), shapes (batch, d, d) to (batch,), where J is at hand."""
        return self.log_det(DenseJacobian(J), self.draw_noise(J[:, 0]) if noise is None else noise)

    def is_dense(self, dimensions: int) -> bool:
        """Whether J, d x d, d = `dimensions`, is held as a matrix."""
        return self.jacobian == "dense" or (self.jacobian == "auto" and dimensions <= LARGEST_DENSE_DIMENSION)
