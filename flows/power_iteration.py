"""Power iteration: how the singular vectors of a layer's weight follow it through training.

Power iterations of a flow's layers are some hundred operations on very small matrices. `power_iteration.c` computes the
same in one call for all layers of one role, and a test holds it to that.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from flows.compiled import in_threads, library, shares
from flows.lipschitz import LipschitzLinear
from flows.stacks import is_stack, stacked

__all__ = ["library_of", "power_iterate"]

SOURCE = Path(__file__).with_name("power_iteration.c")
WORK = 1_000_000  # numbers read: for fewer a thread is not worth its start
FEWEST_TO_SQUARE = 16, 64  # power iterations, plain and compiled: more are made by squaring a matrix


@torch.no_grad()
def power_iterate(layers: Iterable[LipschitzLinear], n: int, compiled: bool = False) -> None:
    """Move every layer's u and v by at least `n` power iterations, all layers of one role or shape together.

    Raises:
        CompileError: if `compiled`, see :func:`~flows.compiled.library`.
    """
    for group in _groups(layers):
        us, vs = [layer.u for layer in group], [layer.v for layer in group]
        W = stacked([layer.weight for layer in group])  # (layers, rows, columns)
        u, v = (stacked(vectors).unsqueeze(-1) for vectors in (us, vs))  # (layers, rows, 1), (layers, columns, 1)
        by_library = compiled and W.device.type == "cpu"
        if n >= FEWEST_TO_SQUARE[by_library]:
            left, right = _by_squaring(W, u, v, n)
        elif by_library:
            left, right = _by_library(W, v, n)
        else:
            left, right = _one_by_one(W, v, n)
        for vectors, moved in ((us, left), (vs, right)):
            if is_stack(vectors):
                stacked(vectors).copy_(moved.squeeze(-1))
            else:
                torch._foreach_copy_(vectors, list(moved.squeeze(-1)))


def _one_by_one(W: Tensor, right: Tensor, n: int) -> tuple[Tensor, Tensor]:
    for _ in range(n):  # of W^T W, so that one vector needs to be normalized
        right = _normalized(torch.bmm(W.mT, torch.bmm(W, right)))
    return _normalized(torch.bmm(W, right)), right


def _by_squaring(W: Tensor, left: Tensor, right: Tensor, n: int) -> tuple[Tensor, Tensor]:
    # k squarings of the smaller of W W^T and W^T W are 2^k iterations.
    short, vector = (W, left) if W.shape[1] <= W.shape[2] else (W.mT, right)
    power = _over_trace(torch.bmm(short, short.mT))
    for _ in range(math.ceil(math.log2(n))):
        power = _over_trace(torch.bmm(power, power))
    vector = _normalized(torch.bmm(power, vector))
    other = _normalized(torch.bmm(short.mT, vector))
    return (vector, other) if short is W else (other, vector)


def _by_library(W: Tensor, right: Tensor, n: int) -> tuple[Tensor, Tensor]:
    W, (count, rows, columns) = W.contiguous(), W.shape
    u, v = W.new_empty(count, rows, 1), right.clone(memory_format=torch.contiguous_format)
    function, pointers = library_of(W.dtype).power_iterate, [tensor.data_ptr() for tensor in (W, u, v)]
    parts = shares(count, 1, max(1, WORK // (n * rows * columns)))
    in_threads(parts, lambda begin, end, _: function(begin, end, rows, columns, n, *pointers))
    return u, v


@functools.cache
def library_of(dtype: torch.dtype) -> ctypes.CDLL:
    """`power_iteration.c` for one dtype.

    Raises:
        CompileError: see :func:`~flows.compiled.library`.
    """
    loaded = library(SOURCE, dtype)
    loaded.power_iterate.argtypes = [*[ctypes.c_int64] * 2, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 3]
    return loaded


def _over_trace(G: Tensor) -> Tensor:
    return G.div_(G.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp_min_(1e-30))


def _normalized(v: Tensor) -> Tensor:
    return v.div_(torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min_(1e-12))


def _groups(layers: Iterable[LipschitzLinear]) -> list[list[LipschitzLinear]]:
    """Group layers whose weights are one stack, which need not be copied, and other layers by their weights' shape."""
    groups: dict[torch.Size | int, list[LipschitzLinear]] = defaultdict(list)
    for layer in layers:
        W = layer.weight
        groups[id(W.stack) if hasattr(W, "stack") else W.shape].append(layer)
    return list(groups.values())
