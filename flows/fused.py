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
    return _ValueAndJacobian.apply(activations, x, *(tensor for layer in weights for tensor in layer), *parameters)


class _ValueAndJacobian(torch.autograd.Function):
    # In every layer the value and d tangents, the columns of J, are stacked, shape (1 + d, batch, width), so that one
    # product serves all.

    @staticmethod
    def forward(ctx: Any, activations: Sequence[Activation], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        n_layers, (batch, d) = len(activations) + 1, x.shape
        weights, biases = tensors[0 : 2 * n_layers : 2], tensors[1 : 2 * n_layers : 2]
        a = torch.addmm(biases[0], x, weights[0].T)
        tangents = weights[0].T.unsqueeze(1)
        kept = []
        for activation, weight, bias in zip(activations, weights[1:], biases[1:], strict=True):
            h, slope = activation.value_and_derivative(a)
            width, units = a.shape[1], activation.expansion
            stacked = torch.empty((1 + d, batch, units * width), dtype=x.dtype, device=x.device)
            stacked[0] = h
            columns = stacked[1:].view(d, batch, units, width)
            torch.mul(slope.view(batch, units, width), tangents.unsqueeze(2), out=columns)
            kept += [a, tangents, slope, stacked]
            output = torch.mm(stacked.view(-1, units * width), weight.T).view(1 + d, batch, -1)
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
        batch, d = x.shape
        grad_layers: list[Tensor] = []  # from the last layer to the first: bias, weight, bias, weight, ...
        grad_parameters: list[Tensor | None] = []
        for index in reversed(range(len(activations))):
            activation, weight = activations[index], weights[index + 1]
            a, tangents, slope, stacked = kept[4 * index : 4 * index + 4]
            width, units = a.shape[1], activation.expansion
            rows = grad.view(-1, weight.shape[0])
            grad_layers += [grad[0].sum(0), torch.mm(rows.T, stacked.view(-1, units * width))]
            grad_stacked = torch.mm(rows, weight).view(1 + d, batch, units * width)
            grad_h, grad_columns = grad_stacked[0], grad_stacked[1:].view(d, batch, units, width)
            grad_slope = (grad_columns * tangents.unsqueeze(2)).sum(0).view(batch, units * width)
            grad_columns.mul_(slope.view(batch, units, width))
            if units > 1:
                grad_stacked = torch.empty((1 + d, batch, width), dtype=a.dtype, device=a.device)
                torch.sum(grad_columns, dim=2, out=grad_stacked[1:])
            grad_a, found = activation.pullback(a, slope, grad_h, grad_slope)
            grad = grad_stacked
            grad[0] = grad_a
            grad_parameters = [*found, *grad_parameters]
        # The first layer's tangents are its own columns, the same for every sample.
        grad_weight = torch.addmm(grad[1:].sum(1).T, grad[0].T, x)
        grad_layers += [grad[0].sum(0), grad_weight]
        return None, torch.mm(grad[0], weights[0]), *reversed(grad_layers), *grad_parameters
