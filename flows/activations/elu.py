"""Exponential linear unit."""

import torch
from torch import Tensor
from torch.nn import functional

from flows.activations.activation import Activation

__all__ = ["ELU"]


class ELU(Activation):
    r""":math:`\phi(x) = x` for x > 0, :math:`e^x - 1` below (Clevert et al. 2016; the iResNet paper's choice)."""

    c_source = """
        real e = exponential(a < 0 ? a : 0);
        h[0] = a < 0 ? e - 1 : a;
        s[0] = e;
        c[0] = a < 0 ? e : 0;
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(x)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.elu(x), torch.exp(x.clamp(max=0.0))

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        # The second derivative is the first where x < 0, and zero elsewhere.
        return derivative * torch.where(x < 0, grad_value + grad_derivative, grad_value), []
