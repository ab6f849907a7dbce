"""Residual flows of other packages, of blocks as wide and as deep as ours are in a comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import normflows
import torch
from torch import Tensor, nn

__all__ = ["normflows_model", "normflows_step", "torchflows_step"]

TRUNCATED = 10  # terms, where a comparison truncates the series


def normflows_model(d: int, blocks: int, width: int, **of_residual: Any) -> nn.Module:
    """The architecture of normflows' own example: LipschitzMLP d-w-w-d, ActNorm after each block.

    With the bound 0.98 instead of its 0.9, as sharp as ours.
    """
    flows = []
    for _ in range(blocks):
        net = normflows.nets.LipschitzMLP([d, width, width, d], init_zeros=True, lipschitz_const=0.98)
        flows += [normflows.flows.Residual(net, **of_residual), normflows.flows.ActNorm(d)]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(d, trainable=False), flows)


def normflows_step(model: nn.Module, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step as in normflows' example: Adam, then `update_lipschitz`.

    At the rate 1e-3 instead of its 3e-4, without its weight decay of 1e-5, and with 5 power iterations, its networks'
    default, instead of its 50.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = model.forward_kld(draw())
        loss.backward()
        optimizer.step()
        normflows.utils.update_lipschitz(model, 5)
        return loss.detach()

    return step


def torchflows_step(d: int, blocks: int, width: int, draw: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A training step of torchflows' ResFlow. Its layers run their power iterations in every forward pass."""
    from torchflows.bijections.base import BijectiveComposition
    from torchflows.bijections.finite.autoregressive.layers import ElementwiseAffine
    from torchflows.bijections.finite.residual.iterative import ResFlowBlock, SpectralLinear
    from torchflows.flows import Flow

    layers = []
    for _ in range(blocks):
        g = nn.Sequential(
            SpectralLinear(d, width), nn.Tanh(), SpectralLinear(width, width), nn.Tanh(), SpectralLinear(width, d)
        )
        layers += [ResFlowBlock((d,), g=g), ElementwiseAffine((d,))]
    model = Flow(BijectiveComposition(layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = -model.log_prob(draw()).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
