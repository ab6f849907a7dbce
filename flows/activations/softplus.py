"""Softplus."""

import torch
from torch import Tensor
from torch.nn import functional

from flows.activations.activation import Activation

__all__ = ["Softplus"]


class Softplus(Activation):
    r""":math:`\phi(x) = \ln(1 + e^x)`, whose derivative is the logistic sigmoid."""

    c_source = """
        h[0] = (a < 0 ? 0 : a) + log1p(exponential(a < 0 ? a : -a));
        s[0] = sigmoid(a);
        c[0] = s[0] * (1 - s[0]);
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x, threshold=40)  # from there on it is x to all digits of float64

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), torch.sigmoid(x)

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        return torch.addcmul(grad_value * derivative, derivative * (1 - derivative), grad_derivative), []
