"""Networks with a Lipschitz constant below one, kept there by soft spectral normalization."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arguments import Count, Range, checked
from flows import fused
from flows.activations import Activation, ActivationName, make_activation
from flows.chain import ChainWeights, activate, approach_through_chain, through_chain, values_through_chain
from flows.differentiation import once_differentiable
from flows.estimators.exact import inverse_plus_identity
from flows.stacks import stacked

__all__ = [
    "Coeff",
    "LipschitzLinear",
    "LipschitzMLP",
    "LipschitzNet",
    "NormalizedMLP",
    "NormalizedNet",
    "c_parameters",
    "normalize_all",
    "normalized_stack",
    "normalized_stacks",
    "same",
]


Coeff = Annotated[float, Range(gt=0, lt=1)]
"""A setting that is the bound c on the largest singular value of a layer."""


class LipschitzLinear(nn.Module):
    r"""A linear layer :math:`x \mapsto \tilde W x + b` with :math:`\sigma(\tilde W) \le c`.

    Soft spectral normalization, :math:`\tilde W = W \min(1, c / \sigma(W))`, leaves a small W as it is. The
    largest singular value is read off as :math:`\sigma = u^T W v`, differentiable through W, with u and v held
    in buffers that power iteration moves without gradient (Miyato et al. 2018, arXiv 1802.05957, section 2.2).

    Power iteration approaches :math:`\sigma` from below, so an estimate that has not converged would break
    the bound silently. Hence `converge`, exact, called at construction and whenever a model is to be
    certified, and `singular_value`, exact, for the certificate itself.
    """

    @checked
    def __init__(
        self,
        n_in: Count,
        n_out: Count,
        coeff: Coeff,
    ) -> None:
        super().__init__()
        self.coeff = coeff
        self._certified: tuple[Tensor, float] | None = None  # a weight in use, and its exact singular value
        # The usual initialisation of a linear layer. Its weights' largest singular value is near 1, so the
        # bound is active or nearly so from the start.
        plain = nn.Linear(n_in, n_out)
        self.weight, self.bias = plain.weight, plain.bias
        self.register_buffer("u", torch.zeros(n_out))
        self.register_buffer("v", torch.zeros(n_in))
        self.converge()

    def normalized_weight(self) -> Tensor:
        r"""The weight in use, :math:`W c / \max(c, u^T W v)`, shape (n_out, n_in)."""
        sigma = torch.dot(self.u, torch.mv(self.weight, self.v))
        return self.weight * (self.coeff / sigma.clamp(min=self.coeff))

    @torch.no_grad()
    def converge(self) -> None:
        """Set u and v to the leading singular vectors, computed directly."""
        if self.weight.is_meta:
            return
        left, _, right = torch.linalg.svd(_float64(self.weight), full_matrices=False)
        self.u.copy_(left[:, 0])
        self.v.copy_(right[0])

    @torch.no_grad()
    def singular_value(self) -> float:
        """The largest singular value of the weight in use, in float64: what a certificate is made of."""
        W = self.normalized_weight()
        if self._certified is None or not same(self._certified[0], W):
            self._certified = W, float(torch.linalg.matrix_norm(_float64(W), ord=2))
        return self._certified[1]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape hold the same numbers, on the same device, to the same precision."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def normalized_stack(layers: Sequence[LipschitzLinear]) -> Tensor:
    """`normalized_weight` of all `layers`, which are of one shape, as one tensor, shape (layers, n_out, n_in).

    For a training step: one autograd node, where one layer at a time would make a few nodes each.
    """
    W = stacked([layer.weight for layer in layers])
    u, v = stacked([layer.u for layer in layers]), stacked([layer.v for layer in layers])
    coeff = _bounds(tuple(layer.coeff for layer in layers), W.dtype, W.device)
    return _NormalizedStack.apply(W, u.unsqueeze(2), v.unsqueeze(2), coeff)


@functools.cache
def _bounds(coeffs: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the layers of a stack, shape (layers, 1, 1): carried to the device once, not in every step."""
    return torch.tensor(coeffs, dtype=dtype, device=device)[:, None, None]


