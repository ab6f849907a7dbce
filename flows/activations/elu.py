"""Exponential linear unit."""

import torch
from torch import Tensor
from torch.nn import functional

from flows.activations.activation import Activation

__all__ = ["ELU"]


class ELU(Activation):
    r""":math:`\phi(x) = x` for x > 0, :math:`e^x - 1` below (Clevert et al. 2016; the iResNet paper's choice)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.elu(x), torch.exp(x.clamp(max=0.0))
