"""Hyperbolic tangent."""

import torch
from torch import Tensor

from flows.activations.activation import Activation

__all__ = ["Tanh"]


class Tanh(Activation):
    r""":math:`\phi(x) = \tanh x`, with :math:`\phi' = 1 - \phi^2`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(x)
        return value, 1 - value * value