class _NormalizedStack(torch.autograd.Function):
    r""":math:`\tilde W = s W` with :math:`s = c / \max(c, \sigma)` and :math:`\sigma = u^T W v`, for many W at once.

    With G the gradient by :math:`\tilde W`, that by W is
    :math:`s G - [\sigma > c]\, \frac{s}{\sigma} \langle G, W \rangle\, u v^T`.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, u: Tensor, v: Tensor, coeff: Tensor) -> Tensor:
        sigma = torch.bmm(torch.bmm(u.mT, W), v)  # W v first would take ten times as long
        scale = coeff / torch.maximum(sigma, coeff)
        ctx.save_for_backward(W, u, v, scale, torch.where(sigma > coeff, -scale / sigma, 0.0))
        return W * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor | None, ...]:
        W, u, v, scale, by_scale = ctx.saved_tensors
        along = torch.linalg.vecdot(G.flatten(1), W.flatten(1))[:, None, None]
        return torch.addcmul(G * scale, u * (by_scale * along), v.mT), None, None, None


def c_parameters(activations: Sequence[Sequence[Activation]], dtype: torch.dtype) -> Tensor:
    """`ChainWeights.parameter`, from the activations of every block, computed in `dtype`: shape (blocks, depth)."""
    layers = [stacked([activation.own_parameter for activation in layer]) for layer in zip(*activations, strict=True)]
    return type(activations[0][0]).c_parameter(torch.stack(layers, dim=1).to(dtype))


class LipschitzNet(nn.Module, abc.ABC):
    """A network g from R^d to R^d with Lip(g) < 1, certified.

    A subclass sets `layers`, each a :class:`LipschitzLinear`, and `activations`, and writes the three abstract methods.
    The result of `lipschitz` may depend only on the layers and on parameters of the net itself, not of a submodule:
    flows cache it until one of these changes.
    """

    layers: nn.ModuleList
    activations: nn.ModuleList
    compiled = False
    """Whether to compute by the C library, on CUDA by torch's compiler: see :meth:`~flows.flow.Flow.compile_for`."""

    @abc.abstractmethod
    def with_weights(self, weights: list[tuple[Tensor, Tensor]]) -> NormalizedNet:
        """The network for one use, from the normalized weight and the bias of every layer."""

    @abc.abstractmethod
    def bound(self) -> float:
        """What `lipschitz` is at most if every spectral norm is exact, which power iteration keeps nearly true."""

    @abc.abstractmethod
    def lipschitz(self) -> float:
        """A certified bound on Lip(g), from exact singular values."""

    def normalize(self, dtype: torch.dtype) -> NormalizedNet:
        """The network as it stands, its weights normalized once for all passes. In training mode it is fused."""
        return self.with_weights([(layer.normalized_weight().to(dtype), layer.bias.to(dtype)) for layer in self.layers])

    def forward(self, x: Tensor) -> Tensor:
        """Return g(x), shapes (batch, d) to (batch, d)."""
        return self.normalize(x.dtype)(x)

    def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(x) and its Jacobian: see :meth:`NormalizedNet.forward_with_jacobian`."""
        return self.normalize(x.dtype).forward_with_jacobian(x)


def normalized_stacks(layers: Iterable[Sequence[LipschitzLinear]]) -> list[Tensor]:
    """The normalized weights of the first layers of several networks of one shape, then of their second, ..."""
    if torch.is_grad_enabled():
        return [normalized_stack(of_one_role) for of_one_role in layers]
    # One layer at a time, as in the inverse, so that the weights of both directions agree to the last bit.
    return [torch.stack([layer.normalized_weight() for layer in of_one_role]) for of_one_role in layers]


def normalize_all(nets: Sequence[LipschitzNet], dtype: torch.dtype) -> Iterator[NormalizedNet]:
    """What `normalize` gives of each network. All are of one shape, so that their weights are normalized together."""
    layers = zip(*(net.layers for net in nets), strict=True)
    stacks = [stack.to(dtype).unbind() for stack in normalized_stacks(layers)]
    for net, *weights in zip(nets, *stacks, strict=True):
        biases = [layer.bias.to(dtype) for layer in net.layers]
        yield net.with_weights(list(zip(weights, biases, strict=True)))


class LipschitzMLP(LipschitzNet):
    r""":math:`g = W_n \circ \phi \circ W_{n-1} \cdots \phi \circ W_1`, with :math:`\mathrm{Lip}(g) \le c^n < 1`.

    Args:
        dimensions: d, of input and output.
        width: units of each hidden layer, before the activation's expansion.
        depth: number of hidden layers.
        coeff: c, the bound on every layer's largest singular value.
        activation: name of a file in `flows/activations`; each hidden layer has its own.
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
        self.activations = nn.ModuleList(make_activation(activation) for _ in range(depth))
        hidden = width * self.activations[0].expansion
        sizes = [(dimensions, width), *[(hidden, width)] * (depth - 1), (hidden, dimensions)]
        self.layers = nn.ModuleList(LipschitzLinear(n_in, n_out, coeff) for n_in, n_out in sizes)

    def with_weights(self, weights: list[tuple[Tensor, Tensor]]) -> NormalizedMLP:
        return NormalizedMLP(weights, list(self.activations), fused=self.training, compiled=self.compiled)

    def bound(self) -> float:
        return self._product(layer.coeff for layer in self.layers)

    def lipschitz(self) -> float:
        r"""A certified bound on Lip(g): the exact :math:`\sigma(\tilde W)` times the activations' constants."""
        return self._product(layer.singular_value() for layer in self.layers)

    def _product(self, of_layers: Iterable[float]) -> float:
        return math.prod(of_layers) * math.prod(activation.lipschitz for activation in self.activations)


