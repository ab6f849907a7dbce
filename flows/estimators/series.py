"""The power series of many small matrices in one call: no operation, and no Python, for each of its terms.

Term by term a series is some twenty times six operations on all samples, though most samples need half of the terms.
`series.c` computes what `PowerSeries._estimate` does, and a test holds it to that.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.compiled import in_threads, library, shares
from flows.differentiation import once_differentiable

__all__ = ["library_of", "series"]

SOURCE = Path(__file__).with_name("series.c")
LEAST = 2048  # samples: fewer are done before another thread has begun


def series(J: Tensor, v: Tensor, lengths: Tensor | int, of_terms: Tensor, of_powers: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_v \sum_k a_k v^T J^k v`, and for each probe v the constant :math:`\sum_k b_k v^T J^k`.

    Args:
        J: shape (batch, d, d), on the host. The first result is differentiable by it, once.
        v: probes, shape (batch, probes, d).
        lengths: how many k each sample has, from 0 on, shape (batch,) or (1,), int64; a number where all have as many.
        of_terms, of_powers: a and b, of as many k as the longest has or more, shape (powers,); a_0 is not used.

    Returns:
        shapes (batch,) and (batch, probes, d).

    Raises:
        CompileError: see :func:`~flows.compiled.library`.
    """
    J = J if torch.is_grad_enabled() else J.detach()  # or its gradient would be computed for nobody
    return _Series.apply(J, v, lengths, of_terms, of_powers)


class _Series(torch.autograd.Function):
    """The gradient is computed beside the value: d x d numbers a sample, where a graph would keep every power."""

    @staticmethod
    def forward(
        ctx: Any, J: Tensor, v: Tensor, lengths: Tensor | int, of_terms: Tensor, of_powers: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, probes, d = v.shape
        J, v = J.contiguous(), v.contiguous()
        if J.dtype != v.dtype or J.shape != (batch, d, d):  # compiled code would read elsewhere
            found = f"{J.dtype} of shape {tuple(J.shape)} and {v.dtype} of shape {tuple(v.shape)}"
            raise ValueError(f"Jacobians and probes are of one dtype and batch, not {found}")
        lengths = torch.as_tensor(lengths, dtype=torch.int64, device="cpu").expand(batch).contiguous()
        log_det, row = v.new_empty(batch), torch.empty_like(v)
        by_J = torch.zeros_like(J) if ctx.needs_input_grad[0] else None
        pointers = [
            None if tensor is None else tensor.data_ptr()
            for tensor in (J, v, lengths, of_terms, of_powers, log_det, row, by_J)
        ]
        function = library_of(v.dtype).series
        in_threads(
            shares(batch, 1, LEAST),
            lambda begin, end, _: function(begin, end, d, probes, len(of_powers), *pointers),
        )
        ctx.save_for_backward(by_J)
        ctx.mark_non_differentiable(row)
        return log_det, row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_det: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.saved_tensors[0] * by_log_det[:, None, None], None, None, None, None


@functools.cache
def library_of(dtype: torch.dtype) -> ctypes.CDLL:
    """`series.c` for one dtype.

    Raises:
        CompileError: see :func:`~flows.compiled.library`.
    """
    loaded = library(SOURCE, dtype)
    number = ctypes.c_int64
    loaded.series.argtypes = [number, number, ctypes.c_int, ctypes.c_int, number, *[ctypes.c_void_p] * 8]
    return loaded
