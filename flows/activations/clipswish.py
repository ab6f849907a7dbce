"""Concatenated LipSwish."""

import torch
from torch import Tensor

from flows.activations.activation import Activation
from flows.activations.lipswish import LipSwish

__all__ = ["CLipSwish"]

SCALE = 1.004


class CLipSwish(Activation):
    r""":math:`\phi(x) = [\mathrm{LipSwish}(x), \mathrm{LipSwish}(-x)] / 1.004` (Perugachi-Diaz et al. 2021).

    The pair's derivative has a norm of at most 1 and, unlike LipSwish's alone, at least 0.6 everywhere, so a
    signal is never lost on the flat side (arXiv 2102.02694).
    """

    expansion = 2

    c_source = """
        const real scale = 1 / (1.1 * 1.004);
        real u = p * a, g = sigmoid(u), gg = g * (1 - g) * scale;
        real curve = gg * (2 + u * (1 - 2 * g));
        h[0] = a * g * scale; s[0] = g * scale + u * gg; c[0] = p * curve;
        h_by_p[0] = a * a * gg; s_by_p[0] = a * curve;
        /* LipSwish(-a) = LipSwish(a) - a, by the symmetry of the gate. */
        h[1] = h[0] - a * scale; s[1] = s[0] - scale; c[1] = c[0];
        h_by_p[1] = h_by_p[0]; s_by_p[1] = s_by_p[0];
    """

    c_parameter = LipSwish.c_parameter

    def __init__(self) -> None:
        super().__init__()
        self.lipswish = LipSwish()

    def forward(self, x: Tensor) -> Tensor:
        return self.lipswish(torch.cat([x, -x], dim=-1)) / SCALE

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = self.lipswish.value_and_derivative(torch.cat([x, -x], dim=-1))
        rising, falling = derivative.chunk(2, dim=-1)
        return value / SCALE, torch.cat([rising, -falling], dim=-1) / SCALE

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        sign = torch.ones_like(derivative)
        sign[..., x.shape[-1] :] = -1
        grad_both, grad_parameters = self.lipswish.pullback(
            torch.cat([x, -x], dim=-1), sign * derivative * SCALE, grad_value / SCALE, sign * grad_derivative / SCALE
        )
        rising, falling = grad_both.chunk(2, dim=-1)
        return rising - falling, grad_parameters
