"""The invertible residual network and the Residual Flow: the same bijections, different choices."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional

from arguments import OneOf, Range, checked
from flows import power_iteration
from flows.activations import activation_names
from flows.actnorm import ActNorm, with_actnorm
from flows.bijection import Bijection, InverseError
from flows.chain import ChainWeights, Inverted, through_chain
from flows.compiled import CompileError
from flows.estimators import Exact, LogDetEstimator, series
from flows.estimators.estimator import Noise, join
from flows.flow import Flow
from flows.fused import compile_passes
from flows.lipschitz import LipschitzLinear, LipschitzMLP, LipschitzNet, c_parameters, normalize_all, normalized_stacks
from flows.precision import widened
from flows.residual_block import InverseBlock, ResidualBlock
from flows.stacks import stacked
from flows.standardize import Standardize

__all__ = ["FlowOfBlocks", "ResidualFlow"]


class FlowOfBlocks(Flow):
    """Blocks of networks of one shape. In training their weights are normalized, and their estimates made, together.

    Args:
        blocks: each of one bijection or several. A Standardize may be put before all.
        dimensions: d.
        estimator: of the log-determinants, while training.
        actnorm: whether ActNorm stands before each block and after the last.
    """

    def __init__(
        self, blocks: Iterable[Sequence[Bijection]], dimensions: int, estimator: LogDetEstimator, actnorm: bool
    ) -> None:
        super().__init__(with_actnorm(blocks, dimensions) if actnorm else chain.from_iterable(blocks), dimensions)
        self.estimator = estimator

    def compile_for(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return compile_passes(device)
        try:
            for dtype in (torch.float32, torch.float64):  # for training; for all that follows
                self._nets[0].load_library(dtype)
                series.library_of(dtype)
                power_iteration.library_of(dtype)
        except CompileError as error:
            return str(error)
        self.compiled = self.estimator.compiled = True
        for net in self._nets:
            net.compiled = True
        return None

    def why_not_captured(self) -> str | None:
        if self.estimator.draws_on_host:
            return f"{type(self.estimator).__name__} draws the number of terms on the host; estimator=exact does not"
        return None

    def threads(self) -> contextlib.AbstractContextManager[None]:
        # A step by products is torch's own operations: it needs the threads.
        by_products = self.training and not self.estimator.is_dense(self.dimensions)
        return contextlib.nullcontext() if by_products else super().threads()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            # A graph of the compiled chain would be differentiable only once.
            return self._evaluate(x) if self.compiled and not torch.is_grad_enabled() else super().forward(x)
        noises = [self.estimator.draw_noise(x) for _ in self._nets]
        if not self.estimator.is_dense(self.dimensions):
            return self._forward_by_products(x, noises)
        z, jacobians, others = self._carry(x)
        return z, self._log_det(jacobians, self.estimator, noises) + others

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `Flow.forward`, all blocks at once."""
        z, jacobians, others = self._carry(widened(x))
        log_det = self._log_det(jacobians, Exact(), [None] * len(self._nets)) + others
        return z.to(x.dtype), log_det.to(x.dtype)

    def _log_det(self, jacobians: Tensor, estimator: LogDetEstimator, noises: Sequence[Noise | None]) -> Tensor:
        """The sum of the blocks' log-determinants, shape (batch,), from their Jacobians, (blocks, batch, d, d)."""
        # The blocks of a flow on the plane are so small that sixteen estimates cost sixteen times as much as one.
        estimates = estimator.from_matrix(jacobians.flatten(0, 1), join(noises))
        return estimates.view(jacobians.shape[:2]).sum(dim=0)

    def _forward_by_products(self, x: Tensor, noises: Sequence[Noise | None]) -> tuple[Tensor, Tensor]:
        """As `Flow.forward`, with the weights of all blocks normalized at once."""
        nets, noises, terms = normalize_all(self._nets, x.dtype), iter(noises), []
        for bijection in self.bijections:
            if isinstance(bijection, ResidualBlock):
                measure = functools.partial(self.estimator, noise=next(noises))
                x, term = bijection.carry(next(nets), x, measure)
                term = bijection.sign * term
            else:
                x, term = bijection(x)
            terms.append(term)
        return x, torch.stack(terms).sum(dim=0)

    def _carry(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return z, shape (batch, d), the blocks' Jacobians, (blocks, batch, d, d), and the log-det of all else."""
        if self.compiled and x.device.type == "cpu":
            return self._carry_as_chain(x)
        nets, jacobians, others = normalize_all(self._nets, x.dtype), [], 0.0
        for bijection in self.bijections:
            if isinstance(bijection, ResidualBlock):
                x, J = bijection.carry(next(nets), x, lambda net, x: net.forward_with_jacobian(x))
                jacobians.append(J)
            else:
                x, term = bijection(x)
                others = others + term
        return x, torch.stack(jacobians), others

    def _carry_as_chain(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """As `_carry`, by the C library."""
        others = 0.0
        if isinstance(self.bijections[0], Standardize):
            x, others = self.bijections[0](x)
        nets, norms = self._nets, self._norms
        if norms:
            log_scale, shift = (
                stacked([getattr(norm, name) for norm in norms]).to(x.dtype) for name in ("log_scale", "shift")
            )
            others = log_scale.sum() + others
            # Of the networks between two of them only the first is behind one.
            between = len(nets) // (len(norms) - 1)
            log_scale, shift = (
                functional.pad(norm[:-1].unsqueeze(1), (0, 0, 0, between - 1)).flatten(0, 1)
                for norm in (log_scale, shift)
            )
        else:
            log_scale = shift = x.new_zeros(len(nets), self.dimensions)
        weights = ChainWeights(
            scale=log_scale.exp(),
            shift=shift,
            weights=[stack.to(x.dtype) for stack in normalized_stacks(self._layers)],
            biases=[stacked([layer.bias for layer in layers]).to(x.dtype) for layers in self._layers],
            parameter=c_parameters([net.activations for net in nets], x.dtype),
        )
        z, jacobians = through_chain(type(nets[0].activations[0]), x, weights, self._inverted())
        return norms[-1](z)[0] if norms else z, jacobians, others

    def _inverted(self) -> Inverted | None:
        """Which of the blocks are inverse ones, and the Lipschitz constant of all."""
        # While training power iteration keeps the spectral norms converged; what is evaluated is certified.
        if self.training or self._inverted_in_training is None:
            return self._inverted_in_training
        L = max(net.lipschitz() for net in self._nets)
        if not L < 1:
            raise InverseError(f"a block's Lipschitz constant is {L:.6g}, so that it has no certified inverse")
        return Inverted(self._inverted_in_training.blocks, L)

    @functools.cached_property
    def _inverted_in_training(self) -> Inverted | None:
        inverted = [isinstance(block, InverseBlock) for block in self._blocks]
        return Inverted(inverted, max(net.bound() for net in self._nets)) if any(inverted) else None

    @functools.cached_property
    def _blocks(self) -> list[ResidualBlock]:
        return [bijection for bijection in self.bijections if isinstance(bijection, ResidualBlock)]

    @functools.cached_property
    def _nets(self) -> list[LipschitzNet]:
        return [block.net for block in self._blocks]

    @functools.cached_property
    def _layers(self) -> list[list[LipschitzLinear]]:
        """The first layers of all networks, then their second ones, and so on."""
        return [list(layers) for layers in zip(*(net.layers for net in self._nets), strict=True)]

    @functools.cached_property
    def _norms(self) -> list[ActNorm]:
        return [bijection for bijection in self.bijections if isinstance(bijection, ActNorm)]


class ResidualFlow(FlowOfBlocks):
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
        nets = (LipschitzMLP(dimensions, width, depth, coeff, activation) for _ in range(blocks))
        super().__init__(([ResidualBlock(net, estimator)] for net in nets), dimensions, estimator, actnorm)
