"""The implicit flow (Lu et al. 2021, arXiv 2103.09527)."""

from __future__ import annotations

from arguments import Count, checked
from flows.activations import ActivationName
from flows.estimators import LogDetEstimator
from flows.lipschitz import Coeff, LipschitzMLP
from flows.residual_block import InverseBlock, ResidualBlock
from flows.residual_flow import FlowOfBlocks

__all__ = ["ImplicitFlow"]


class ImplicitFlow(FlowOfBlocks):
    r"""Blocks that carry x to the solution z of :math:`z + g_z(z) = x + g_x(x)`.

    A block is :math:`(I + g_z)^{-1} \circ (I + g_x)`, both networks with a Lipschitz constant below one. With
    :math:`g_z = 0` it is a residual block: so it is more expressive at equal depth (the same, corollary 1). Its
    log-determinant, :math:`\log\det(I + J_{g_x}(x)) - \log\det(I + J_{g_z}(z))`, is estimated as that of two blocks.

    Args:
        dimensions: d.
        estimator: of the log-determinants, while training.
        blocks: number of blocks, of two networks each.
        width: units of a hidden layer.
        depth: hidden layers of a network; 3 makes d-w-w-w-d.
        activation: see `flows/activations`.
        coeff: c, the bound on the largest singular value of every layer.
        actnorm: whether ActNorm stands before each block and after the last.
    """

    @checked
    def __init__(
        self,
        dimensions: int,
        estimator: LogDetEstimator,
        blocks: Count = 8,
        width: Count = 16,
        depth: Count = 3,
        activation: ActivationName = "fourier",
        coeff: Coeff = 0.99,
        actnorm: bool = True,
    ) -> None:
        def net() -> LipschitzMLP:
            return LipschitzMLP(dimensions, width, depth, coeff, activation)

        pairs = ((ResidualBlock(net(), estimator), InverseBlock(net(), estimator)) for _ in range(blocks))
        super().__init__(pairs, dimensions, actnorm)
