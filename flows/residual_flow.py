"""The invertible residual network and the Residual Flow: the same bijections, different choices."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from arguments import OneOf, Range, checked
from flows.activations import activation_names
from flows.actnorm import ActNorm
from flows.bijection import Bijection
from flows.chain import ChainWeights, library_of, through_chain
from flows.compiled import CompileError
from flows.estimators import LogDetEstimator, series
from flows.estimators.estimator import Noise, join
from flows.estimators.exact import log_det_plus_identity
from flows.flow import Flow
from flows.fused import compile_passes
from flows.lipschitz import LipschitzLinear, LipschitzMLP, NormalizedMLP, c_parameters, normalized_stack
from flows.precision import widened
from flows.residual_block import ResidualBlock
from flows.stacks import stacked
from flows.standardize import Standardize

__all__ = ["ResidualFlow"]


class ResidualFlow(Flow):
    """Residual blocks, with ActNorm before each and after the last. A Standardize may be put before all.

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

    def compile_for(self, device: torch.device) -> str | None:
        if device.type != "cpu":
            return compile_passes(device)
        try:
            for dtype in (torch.float32, torch.float64):  # for training; for all that follows
                library_of(type(self._nets[0].activations[0]), dtype)
                series.library_of(dtype)
        except CompileError as error:
            return str(error)
        self.compiled = self.estimator.compiled = True
        for net in self._nets:
            net.compiled = True
        return None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            # A graph of the compiled chain would be differentiable only once.
            return self._forward_exactly(x) if self.compiled and not torch.is_grad_enabled() else super().forward(x)
        noises = [self.estimator.draw_noise(x) for _ in self._nets]
        if not self.estimator.is_dense(x):
            return self._forward_by_products(x, noises)
        # The blocks of a flow on the plane are so small that sixteen estimates cost sixteen times as much as one.
        z, jacobians, log_scale = self._carry(x)
        estimates = self.estimator.from_matrix(jacobians.flatten(0, 1), join(noises))
        return z, estimates.view(-1, len(x)).sum(dim=0) + log_scale

    def _forward_exactly(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, jacobians, log_scale = self._carry(widened(x))
        log_det = log_det_plus_identity(jacobians.flatten(0, 1)).view(-1, len(x)).sum(dim=0) + log_scale
        return z.to(x.dtype), log_det.to(x.dtype)

    def _forward_by_products(self, x: Tensor, noises: Sequence[Noise | None]) -> tuple[Tensor, Tensor]:
        """As `Flow.forward`, with the weights of all blocks normalized at once."""
        nets, noises, z, terms = self._normalized(x.dtype), iter(noises), x, []
        for bijection in self.bijections:
            if isinstance(bijection, ResidualBlock):
                g, term = self.estimator(next(nets), z, next(noises))
                z = z + g
            else:
                z, term = bijection(z)
            terms.append(term)
        return z, torch.stack(terms).sum(dim=0)

    def _carry(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z, shape (batch, d), the blocks' Jacobians, (blocks, batch, d, d), and the log-det of all else."""
        bijections, log_det = [*self.bijections], 0.0
        if isinstance(bijections[0], Standardize):
            x, log_det = bijections.pop(0)(x)
        norms = [bijection for bijection in bijections if isinstance(bijection, ActNorm)]
        nets = self._nets
        if norms:
            log_scale, shift = (
                stacked([getattr(norm, name) for norm in norms]).to(x.dtype) for name in ("log_scale", "shift")
            )
        else:
            log_scale = shift = x.new_zeros(len(nets), self.dimensions)
        if self.compiled and x.device.type == "cpu":
            chain = ChainWeights(
                scale=log_scale[: len(nets)].exp(),
                shift=shift[: len(nets)],
                weights=[stack.to(x.dtype) for stack in self._stacks()],
                biases=[stacked([layer.bias for layer in layers]).to(x.dtype) for layers in self._layers()],
                parameter=c_parameters([net.activations for net in nets]).to(x.dtype),
            )
            z, jacobians = through_chain(type(nets[0].activations[0]), x, chain)
            return norms[-1](z)[0] if norms else z, jacobians, log_scale.sum() + log_det
        z, normalized, found = x, self._normalized(x.dtype), []
        for bijection in bijections:
            if isinstance(bijection, ResidualBlock):
                g, J = next(normalized).forward_with_jacobian(z)
                z = z + g
                found.append(J)
            else:
                z = bijection(z)[0]
        return z, torch.stack(found), log_scale.sum() + log_det

    @functools.cached_property
    def _nets(self) -> list[LipschitzMLP]:
        return [bijection.net for bijection in self.bijections if isinstance(bijection, ResidualBlock)]

    def _layers(self) -> Iterator[tuple[LipschitzLinear, ...]]:
        """The first layers of all blocks, then their second layers, and so on: those of one shape."""
        return zip(*(net.layers for net in self._nets), strict=True)

    def _stacks(self) -> list[Tensor]:
        if torch.is_grad_enabled():
            return [normalized_stack(layers) for layers in self._layers()]
        # To the last bit those of the inverse, which takes them layer by layer.
        return [torch.stack([layer.normalized_weight() for layer in layers]) for layers in self._layers()]

    def _normalized(self, dtype: torch.dtype) -> Iterator[NormalizedMLP]:
        """Each block's network, as `LipschitzMLP.normalize` gives it."""
        stacks = [stack.to(dtype).unbind() for stack in self._stacks()]
        for net, *weights in zip(self._nets, *stacks, strict=True):
            biases = [layer.bias.to(dtype) for layer in net.layers]
            yield NormalizedMLP(list(zip(weights, biases, strict=True)), list(net.activations), fused=self.training)
