"""What gradients written by hand have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["gradients", "once_differentiable"]

Backward = Callable[..., Any]


def once_differentiable(backward: Backward) -> Backward:
    """Make a `backward` that builds no graph raise where one is asked for, by `create_graph=True`.

    torch's decorator of this name raises only when the returned gradients are differentiated again, and
    `torch.autograd.grad` by chosen inputs bypasses that: its result then silently lacks this function's part.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *by_outputs: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a gradient of compiled, memory-saving or implicit code is differentiated only once, so without "
                "create_graph=True: a flow without inverted blocks, in evaluation mode, can be differentiated again"
            )
        return backward(ctx, *by_outputs)

    return once


def gradients(
    output: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    by_output: Tensor | Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """The gradients by those of `inputs` that are `needed`; None for the others, and where there is none."""
    chosen = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(output, chosen, by_output, allow_unused=True) if chosen else ())
    return [next(found) if need else None for need in needed]
