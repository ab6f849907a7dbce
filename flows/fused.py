"""One autograd node for a network and its Jacobian, with the backward pass written out.

`NormalizedMLP.forward_with_jacobian` says what is computed, and a test holds this file to it. Left to autograd, the
same computation is some sixty nodes a block: at these sizes their overhead costs more than the products do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flows.activations import Activation

__all__ = ["value_and_jacobian"]


def value_and_jacobian(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], activations: Sequence[Activation]
) -> tuple[Tensor, Tensor]:
    """Return g(x), shape (batch, d), and J, shape (batch, d, d), of the network of `weights` and `activations`.

    Differentiable once, by `x`, the weights, the biases and the activations' parameters.
    """
    parameters = [parameter for activation in activations for parameter in activation.parameters()]
    flat = [tensor for layer in weights for tensor in layer]
    return _ValueAndJacobian.apply(activations, x, *flat, *parameters)


class _ValueAndJacobian(torch.autograd.Function):
    # In every layer value and tangents are stacked, shape (1 + d, batch, width), so that one product serves both.

    @staticmethod
    def forward(ctx: Any, activations: Sequence[Activation], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        n_layers, (batch, d) = len(activations) + 1, x.shape
        weights, biases = tensors[0 : 2 * n_layers : 2], tensors[1 : 2 * n_layers : 2]
        a = torch.addmm(biases[0], x, weights[0].T)
        tangents = weights[0].T.unsqueeze(1)
        kept = []
        for activation, weight, bias in zip(activations, weights[1:], biases[1:], strict=True):
            value, slope = activation.value_and_derivative(a)
            stacked = torch.empty((1 + d, *value.shape), dtype=x.dtype, device=x.device)
            stacked[0] = value
            units = (activation.expansion, a.shape[1])
            torch.mul(slope.unflatten(1, units), tangents.unsqueeze(-2), out=stacked[1:].unflatten(2, units))
            kept += [a, tangents, slope, stacked]
            output = torch.mm(stacked.flatten(0, 1), weight.T).unflatten(0, (1 + d, batch))
            a, tangents = output[0].add_(bias), output[1:]
        ctx.activations = activations
        ctx.save_for_backward(x, *weights, *kept)
        return a.clone(), tangents.permute(1, 2, 0).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_g: Tensor, grad_J: Tensor) -> tuple[Tensor | None, ...]:
        activations, n_layers = ctx.activations, len(ctx.activations) + 1
        x, *saved = ctx.saved_tensors
        weights, kept = saved[:n_layers], saved[n_layers:]
        grad = torch.cat([grad_g.unsqueeze(0), grad_J.permute(2, 0, 1)])
        grad_layers: list[Tensor] = []  # from the last layer to the first: bias, weight, bias, weight, ...
        grad_parameters: list[Tensor | None] = []
        for index in reversed(range(len(activations))):
            activation, weight = activations[index], weights[index + 1]
            a, tangents, slope, stacked = kept[4 * index : 4 * index + 4]
            units = (activation.expansion, a.shape[1])
            rows = grad.flatten(0, 1)
            grad_layers += [grad[0].sum(0), torch.mm(rows.T, stacked.flatten(0, 1))]
            grad_stacked = torch.mm(rows, weight).unflatten(0, grad.shape[:2])
            grad_value, grad_columns = grad_stacked[0], grad_stacked[1:].unflatten(2, units)
            grad_slope = (grad_columns * tangents.unsqueeze(-2)).sum(0).flatten(1)
            grad_tangents = grad_columns.mul_(slope.unflatten(1, units))
            grad = torch.empty((grad.shape[0], *a.shape), dtype=a.dtype, device=a.device)
            torch.sum(grad_tangents, dim=-2, out=grad[1:])
            grad[0], found = activation.pullback(a, slope, grad_value, grad_slope)
            grad_parameters = [*found, *grad_parameters]
        # The first layer's tangents are its own columns, the same for every sample.
        grad_weight = torch.addmm(grad[1:].sum(1).T, grad[0].T, x)
        grad_layers += [grad[0].sum(0), grad_weight]
        return None, torch.mm(grad[0], weights[0]), *reversed(grad_layers), *grad_parameters
