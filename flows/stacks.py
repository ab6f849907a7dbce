"""The tensors of one role in all blocks, such as the weights of every first layer, as one tensor.

Sixteen blocks have a hundred small parameters, and whatever a training step does with each of them costs more to start
than to do. So they are laid into one storage, role by role. The modules go on as before: each of their parameters, and
its gradient, is then a part of a stack.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["is_stack", "stack_parameters", "stacked"]


def stack_parameters(module: nn.Module) -> list[Tensor]:
    """Lay the parameters and buffers of one role, those whose names differ by the first number, into one storage.

    Gradients accumulate in each parameter's `grad` as usual, but that is now a part of the stack's `grad`: set it to
    zero, not to None. Moving the module to another device or dtype undoes the layout. Calling this again moves nothing
    that is laid out already.

    Returns:
        The stacks of the parameters, leaves of autograd: an optimizer that moves them moves the parameters. A stack of
        matrices has three dimensions, any other has one. A stack of frozen parameters is frozen.

    Raises:
        ValueError: a parameter is frozen in some blocks alone.
    """
    roles: dict[tuple[str, torch.Size, torch.dtype], list[Tensor]] = defaultdict(list)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        roles[re.sub(r"\d+", "*", name, count=1), tensor.shape, tensor.dtype].append(tensor)
    for (role, *_), tensors in roles.items():
        if len({tensor.requires_grad for tensor in tensors}) > 1:
            raise ValueError(f"{role} of some blocks is frozen: it learns in all of them or in none")
        if _stack_of(tensors) is None:
            _lay_together(tensors)
    return [tensors[0].stack for tensors in roles.values() if isinstance(tensors[0], nn.Parameter)]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """`torch.stack(tensors)`; without a copy where they are all the tensors of a stack, in their order."""
    leaf = _stack_of(tensors)
    return torch.stack(list(tensors)) if leaf is None else leaf.view(len(tensors), *tensors[0].shape)


def is_stack(tensors: Sequence[Tensor]) -> bool:
    """Whether they are all the tensors of a stack, so that `stacked` is a view of them, not a copy."""
    return _stack_of(tensors) is not None


def _lay_together(tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    leaf = torch.stack([tensor.detach() for tensor in tensors])
    leaf = (leaf if first.ndim == 2 else leaf.flatten()).requires_grad_(first.requires_grad)
    leaf.grad = torch.zeros_like(leaf) if first.requires_grad else None
    for tensor, part in zip(tensors, leaf.detach().view(len(tensors), *first.shape), strict=True):
        tensor.data, tensor.stack = part, leaf
    if first.requires_grad:
        for tensor, part in zip(tensors, leaf.grad.view(len(tensors), *first.shape), strict=True):
            tensor.grad = part


def _stack_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """The stack that `tensors` are, all of it and in order; None where they are not one, or no longer."""
    leaf, first = getattr(tensors[0], "stack", None), tensors[0]
    if leaf is None or leaf.numel() != len(tensors) * first.numel() or leaf.data_ptr() != first.data_ptr():
        return None  # a copy of the module, or a part of the stack
    if {tensor.requires_grad for tensor in tensors} != {leaf.requires_grad}:
        return None  # some of them frozen since, or set free
    if leaf.requires_grad:
        grads = [tensor.grad for tensor in tensors]
        if any(grad is None for grad in grads) or not _are_all(grads, leaf.grad):
            return None  # an optimizer of some of the single tensors has set their gradients to None
    return leaf if _are_all(tensors, leaf) else None


def _are_all(parts: Sequence[Tensor], whole: Tensor) -> bool:
    """Whether the `parts`, all of one size, are those of `whole` in its memory, in their order."""
    begin, size = whole.data_ptr(), parts[0].numel() * parts[0].element_size()
    return whole.is_meta or [part.data_ptr() for part in parts] == list(range(begin, begin + len(parts) * size, size))
