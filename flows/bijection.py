"""The contract that every piece of a flow keeps."""

from __future__ import annotations

import abc

from torch import Tensor, nn

__all__ = ["Bijection"]


class Bijection(nn.Module, abc.ABC):
    """An invertible, differentiable map of R^d with a tractable log-determinant."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log |det dz/dx|: shapes (batch, d) to (batch, d) and (batch,).

        In training mode the log-determinant may be an estimate; in evaluation mode it is exact.
        """

    @abc.abstractmethod
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with `forward(x) = z`, and log |det dx/dz|: shapes (batch, d) to (batch, d) and (batch,)."""

    def initialize(self, x: Tensor) -> Tensor:
        """Set parameters that depend on data from a first batch `x`, shape (batch, d); return forward(x)'s z."""
        return self(x)[0]

    def lipschitz(self) -> float | None:
        """A certified Lipschitz constant of the residual, or None where invertibility does not rest on one."""
        return None
