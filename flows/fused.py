"""The forward and backward pass of a network and its Jacobian, written out.

`NormalizedMLP.forward_with_jacobian` says what is computed, and a test holds this file to it. Left to autograd, the
same computation is some sixty nodes a block: at these sizes their overhead costs more than the products do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flows.activations import Activation
from flows.differentiation import once_differentiable

__all__ = ["activate", "backward", "forward", "value_and_jacobian", "why_not_compiled"]

Layers = Sequence[tuple[Tensor, Tensor]]


def value_and_jacobian(
    x: Tensor, layers: Layers, activations: Sequence[Activation], compiled: bool = False
) -> tuple[Tensor, Tensor]:
    """Return g(x), shape (batch, d), and J, shape (batch, d, d), as one autograd node.

    Differentiable once, by `x`, the layers' weights and biases and the activations' parameters. `compiled` is by
    `torch.compile`: see `why_not_compiled`.
    """
    parameters = [parameter for activation in activations for parameter in activation.parameters()]
    passes = _compiled_passes() if compiled else (forward, backward)
    tensors = (tensor for layer in layers for tensor in layer)
    return _ValueAndJacobian.apply(passes, activations, x, *tensors, *parameters)


class _ValueAndJacobian(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        passes: tuple[Callable, Callable],
        activations: Sequence[Activation],
        x: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pairs = tensors[: 2 * (len(activations) + 1)]
        g, J, kept = passes[0](x, list(zip(pairs[::2], pairs[1::2], strict=True)), activations)
        ctx.backward_pass, ctx.activations = passes[1], activations
        ctx.save_for_backward(x, *pairs[::2], *kept, *tensors[len(pairs) :])  # a change of parameters is an error
        return g, J

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_g: Tensor, grad_J: Tensor) -> tuple[Tensor | None, ...]:
        n_layers = len(ctx.activations) + 1
        x, *saved = ctx.saved_tensors
        kept = saved[n_layers : n_layers + 2 * len(ctx.activations)]
        found = ctx.backward_pass(x, saved[:n_layers], ctx.activations, kept, grad_g, grad_J)
        return None, None, *found


def activate(activation: Activation, a: Tensor) -> tuple[Tensor, Tensor]:
    """`activation.value_and_derivative(a)`, shape (batch, width), as one autograd node, differentiable once.

    Returns:
        value and derivative, both of shape (batch, units * width).
    """
    return _Activate.apply(activation, a, *activation.parameters())


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Activation, a: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = activation.value_and_derivative(a)
        ctx.activation = activation
        ctx.save_for_backward(a, slope, *parameters)
        return value, slope

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: Tensor, grad_slope: Tensor) -> tuple[Tensor | None, ...]:
        by_a, by_parameters = ctx.activation.pullback(*ctx.saved_tensors[:2], grad_value, grad_slope)
        return None, by_a, *by_parameters


# In every layer the value and d tangents, the columns of J, are stacked, shape (1 + d, batch, width), so that one
# product serves all. What enters an activation is kept for the backward pass; what leaves it, made again there, is not:
# memory costs more than arithmetic.


def forward(x: Tensor, layers: Layers, activations: Sequence[Activation]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return g(x), J, and what `backward` needs to be given; no graph is recorded of it."""
    (weight, bias), *others = layers
    a = torch.addmm(bias, x, weight.T)
    tangents = weight.T.contiguous().unsqueeze(1)  # (d, 1, width): the same for every sample
    kept = []
    for activation, (weight, bias) in zip(activations, others, strict=True):
        kept += [a, tangents]
        stacked, _ = _activate(activation, a, tangents)
        output = torch.mm(stacked.flatten(0, 1), weight.T).unflatten(0, stacked.shape[:2])
        a, tangents = output[0].add_(bias), output[1:]
    return a.clone(), tangents.permute(1, 2, 0).contiguous(), kept


def _activate(activation: Activation, a: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """An activation's value and tangents, (1 + d, batch, units * width), and slope, (batch, units * width)."""
    h, slope = activation.value_and_derivative(a)
    columns = (slope.unflatten(1, (activation.expansion, -1)) * tangents.unsqueeze(2)).flatten(2)
    return torch.cat([h.unsqueeze(0), columns]), slope


def backward(
    x: Tensor,
    weights: Sequence[Tensor],
    activations: Sequence[Activation],
    kept: Sequence[Tensor],
    grad_g: Tensor,
    grad_J: Tensor,
) -> list[Tensor | None]:
    """Return the gradients by `x`, by weight and bias of every layer, and by every activation's parameters.

    Args:
        kept: from `forward`.
        grad_g: gradient by g(x), shape (batch, d).
        grad_J: gradient by J, shape (batch, d, d).
    """
    batch, d = x.shape
    grad = torch.cat([grad_g.unsqueeze(0), grad_J.permute(2, 0, 1)])
    by_layers: list[Tensor] = []  # from the last layer to the first: bias, weight, bias, weight, ...
    by_parameters: list[Tensor | None] = []
    for index in reversed(range(len(activations))):
        activation, weight = activations[index], weights[index + 1]
        a, tangents = kept[2 * index : 2 * index + 2]
        width, units = a.shape[1], activation.expansion
        stacked, slope = _activate(activation, a, tangents)
        rows = grad.view(-1, weight.shape[0])
        by_layers += [grad[0].sum(0), torch.mm(rows.T, stacked.view(-1, units * width))]
        grad = torch.mm(rows, weight).view(1 + d, batch, units * width)
        by_h, by_columns = grad[0], grad[1:].view(d, batch, units, width)
        by_slope = (by_columns * tangents.unsqueeze(2)).sum(0).flatten(1)
        by_columns.mul_(slope.view(batch, units, width))
        by_a, found = activation.pullback(a, slope, by_h, by_slope)
        grad = torch.cat([by_a.unsqueeze(0), by_columns.sum(2)])
        by_parameters = [*found, *by_parameters]
    # The first layer's tangents are its own columns, the same for every sample.
    by_layers += [grad[0].sum(0), torch.addmm(grad[1:].sum(1).T, grad[0].T, x)]
    return [torch.mm(grad[0], weights[0]), *reversed(by_layers), *by_parameters]


@functools.cache
def _compiled_passes() -> tuple[Callable, Callable]:
    """Both passes by `torch.compile`. Blocks of one shape share a compilation, which torch keeps on disk as well."""
    options = {"dynamic": False, "fullgraph": True, "recompile_limit": 1000}  # a sweep in one process meets many shapes
    return torch.compile(forward, **options), torch.compile(backward, **options)


def why_not_compiled(device: torch.device) -> str | None:
    """Why `torch.compile` compiles nothing here; None where it does."""
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:  # of the compiler, or there is none
        return str(error).strip().splitlines()[0]
    return None