class NormalizedNet(abc.ABC):
    """A :class:`LipschitzNet` with its weights already normalized: what estimators and solvers work with."""

    weights: list[tuple[Tensor, Tensor]]

    @abc.abstractmethod
    def parameters(self) -> list[Tensor]:
        """All that g depends on and may be differentiated by."""

    @abc.abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return g(x), shapes (batch, d) to (batch, d)."""

    @abc.abstractmethod
    def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return g(x), shape (batch, d), and its Jacobian J, shape (batch, d, d), `J[:, i, j] = dg_i / dx_j`.

        J is carried forward: d tangents go through the layers beside the value, so that no second pass is
        needed and everything stays differentiable once more.
        """

    def to(self, dtype: torch.dtype) -> NormalizedNet:
        """The same network for points of another dtype."""
        return replace(self, weights=[(weight.to(dtype), bias.to(dtype)) for weight, bias in self.weights])

    def approach(self, z: Tensor, steps: int, enough: float) -> tuple[Tensor, Tensor]:
        """Go from x = z towards x + g(x) = z, without graph and without a guarantee.

        First comes a Newton step, then steps of Broyden's method (1965, "A class of methods for solving nonlinear
        simultaneous equations"), which learn from the residuals how J changes: each costs one evaluation of g, where a
        Newton step costs d + 1.

        Args:
            z: shape (batch, d).
            steps: largest number of Broyden's steps. A sample stops when a step does not shrink its residual.
            enough: a sample whose residual over max(1, |z|) is at most this takes one more step and stops.

        Returns:
            x, shape (batch, d), and :math:`(I + J)^{-1}` there, roughly, shape (batch, d, d).
        """
        x, (g, J) = z, self.forward_with_jacobian(z)
        inverse, r = inverse_plus_identity(J), z - x - g
        step = torch.linalg.vecdot(inverse, r.unsqueeze(1))
        size = torch.linalg.vector_norm(z, dim=1).clamp(min=1)
        last, moving = torch.linalg.vector_norm(r, dim=1) / size, torch.ones_like(size, dtype=torch.bool)
        for k in range(1, steps + 1):
            there = x + step
            r = z - there - self(there)
            norm = torch.linalg.vector_norm(r, dim=1) / size
            moving = moving & (norm < last)
            x, last = torch.where(moving.unsqueeze(1), there, x), norm
            chord = torch.linalg.vecdot(inverse, r.unsqueeze(1))
            remainder = (step * (step - chord)).sum(1)
            moving = moving & (remainder > 0)
            growth = (chord / remainder.unsqueeze(1)).unsqueeze(2) * torch.bmm(step.unsqueeze(1), inverse)
            inverse = torch.where(moving[:, None, None], inverse + growth, inverse)
            step = chord * ((step * step).sum(1) / remainder).unsqueeze(1)  # inverse r
            arrives = moving & (norm <= enough) if k < steps else moving
            x = torch.where(arrives.unsqueeze(1), x + step, x)
            moving = moving & ~arrives
        return x, inverse


