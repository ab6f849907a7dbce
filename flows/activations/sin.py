"""Sine."""

import torch
from torch import Tensor

from flows.activations.activation import Activation

__all__ = ["Sin"]


class Sin(Activation):
    r""":math:`\phi(x) = \sin x`, with :math:`\phi' = \cos x`."""

    c_source = """
        sine_and_cosine(a, &h[0], &s[0]);
        c[0] = -h[0];
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(x), torch.cos(x)

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        return torch.addcmul(grad_value * derivative, -torch.sin(x), grad_derivative), []
