"""The invertible residual network and the Residual Flow: the same bijections, different choices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from arguments import OneOf, Range, checked
from flows.activations import activation_names
from flows.actnorm import ActNorm
from flows.bijection import Bijection
from flows.estimators import LogDetEstimator
from flows.estimators.estimator import join
from flows.flow import Flow
from flows.lipschitz import LipschitzMLP
from flows.residual_block import ResidualBlock

__all__ = ["ResidualFlow"]


class ResidualFlow(Flow):
    """Residual blocks, with ActNorm before each and after the last.

    Args:
        dimensions: d.
        estimator: of the log-determinants, while training.
        blocks: number of residual blocks.
        width: units of a hidden layer.
        depth: hidden layers of a block; 2 makes d-w-w-d.
        activation: see `flows/activations`.
        coeff: c, the bound on the largest singular value of every layer.
        actnorm: whether ActNorm stands between the blocks.
    """

    @checked
    def __init__(
        self,
        dimensions: int,
        estimator: LogDetEstimator,
        blocks: Annotated[int, Range(ge=1)] = 16,
        width: Annotated[int, Range(ge=1)] = 64,
        depth: Annotated[int, Range(ge=1)] = 2,
        activation: Annotated[str, OneOf(activation_names)] = "lipswish",
        coeff: Annotated[float, Range(gt=0, lt=1)] = 0.98,
        actnorm: bool = True,
    ) -> None:
        def bijections() -> Iterator[Bijection]:
            for _ in range(blocks):
                if actnorm:
                    yield ActNorm(dimensions)
                yield ResidualBlock(LipschitzMLP(dimensions, width, depth, coeff, activation), estimator)
            if actnorm:
                yield ActNorm(dimensions)

        super().__init__(bijections(), dimensions)
        self.estimator = estimator

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and self.estimator.is_dense(x):
            return self._forward_together(x)
        return super().forward(x)

    def _forward_together(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `super().forward`, with the log-determinants of all blocks estimated as one batch.

        The blocks of a flow on the plane are so small that sixteen estimates cost sixteen times as much as one.
        """
        jacobians, noises, terms, z = {}, [], {}, x
        for index, bijection in enumerate(self.bijections):
            if isinstance(bijection, ResidualBlock):
                noises.append(self.estimator.draw_noise(z))
                g, jacobians[index] = bijection.net.normalize(z.dtype).forward_with_jacobian(z)
                z = z + g
            else:
                z, terms[index] = bijection(z)
        estimates = self.estimator.from_matrix(torch.cat(list(jacobians.values())), join(noises)).view(-1, len(x))
        terms.update(zip(jacobians, estimates, strict=True))
        return z, torch.stack([terms[index] for index in range(len(terms))]).sum(dim=0)
