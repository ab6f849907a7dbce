"""The contract that every piece of a flow keeps."""

from __future__ import annotations

import abc
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["Bijection", "InverseError"]


class InverseError(RuntimeError):
    """An inverse could not be computed to the accuracy asked for."""


class Bijection(nn.Module, abc.ABC):
    """An invertible, differentiable map of R^d with a tractable log-determinant."""

    inverse_bound: float | None = None
    """Bound on the error of the last inverse, relative to max(1, |z|); None where the inverse is in closed form."""

    is_stage: ClassVar[bool] = True
    """Whether `Flow.inverse_path`, from which plots are drawn, shows this bijection as a step of its own."""

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log |det dz/dx|: shapes (batch, d) to (batch, d) and (batch,).

        In training mode the log-determinant may be an estimate; in evaluation mode it is exact.
        """

    @abc.abstractmethod
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x with `forward(x) = z`, and log |det dx/dz|: shapes (batch, d) to (batch, d) and (batch,)."""

    def preimage(self, z: Tensor) -> Tensor:
        """Return the x of `inverse` alone, which may cost less."""
        return self.inverse(z)[0]

    def initialize(self, x: Tensor) -> Tensor:
        """Set parameters that depend on data from a first batch `x`, shape (batch, d); return forward(x)'s z."""
        return self(x)[0]

    def lipschitz(self) -> float | None:
        """A certified Lipschitz constant of the residual, or None where invertibility does not rest on one."""
        return None
