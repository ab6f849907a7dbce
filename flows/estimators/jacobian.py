"""The Jacobian J of a network g at a batch of points, as an operator that multiplies row vectors: w -> w^T J.

Estimators are written once against this operator; which of the two serves them changes the cost, not the value.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DenseJacobian", "Jacobian", "LinearizedJacobian", "VjpJacobian", "by_products"]


class Jacobian(abc.ABC):
    """J = dg/dx for every sample of a batch."""

    @abc.abstractmethod
    def vecmat(self, w: Tensor, differentiable: bool) -> Tensor:
        """Return w^T J, shape (batch, probes, d) like `w`; where not `differentiable`, without a graph."""

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        """Return the sum over the probes of w^T J v, shape (batch,), differentiable by J; `w` and `v` are constants."""
        return (self.vecmat(w, differentiable=True) * v).sum((1, 2))

    @abc.abstractmethod
    def matrix(self) -> Tensor:
        """Return J, shape (batch, d, d), `J[:, i, j] = dg_i / dx_j`."""


class DenseJacobian(Jacobian):
    """J held as a matrix, carried forward through the network beside its value."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def vecmat(self, w: Tensor, differentiable: bool) -> Tensor:
        return torch.bmm(w, self._matrix if differentiable else self._matrix.detach())

    def matrix(self) -> Tensor:
        return self._matrix


class _Products(Jacobian):
    """J known through products alone.

    Attributes:
        value: g(x), computed on the way, shape (batch, d).
    """

    value: Tensor

    def matrix(self) -> Tensor:
        batch, d = self.value.shape
        basis = torch.eye(d, dtype=self.value.dtype, device=self.value.device)
        return self.vecmat(basis.expand(batch, d, d), differentiable=True)


class VjpJacobian(_Products):
    """Products by automatic differentiation: of any network."""

    def __init__(self, net: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():  # the products are derivatives, also where nothing is to be learned
            self._x = x if self._keep_graph and x.requires_grad else x.detach().requires_grad_()
            self._value = net(self._x)
        self.value = self._value if self._keep_graph else self._value.detach()

    def vecmat(self, w: Tensor, differentiable: bool) -> Tensor:
        products = [
            torch.autograd.grad(
                self._value, self._x, row, retain_graph=True, create_graph=differentiable and self._keep_graph
            )[0]
            for row in w.unbind(1)
        ]
        return torch.stack(products, dim=1)


class LinearizedJacobian(_Products):
    """Products written out: of a network with `linearize` and `forward_with_tangents`.

    What needs no graph is computed without: an estimate with a Neumann gradient has no other than that of its last
    product, which carries v forward beside the value.
    """

    def __init__(self, net: Any, x: Tensor) -> None:
        self._net, self._x = net, x

    def vecmat(self, w: Tensor, differentiable: bool) -> Tensor:
        if differentiable:
            return self._linearized[1](w)
        with torch.no_grad():
            return self._linearized_without_graph[1](w)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        self.value, Jv = self._net.forward_with_tangents(self._x, v)
        return (w * Jv).sum((1, 2))

    @functools.cached_property
    def value(self) -> Tensor:
        return self._linearized[0]

    @functools.cached_property
    def _linearized(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self._net.linearize(self._x) if torch.is_grad_enabled() else self._linearized_without_graph

    @functools.cached_property
    def _linearized_without_graph(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        with torch.no_grad():
            return self._net.linearize(self._x)


def by_products(net: Callable[[Tensor], Tensor], x: Tensor) -> VjpJacobian | LinearizedJacobian:
    """The Jacobian of `net` at `x`, shape (batch, d), by products: written out where the network offers them."""
    return (LinearizedJacobian if hasattr(net, "linearize") else VjpJacobian)(net, x)
