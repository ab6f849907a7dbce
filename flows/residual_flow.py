"""The invertible residual network and the Residual Flow: the same bijections, different choices."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from arguments import Count, checked
from flows import chain, power_iteration
from flows.activations import Activation, ActivationName
from flows.actnorm import ActNorm, with_actnorm
from flows.bijection import Bijection, InverseError
from flows.chain import ChainWeights, Inverted, certified_through_chain, through_chain
from flows.compiled import CompileError
from flows.estimators import Exact, LogDetEstimator, series
from flows.estimators.estimator import Noise, join
from flows.fixed_point import COARSE_RESIDUAL, COARSE_STEPS, LARGEST_NEWTON_DIMENSION
from flows.flow import Flow
from flows.fused import why_not_compiled
from flows.lipschitz import (
    Coeff,
    LipschitzLinear,
    LipschitzMLP,
    LipschitzNet,
    c_parameters,
    normalize_all,
    normalized_stacks,
    same,
)
from flows.precision import widened
from flows.residual_block import InverseBlock, Measure, ResidualBlock
from flows.stacks import stacked
from flows.standardize import Standardize

__all__ = ["FlowOfBlocks", "ResidualFlow"]

NUMBERS = 4_000_000  # in the Jacobians of all blocks, of the points that are evaluated at once


class FlowOfBlocks(Flow):
    """Residual blocks whose networks have one shape, so that training can compute them together.

    All weights are normalized at once and, where the Jacobians are dense, all log-determinants estimated at once.

    Args:
        blocks: the bijections of each block, one or several. The first residual block's estimator serves all blocks. A
            Standardize may be inserted before the first block.
        dimensions: d.
        actnorm: whether ActNorm stands before each block and after the last.

    Raises:
        InverseError: in evaluation mode or when inverting, a block's Lipschitz constant is not below one.
    """

    def __init__(self, blocks: Iterable[Sequence[Bijection]], dimensions: int, actnorm: bool) -> None:
        plain = (bijection for block in blocks for bijection in block)
        super().__init__(with_actnorm(blocks, dimensions) if actnorm else plain, dimensions)
        self.estimator = self._blocks[0].estimator
        self._certified: tuple[list[Tensor], list[Tensor], list[float]] | None = None

    def compile_for(self, device: torch.device) -> str | None:
        if device.type not in ("cpu", "cuda"):
            return None
        if device.type == "cuda":
            if not all(isinstance(net, LipschitzMLP) for net in self._nets):
                return None
            for kind in {type(activation) for net in self._nets for activation in net.activations}:
                if kind.pullback is Activation.pullback:  # which torch's compiler cannot see through
                    return f"the activation {kind.__name__} has no pullback of its own"
            if (reason := why_not_compiled(device)) is None:
                for net in self._nets:
                    net.compiled = True
            return reason
        of_matrices = self.estimates and self.estimator.is_dense(self.dimensions)  # or there is no series to compile
        try:
            for dtype in (torch.float32, torch.float64):  # for training; for all that follows
                if of_matrices:
                    series.library_of(dtype)
                if self._is_plain_chain:
                    chain.library_of(self._activation, dtype)
                    power_iteration.library_of(dtype)
        except CompileError as error:
            return str(error)
        self.estimator.compiled = of_matrices
        if self._is_plain_chain:
            self.compiled = True
            for net in self._nets:
                net.compiled = True
        return None

    @property
    def estimates(self) -> bool:
        return not self.estimator.is_exact

    def why_not_captured(self) -> str | None:
        if self.estimator.draws_on_host:
            return f"{type(self.estimator).__name__} draws the number of terms on the host; estimator=exact does not"
        return None

    def threads(self) -> contextlib.AbstractContextManager[None]:
        # A step by products is torch's own operations: it needs the threads.
        by_products = self.training and not self.estimator.is_dense(self.dimensions)
        return contextlib.nullcontext() if by_products else super().threads()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.require_points(x)
        if not self.training:
            if not x.is_meta:
                self._certificate()  # raises where a block is not certified to be a bijection
            # A graph of the compiled chain would be differentiable only once.
            with_graph = torch._C._are_functorch_transforms_active() or (  # torch.func's
                torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *self.parameters()))
            )
            return self._evaluate(x) if self.compiled and not with_graph else super().forward(x)
        noises = [self.estimator.draw_noise(x) for _ in self._nets]
        if not self.estimator.is_dense(self.dimensions):
            measures = [functools.partial(self.estimator, noise=noise) for noise in noises]
            z, terms, others = self._carry_one_by_one(x, measures)
            return z, sum(block.sign * term for block, term in zip(self._blocks, terms, strict=True)) + others
        z, jacobians, others = self._carry(x)
        return z, self._log_det(jacobians, self.estimator, noises) + others

    @torch.no_grad()
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self._inverts_as_chain(z):
            self._certificate()  # the inverse of an InverseBlock is a plain forward pass, which checks nothing itself
            return super().inverse(z)
        x = self._invert_as_chain(z, with_path=False)[-1]
        return x.to(z.dtype), -self._evaluate(x)[1].to(z.dtype)

    @torch.no_grad()
    def preimage(self, z: Tensor) -> Tensor:
        if not self._inverts_as_chain(z):
            self._certificate()
            return super().preimage(z)
        return self._invert_as_chain(z, with_path=False)[-1].to(z.dtype)

    @torch.no_grad()
    def inverse_path(self, z: Tensor) -> list[Tensor]:
        if not self._inverts_as_chain(z):
            self._certificate()
            return super().inverse_path(z)
        return [z.clone(), *self._invert_as_chain(z, with_path=True).to(z.dtype)]

    def _inverts_as_chain(self, z: Tensor) -> bool:
        by_newton = self.dimensions <= LARGEST_NEWTON_DIMENSION
        return self.compiled and not self.training and z.device.type == "cpu" and by_newton and len(z) > 0

    def _invert_as_chain(self, z: Tensor, with_path: bool) -> Tensor:
        """Invert by the C library, as a chain of the blocks' inverses from last to first.

        Returns:
            The points of `inverse_path` after each block, shape (blocks, n, d), or without the path only the last ones,
            (1, n, d); in float64.
        """
        self.require_points(z)
        if not torch.isfinite(z).all():
            raise InverseError("a point to invert is not finite")
        with self.threads():
            weights, constants = self._certificate()
            log_scale, shift = self._affine_maps(torch.float64)
            scale = (-log_scale).exp()
            shift = -shift * scale
            blocks = self._blocks[::-1]
            inverted = Inverted([not isinstance(block, InverseBlock) for block in blocks], constants[::-1])
            backwards = [tensor.flip(0) for tensor in self._chain(scale[1:], shift[1:], weights).tensors()]
            points, bounds = certified_through_chain(
                self._activation,
                widened(z),
                ChainWeights.of(backwards),
                inverted,
                tolerances=[block.tolerance for block in blocks],
                steps=COARSE_STEPS,
                enough=COARSE_RESIDUAL,
                with_path=with_path,
            )
            # A stage ends behind the affine map that follows its block.
            scale, shift = (part[:-1].flip(0)[-len(points) :, None] for part in (scale, shift))
            path = torch.addcmul(shift, points, scale)
            if isinstance(self.bijections[0], Standardize):
                path[-1] = self.bijections[0].preimage(path[-1])
        for block, solved, bound in zip(blocks, inverted.blocks, bounds.tolist(), strict=True):
            block.inverse_bound = bound if solved else None
        return path

    @torch.no_grad()
    def _certificate(self) -> tuple[list[Tensor], list[float]]:
        """Return `normalized_stacks` and a certified bound on Lip(g) for each block, cached until a weight changes.

        Raises:
            InverseError: a bound is not below one.
        """
        parts = ("weight", "u", "v")
        made_from = [stacked([getattr(layer, part) for layer in layers]) for layers in self._layers for part in parts]
        coeffs = [layer.coeff for layers in self._layers for layer in layers]
        made_from.append(torch.tensor(coeffs, dtype=torch.float64))
        own = (net.parameters(recurse=False) for net in self._nets)  # beside those of its layers
        made_from += [stacked(list(parameters)) for parameters in zip(*own, strict=True)]
        if self._certified is None or not all(map(same, self._certified[0], made_from)):
            constants = [net.lipschitz() for net in self._nets]
            self._certified = [tensor.clone() for tensor in made_from], normalized_stacks(self._layers), constants
        _, weights, constants = self._certified
        if not all(L < 1 for L in constants):
            raise InverseError(
                f"a block's Lipschitz constant is {max(constants):.6g}, so that it has no certified inverse"
            )
        return weights, constants

    @torch.no_grad()  # with gradients, the normalized weights would differ from the inverse's in their last bits
    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `Flow.forward` with all blocks at once, a limited number of points at a time to bound memory."""
        found = []
        for part in x.split(max(1, NUMBERS // (len(self._nets) * self.dimensions**2))):
            z, jacobians, others = self._carry(widened(part))
            found.append((z, self._log_det(jacobians, Exact(), [None] * len(self._nets)) + others))
        z, log_det = (torch.cat(parts) for parts in zip(*found, strict=True))
        return z.to(x.dtype), log_det.to(x.dtype)

    def _log_det(self, jacobians: Tensor, estimator: LogDetEstimator, noises: Sequence[Noise | None]) -> Tensor:
        """The sum of the blocks' log-determinants, shape (batch,), from their Jacobians, (blocks, batch, d, d)."""
        # One call for all blocks: on the plane they are so small that sixteen calls would take sixteen times as long.
        total = 0.0
        for sign in sorted({block.sign for block in self._blocks}):  # apart: `memory=saving` knows one weight for all
            numbers = [number for number, block in enumerate(self._blocks) if block.sign == sign]
            if len(numbers) == len(noises):
                J = jacobians.flatten(0, 1)
            else:
                of_blocks = jacobians.unbind()
                J = torch.cat([of_blocks[number] for number in numbers])
            estimates = estimator.from_matrix(J, join([noises[number] for number in numbers]))
            total = total + sign * estimates.view(len(numbers), jacobians.shape[1]).sum(dim=0)
        return total

    def _carry(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return z, shape (batch, d), the blocks' Jacobians, (blocks, batch, d, d), and the log-det of all else."""
        solvable = self._inverted_in_training is None or self.dimensions <= LARGEST_NEWTON_DIMENSION
        if self.compiled and x.device.type == "cpu" and solvable:
            return self._carry_as_chain(x)
        measures = [lambda net, x: net.forward_with_jacobian(x)] * len(self._nets)
        z, jacobians, others = self._carry_one_by_one(x, measures)
        return z, torch.stack(jacobians), others

    def _carry_one_by_one(self, x: Tensor, measures: Iterable[Measure]) -> tuple[Tensor, list[Tensor], Tensor | float]:
        """Return z, what each block's measure finds of it, and the log-det of all else."""
        nets, measures, found, others = normalize_all(self._nets, x.dtype), iter(measures), [], 0.0
        for bijection in self.bijections:
            if isinstance(bijection, ResidualBlock):
                x, of_block = bijection.carry(next(nets), x, next(measures))
                found.append(of_block)
            else:
                x, term = bijection(x)
                others = others + term
        return x, found, others

    def _carry_as_chain(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """As `_carry`, by the C library."""
        others = 0.0
        if isinstance(self.bijections[0], Standardize):
            x, others = self.bijections[0](x)
        log_scale, shift = self._affine_maps(x.dtype)
        weights = self._chain(log_scale[:-1].exp(), shift[:-1], normalized_stacks(self._layers))
        z, jacobians = through_chain(self._activation, x, weights, self._inverted())
        if not self._norms:
            return z, jacobians, others
        return self._norms[-1](z)[0], jacobians, log_scale.sum() + others

    def _affine_maps(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Logarithm of the scale, and shift, of the maps before each network and after the last, shape (n + 1, d)."""
        n = len(self._nets) + 1
        if not self._norms:
            return torch.zeros(2, n, self.dimensions, dtype=dtype).unbind()
        # `between` networks follow each ActNorm but the last: the first has its affine map, the others the identity.
        between = len(self._nets) // (len(self._norms) - 1)
        of_norms = (stacked([getattr(norm, name) for norm in self._norms]).to(dtype) for name in ("log_scale", "shift"))
        log_scale, shift = (
            functional.pad(part.unsqueeze(1), (0, 0, 0, between - 1)).flatten(0, 1) for part in of_norms
        )
        return log_scale[:n], shift[:n]

    def _chain(self, scale: Tensor, shift: Tensor, weights: Sequence[Tensor]) -> ChainWeights:
        """All networks, each behind an affine map; `weights` are those of `normalized_stacks`."""
        return ChainWeights(
            scale=scale,
            shift=shift,
            weights=[stack.to(scale.dtype) for stack in weights],
            biases=[stacked([layer.bias for layer in layers]).to(scale.dtype) for layers in self._layers],
            parameter=c_parameters([net.activations for net in self._nets], scale.dtype),
        )

    def _inverted(self) -> Inverted | None:
        """Which blocks are inverted, and a Lipschitz constant of every block; None where none is inverted."""
        # In training the bound from `coeff` is enough, since power iteration keeps the spectral norms converged.
        # Evaluation needs the certified constants.
        if self.training or self._inverted_in_training is None:
            return self._inverted_in_training
        return Inverted(self._inverted_in_training.blocks, self._certificate()[1])

    @functools.cached_property
    def _inverted_in_training(self) -> Inverted | None:
        inverted = [isinstance(block, InverseBlock) for block in self._blocks]
        return Inverted(inverted, [net.bound() for net in self._nets]) if any(inverted) else None

    @functools.cached_property
    def _is_plain_chain(self) -> bool:
        """Whether the C library can compute this flow: MLPs with one activation, and no ActNorm or regular ones.

        Regular means one before every k-th MLP, for some k, and one at the end. Of any other flow, such as one with a
        custom bijection between the blocks, the C library would silently leave something out.
        """
        links = list(self.bijections)[isinstance(self.bijections[0], Standardize) :]
        is_norm = [type(link) is ActNorm for link in links]
        n = max(1, len(self._norms) - 1)
        return (
            {type(link) for link in links} <= {ActNorm, ResidualBlock, InverseBlock}
            and (not self._norms or is_norm == [True, *[False] * (len(self._nets) // n)] * n + [True])
            and {type(net) for net in self._nets} == {LipschitzMLP}
            and len({type(activation) for net in self._nets for activation in net.activations}) == 1
        )

    @functools.cached_property
    def _activation(self) -> type[Activation]:
        return type(self._nets[0].activations[0])

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
        actnorm: whether ActNorm stands before each block and after the last.
    """

    @checked
    def __init__(
        self,
        dimensions: int,
        estimator: LogDetEstimator,
        blocks: Count = 16,
        width: Count = 64,
        depth: Count = 2,
        activation: ActivationName = "lipswish",
        coeff: Coeff = 0.98,
        actnorm: bool = True,
    ) -> None:
        nets = (LipschitzMLP(dimensions, width, depth, coeff, activation) for _ in range(blocks))
        super().__init__(([ResidualBlock(net, estimator)] for net in nets), dimensions, actnorm)
