"""LipSwish."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flows.activations.activation import Activation

__all__ = ["LipSwish"]


class LipSwish(Activation):
    r""":math:`\phi(x) = x\,\sigma(\beta x) / 1.1` with a learned :math:`\beta > 0` (Chen et al. 2019, section 3.3).

    Swish has a slope of at most 1.0998 whatever :math:`\beta`. Unlike ELU's or tanh's, its second derivative
    does not vanish where the slope is largest, so the log-determinant can still be learned there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))  # beta = softplus(raw_beta) = 1

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(functional.softplus(self.raw_beta) * x) / 1.1

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = functional.softplus(self.raw_beta) * x
        gate = torch.sigmoid(u)
        return x * gate / 1.1, gate * (1 + u * (1 - gate)) / 1.1
