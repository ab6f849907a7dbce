"""The Jacobian J of a network g at a batch of points, as an operator that multiplies row vectors: w -> w^T J.

Estimators are written once against this operator; which of the two serves them changes the cost, not the value.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DenseJacobian", "Jacobian", "VjpJacobian"]


class Jacobian(abc.ABC):
    """J = dg/dx for every sample of a batch."""

    @abc.abstractmethod
    def vecmat(self, w: Tensor) -> Tensor:
        """Return w^T J, shape (batch, probes, d) like `w`; under `torch.no_grad()` without a graph."""

    @abc.abstractmethod
    def matrix(self) -> Tensor:
        """Return J, shape (batch, d, d), `J[:, i, j] = dg_i / dx_j`."""


class DenseJacobian(Jacobian):
    """J held as a matrix, carried forward through the network beside its value."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def vecmat(self, w: Tensor) -> Tensor:
        return torch.bmm(w, self._matrix)

    def matrix(self) -> Tensor:
        return self._matrix


class VjpJacobian(Jacobian):
    """J known through reverse-mode products alone: any network, any dimension.

    Written out where the network can `linearize`, by automatic differentiation elsewhere.

    Attributes:
        value: g(x), computed on the way, shape (batch, d).
    """

    def __init__(self, net: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._product: Callable[[Tensor], Tensor] | None = None
        if linearize := getattr(net, "linearize", None):
            self._value, self._product = linearize(x)
        else:
            self._x = x if torch.is_grad_enabled() and x.requires_grad else x.detach().requires_grad_()
            with torch.enable_grad():  # the products need this graph, even under torch.no_grad()
                self._value = net(self._x)
        self.value = self._value if torch.is_grad_enabled() else self._value.detach()

    def vecmat(self, w: Tensor) -> Tensor:
        if self._product is not None:
            return self._product(w)
        once_more = torch.is_grad_enabled()
        products = [
            torch.autograd.grad(self._value, self._x, row, retain_graph=True, create_graph=once_more)[0]
            for row in w.unbind(1)
        ]
        return torch.stack(products, dim=1)

    def matrix(self) -> Tensor:
        batch, d = self._value.shape
        basis = torch.eye(d, dtype=self._value.dtype, device=self._value.device)
        return self.vecmat(basis.expand(batch, d, d))
