"""The pair of sine and cosine, of a learned frequency."""

import math

import torch
from torch import Tensor, nn

from flows.activations.activation import Activation

__all__ = ["Fourier"]

HIGHEST = 16.0  # without a bound the frequency may grow for thousands of steps, into noise of vanishing amplitude
START = 3.0  # after training, most frequencies are between 2 and 8


class Fourier(Activation):
    r""":math:`\phi(x) = [\sin(\omega x), \cos(\omega x)] / \omega` with a learned frequency :math:`0 < \omega < 16`.

    Its derivative has norm exactly 1 everywhere, as that of :class:`~flows.activations.sincos.SinCos`, whatever
    :math:`\omega`. A spectrally normalized weight has short rows (in two dimensions the squares of all sum up to two at
    most): with :math:`\omega = 1` few units see much of a period of their sine, and the network is nearly linear.
    The implicit flows of Lu et al. 2021 (arXiv 2103.09527, in their code for toy densities) have one fixed frequency,
    :math:`\sin(2 \pi x) / 2 \pi`, and networks of sines without such a bound have one too (Sitzmann et al. 2020, arXiv
    2006.09661, section 3.2).
    """

    expansion = 2
    c_source = """
        real sine, cosine, amplitude = 1 / p;
        sine_and_cosine(p * a, &sine, &cosine);
        h[0] = amplitude * sine; s[0] = cosine; c[0] = -p * sine;
        h[1] = amplitude * cosine; s[1] = -sine; c[1] = -p * cosine;
        h_by_p[0] = amplitude * (a * cosine - h[0]); s_by_p[0] = -a * sine;
        h_by_p[1] = -amplitude * (a * sine + h[1]); s_by_p[1] = -a * cosine;
    """

    @classmethod
    def c_parameter(cls, raw: Tensor) -> Tensor:
        return HIGHEST * torch.sigmoid(raw)

    def __init__(self) -> None:
        super().__init__()
        self.raw_frequency = nn.Parameter(torch.tensor(-math.log(HIGHEST / START - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.value_and_derivative(x)[0]

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frequency = self.c_parameter(self.raw_frequency.to(x.dtype))
        sin, cos = torch.sin(frequency * x), torch.cos(frequency * x)
        return torch.cat([sin, cos], dim=-1) / frequency, torch.cat([cos, -sin], dim=-1)

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        frequency = self.c_parameter(self.raw_frequency.to(x.dtype))
        cos, minus_sin = derivative.chunk(2, dim=-1)
        (by_sin, by_cos), (by_sin_slope, by_cos_slope) = grad_value.chunk(2, dim=-1), grad_derivative.chunk(2, dim=-1)
        grad_x = (by_sin - frequency * by_cos_slope) * cos + (by_cos + frequency * by_sin_slope) * minus_sin
        # A larger frequency scales the input up and the value down.
        by_scale = torch.dot(by_cos.flatten(), cos.flatten()) - torch.dot(by_sin.flatten(), minus_sin.flatten())
        by_log_frequency = torch.dot(x.flatten(), grad_x.flatten()) - by_scale / frequency
        return grad_x, [by_log_frequency * (1 - frequency / HIGHEST)]
