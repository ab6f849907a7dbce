"""LipSwish."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flows.activations.activation import Activation

__all__ = ["LipSwish"]

SCALE = 1 / 1.1  # multiplied, because a division by a number is slower


class LipSwish(Activation):
    r""":math:`\phi(x) = x\,\sigma(\beta x) / 1.1` with a learned :math:`\beta > 0` (Chen et al. 2019, section 3.3).

    Swish has a slope of at most 1.0998 whatever :math:`\beta`. ELU's second derivative is zero wherever its slope is
    one, so that the log-determinant cannot be learned there; LipSwish's is zero at single points only.
    """

    c_source = """
        real u = p * a, g = sigmoid(u), gg = g * (1 - g) * (real)(1 / 1.1);
        real curve = gg * (2 + u * (1 - 2 * g));
        h[0] = a * g * (real)(1 / 1.1); s[0] = g * (real)(1 / 1.1) + u * gg; c[0] = p * curve;
        h_by_p[0] = a * a * gg; s_by_p[0] = a * curve;
    """

    @classmethod
    def c_parameter(cls, raw: Tensor) -> Tensor:
        return functional.softplus(raw)

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))  # beta = softplus(raw_beta) = 1

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.c_parameter(self.raw_beta.to(x.dtype)) * x) * SCALE

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beta = self.c_parameter(self.raw_beta.to(x.dtype))
        gate = torch.sigmoid(beta * x)
        scaled = gate * SCALE
        value = x * scaled
        swish = beta * value
        return value, torch.addcmul(scaled, swish, 1 - gate)  # swish - swish * gate would cancel for large x

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        beta = self.c_parameter(self.raw_beta.to(x.dtype))
        u = beta * x
        gate = torch.sigmoid(u)
        slope_of_gate = torch.addcmul(gate, gate, gate, value=-1).mul_(SCALE)
        # The second derivative is beta * curvature, and the derivative's own derivative by beta x * curvature.
        curvature = torch.addcmul(u, u, gate, value=-2).add_(2).mul_(slope_of_gate).mul_(grad_derivative)
        grad_x = torch.addcmul(grad_value * derivative, beta, curvature)
        grad_beta = torch.dot(x.flatten(), curvature.addcmul_(slope_of_gate.mul_(x), grad_value).flatten())
        return grad_x, [grad_beta * torch.sigmoid(self.raw_beta)]