@dataclass(frozen=True)
class NormalizedMLP(NormalizedNet):
    """A :class:`LipschitzMLP` with its weights already normalized.

    Attributes:
        weights: normalized weight and bias of every layer.
        activations: between the layers.
        fused: compute `forward_with_jacobian` as one autograd node, differentiable once (`flows/fused.py`),
            rather than by plain operations.
        compiled: compute by compiled code: on the CPU the C library (`flows/chain.py`), where a gradient is asked for
            only if `fused`; elsewhere the one node by `torch.compile`.
    """

    weights: list[tuple[Tensor, Tensor]]
    activations: list[Activation]
    fused: bool
    compiled: bool = False

    def parameters(self) -> list[Tensor]:
        return [
            *(tensor for layer in self.weights for tensor in layer),
            *(parameter for activation in self.activations for parameter in activation.parameters()),
        ]

    def __call__(self, x: Tensor) -> Tensor:
        if self._runs_compiled(x) and not torch.is_grad_enabled():
            return values_through_chain(*self._chain(x)) - x
        (first, bias), *others = self.weights
        h = functional.linear(x, first, bias)
        for activation, (weight, bias) in zip(self.activations, others, strict=True):
            h = functional.linear(activation(h), weight, bias)
        return h

    def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._runs_compiled(x):
            z, jacobians = through_chain(*self._chain(x))
            return z - x, jacobians[0]
        if self.fused and torch.is_grad_enabled():
            compiled = self.compiled and x.device.type != "cpu"
            return fused.value_and_jacobian(x, self.weights, self.activations, compiled)
        (first, bias), *others = self.weights
        h = functional.linear(x, first, bias)
        tangents = first.mT.unsqueeze(1)  # (d, 1, width): the same for every sample
        for activation, (weight, bias) in zip(self.activations, others, strict=True):
            value, slope = activation.value_and_derivative(h)
            slope = slope.unflatten(1, (activation.expansion, -1))  # each unit of h is as many of its values
            h = functional.linear(value, weight, bias)
            tangents = functional.linear((slope * tangents.unsqueeze(2)).flatten(2), weight)
        return h, tangents.expand(-1, x.shape[0], -1).permute(1, 2, 0)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return g(x), shape (batch, d), and the map w -> w^T J(x), of shape (batch, k, d), J never formed.

        The slopes of the activations are computed once, for all products. Differentiable, once where `fused`.
        """
        (first, bias), *others = self.weights
        h = functional.linear(x, first, bias)
        slopes = []
        for activation, (weight, bias) in zip(self.activations, others, strict=True):
            if self._runs_compiled(x):
                value, slope = activate(activation, h)
            elif self.fused and torch.is_grad_enabled():
                value, slope = fused.activate(activation, h)
            else:
                value, slope = activation.value_and_derivative(h)
            slopes.append(slope.unflatten(1, (activation.expansion, -1)).unsqueeze(1))
            h = functional.linear(value, weight, bias)

        def vecmat(w: Tensor) -> Tensor:
            for (weight, _), slope in zip(reversed(others), reversed(slopes), strict=True):
                w = torch.matmul(w, weight).unflatten(2, slope.shape[2:]) * slope
                w = w.sum(2) if w.shape[2] > 1 else w.squeeze(2)  # a sum of one would copy it twice
            return torch.matmul(w, first)

        return h, vecmat

    def approach(self, z: Tensor, steps: int, enough: float) -> tuple[Tensor, Tensor]:
        if self._runs_compiled(z):
            return approach_through_chain(*self._chain(z), steps, enough)
        return super().approach(z, steps, enough)

    def _runs_compiled(self, x: Tensor) -> bool:
        if torch._C._are_functorch_transforms_active():
            return False
        # Compiled code is differentiable only once: with gradients it is used only where `fused` already means that.
        return self.compiled and x.device.type == "cpu" and (self.fused or not torch.is_grad_enabled())

    def _chain(self, x: Tensor) -> tuple[type[Activation], Tensor, ChainWeights]:
        """Itself as a chain of one block without an affine map before it, which carries x to x + g(x)."""
        weights, biases = ([tensor.unsqueeze(0) for tensor in part] for part in zip(*self.weights, strict=True))
        parameter = c_parameters([self.activations], x.dtype)
        identity = x.new_ones(1, x.shape[1]), x.new_zeros(1, x.shape[1])
        return type(self.activations[0]), x, ChainWeights(*identity, weights, biases, parameter)


def _float64(x: Tensor) -> Tensor:
    # On the host, because none is faster at these sizes; in two steps, because MPS has no float64 to send.
    return x.detach().cpu().double()
