"""Hyperbolic tangent."""

import torch
from torch import Tensor

from flows.activations.activation import Activation

__all__ = ["Tanh"]


class Tanh(Activation):
    r""":math:`\phi(x) = \tanh x`, with :math:`\phi' = 1 - \phi^2`."""

    c_source = """
        h[0] = 2 * sigmoid(2 * a) - 1;
        s[0] = 1 - h[0] * h[0];
        c[0] = -2 * h[0] * s[0];
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(x)
        return value, 1 - value * value

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        return torch.addcmul(grad_value * derivative, -2 * torch.tanh(x) * derivative, grad_derivative), []
