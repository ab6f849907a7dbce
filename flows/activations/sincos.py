"""The pair of sine and cosine."""

import torch
from torch import Tensor

from flows.activations.activation import Activation

__all__ = ["SinCos"]


class SinCos(Activation):
    r""":math:`\phi(x) = [\sin x, \cos x]`.

    Its derivative :math:`[\cos x, -\sin x]` has norm exactly 1 everywhere: a layer never attenuates.
    """

    expansion = 2
    c_source = """
        sine_and_cosine(a, &h[0], &h[1]);
        s[0] = h[1]; s[1] = -h[0];
        c[0] = -h[0]; c[1] = -h[1];
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sin(x), torch.cos(x)], dim=-1)

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sin, cos = torch.sin(x), torch.cos(x)
        return torch.cat([sin, cos], dim=-1), torch.cat([cos, -sin], dim=-1)

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        cos, minus_sin = derivative.chunk(2, dim=-1)
        (by_sin, by_cos), (by_sin_slope, by_cos_slope) = grad_value.chunk(2, dim=-1), grad_derivative.chunk(2, dim=-1)
        return torch.addcmul((by_sin - by_cos_slope) * cos, by_cos + by_sin_slope, minus_sin), []
