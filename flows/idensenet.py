"""The invertible DenseNet (Perugachi-Diaz et al. 2021, arXiv 2102.02694)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from arguments import Count, checked
from flows.activations import Activation, ActivationName, make_activation
from flows.estimators import LogDetEstimator
from flows.lipschitz import Coeff, LipschitzLinear, LipschitzNet, NormalizedNet
from flows.residual_block import ResidualBlock
from flows.residual_flow import FlowOfBlocks

__all__ = ["IDenseNet", "LipschitzDenseNet"]


class LipschitzDenseNet(LipschitzNet):
    r""":math:`g = W_{n+1} \circ h_n \cdots \circ h_1` with :math:`h_k(x) = [a_k\,x,\; b_k\,\phi(W_k x)]`.

    Every layer sees all that came before it. The weights of the concatenation are learned, as
    :math:`(a_k, b_k) = (\eta_1, \eta_2) / \sqrt{\eta_1^2 + \eta_2^2 K^2}` with positive :math:`\eta` and
    :math:`K = c\,\mathrm{Lip}(\phi)`, so that :math:`\mathrm{Lip}(h_k) \le \sqrt{a_k^2 + b_k^2 K^2} = 1` and
    :math:`\mathrm{Lip}(g) \le c`. The paper holds :math:`a_k^2 + b_k^2` to one (its code to 0.98 squared, with
    either weight kept from vanishing, and fixed for the first half of training): where K is below one, the bound on
    :math:`\mathrm{Lip}(h_k)` is then below one too, and the difference is unused.

    Args:
        dimensions: d, of input and output.
        width: units that each layer adds, before the activation's expansion; the authors' growth counts them after it.
        depth: n, number of layers that add some.
        coeff: c, the bound on every layer's largest singular value.
        activation: name of a file in `flows/activations`; each layer has its own.
    """

    @checked
    def __init__(
        self,
        dimensions: Count,
        width: Count,
        depth: Count,
        coeff: Coeff,
        activation: ActivationName,
    ) -> None:
        super().__init__()
        self.coeff = coeff
        self.activations = nn.ModuleList(make_activation(activation) for _ in range(depth))
        growth = width * self.activations[0].expansion
        sizes = [*((dimensions + k * growth, width) for k in range(depth)), (dimensions + depth * growth, dimensions)]
        self.layers = nn.ModuleList(LipschitzLinear(n_in, n_out, coeff) for n_in, n_out in sizes)
        self.raw_mix = nn.Parameter(torch.zeros(2 * depth))
        """The etas of all layers, before the softplus that makes them positive."""

    def mix(self) -> Tensor:
        """a and b of every layer, shape (depth, 2)."""
        eta = functional.softplus(self.raw_mix).view(-1, 2)
        K = self.coeff * self.activations[0].lipschitz
        return eta / torch.hypot(eta[:, :1], K * eta[:, 1:])

    def with_weights(self, weights: list[tuple[Tensor, Tensor]]) -> NormalizedDenseNet:
        return NormalizedDenseNet(weights, list(self.activations), self.mix())

    def bound(self) -> float:
        return self.coeff

    @torch.no_grad()
    def lipschitz(self) -> float:
        r"""A certified bound on Lip(g): :math:`\sigma_{n+1} \prod_k \sqrt{a_k^2 + b_k^2 \sigma_k^2 \mathrm{Lip}^2}`."""
        *sigmas, last = (layer.singular_value() for layer in self.layers)
        slopes = (sigma * activation.lipschitz for sigma, activation in zip(sigmas, self.activations, strict=True))
        return last * math.prod(math.hypot(a, b * slope) for (a, b), slope in zip(self.mix().tolist(), slopes))


@dataclass(frozen=True)
class NormalizedDenseNet(NormalizedNet):
    """A :class:`LipschitzDenseNet` with its weights already normalized.

    Attributes:
        weights: normalized weight and bias of every layer.
        activations: of the layers but the last.
        mix: see :meth:`LipschitzDenseNet.mix`.
    """

    weights: list[tuple[Tensor, Tensor]]
    activations: list[Activation]
    mix: Tensor

    def parameters(self) -> list[Tensor]:
        return [
            *(tensor for layer in self.weights for tensor in layer),
            *(parameter for activation in self.activations for parameter in activation.parameters()),
            self.mix,
        ]

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias, activation, a, b in self._hidden(x.dtype):
            x = torch.cat([a * x, b * activation(functional.linear(x, weight, bias))], dim=-1)
        return functional.linear(x, *self.weights[-1])

    def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d = x.shape[1]
        tangents = torch.eye(d, dtype=x.dtype, device=x.device).unsqueeze(1).expand(d, len(x), d)
        for weight, bias, activation, a, b in self._hidden(x.dtype):
            value, slope = activation.value_and_derivative(functional.linear(x, weight, bias))
            columns = functional.linear(tangents, weight).repeat(1, 1, activation.expansion) * slope
            x = torch.cat([a * x, b * value], dim=1)
            tangents = torch.cat([a * tangents, b * columns], dim=2)
        weight, bias = self.weights[-1]
        return functional.linear(x, weight, bias), functional.linear(tangents, weight).permute(1, 2, 0)

    def _hidden(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Activation, Tensor, Tensor]]:
        mix = self.mix.to(dtype)
        for (weight, bias), activation, (a, b) in zip(self.weights, self.activations, mix):
            yield weight, bias, activation, a, b


class IDenseNet(FlowOfBlocks):
    """Residual blocks of Lipschitz DenseNets, with ActNorm before each and after the last.

    Args:
        dimensions: d.
        estimator: of the log-determinants, while training.
        blocks: number of residual blocks.
        width: units that each layer of a block adds, before the activation's expansion.
        depth: layers of a block that add some.
        activation: see `flows/activations`.
        coeff: c, the bound on the largest singular value of every layer, and here on a block's Lipschitz constant.
        actnorm: whether ActNorm stands before each block and after the last.
    """

    @checked
    def __init__(
        self,
        dimensions: int,
        estimator: LogDetEstimator,
        blocks: Count = 10,
        width: Count = 16,
        depth: Count = 3,
        activation: ActivationName = "clipswish",
        coeff: Coeff = 0.99,
        actnorm: bool = True,
    ) -> None:
        nets = (LipschitzDenseNet(dimensions, width, depth, coeff, activation) for _ in range(blocks))
        super().__init__(([ResidualBlock(net, estimator)] for net in nets), dimensions, actnorm)
