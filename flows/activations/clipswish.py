"""Concatenated LipSwish."""

import torch
from torch import Tensor, nn

from flows.activations.activation import Activation
from flows.activations.lipswish import LipSwish

__all__ = ["CLipSwish"]


class CLipSwish(Activation):
    r""":math:`\phi(x) = [\mathrm{LipSwish}(x), \mathrm{LipSwish}(-x)] / 1.004` (Perugachi-Diaz et al. 2021).

    The pair's derivative has a norm of at most 1 and, unlike LipSwish's alone, at least 0.6 everywhere, so a
    signal is never lost on the flat side (arXiv 2102.02694, section 3.3).
    """

    expansion = 2

    def __init__(self) -> None:
        super().__init__()
        self.lipswish: nn.Module = LipSwish()

    def forward(self, x: Tensor) -> Tensor:
        return self.lipswish(torch.cat([x, -x], dim=-1)) / 1.004

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = self.lipswish.value_and_derivative(torch.cat([x, -x], dim=-1))
        rising, falling = derivative.chunk(2, dim=-1)
        return value / 1.004, torch.cat([rising, -falling], dim=-1) / 1.004

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        sign = torch.ones_like(derivative)
        sign[..., x.shape[-1] :] = -1
        grad_both, grad_parameters = self.lipswish.pullback(
            torch.cat([x, -x], dim=-1), sign * derivative * 1.004, grad_value / 1.004, sign * grad_derivative / 1.004
        )
        rising, falling = grad_both.chunk(2, dim=-1)
        return rising - falling, grad_parameters
