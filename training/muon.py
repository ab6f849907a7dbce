"""Muon: updates orthogonalized in the norm that the Lipschitz constraint lives in."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from flows.compiled import in_threads, library, shares
from training.optimizer import Optimizer

__all__ = ["Muon", "library_of", "orthogonalize"]

SOURCE = Path(__file__).with_name("muon.c")
WORK = 200_000  # entries of all the products' factors: with fewer a thread is not worth its start
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic that drives singular values towards 1
STEPS = 5


def orthogonalize(matrices: Tensor, compiled: bool = False) -> Tensor:
    r"""Return :math:`U V^T` of each matrix :math:`U \Sigma V^T`, roughly: singular values within about [0.7, 1.2].

    Newton-Schulz iteration with Jordan's coefficients (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Args:
        matrices: shape (batch, rows, columns): all of a flow's matrices of one shape, in one product.
        compiled: whether to compute by `muon.c`, in which a matrix does not leave the cache between the products.

    Raises:
        CompileError: if `compiled`, see :func:`~flows.compiled.library`.
    """
    if compiled:
        return _by_library(matrices)
    tall = matrices.shape[-2] > matrices.shape[-1]
    X = matrices.mT if tall else matrices
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


def _by_library(matrices: Tensor) -> Tensor:
    matrices, (batch, rows, columns) = matrices.contiguous(), matrices.shape
    result, function = torch.empty_like(matrices), library_of(matrices.dtype).orthogonalize
    in_threads(
        shares(batch, 1, max(1, WORK // (STEPS * rows * columns))),
        lambda begin, end, _: function(
            begin, end, rows, columns, STEPS, *COEFFICIENTS, matrices.data_ptr(), result.data_ptr()
        ),
    )
    return result


@functools.cache
def library_of(dtype: torch.dtype) -> ctypes.CDLL:
    """`muon.c` for one dtype.

    Raises:
        CompileError: see :func:`~flows.compiled.library`.
    """
    loaded = library(SOURCE, dtype)
    loaded.orthogonalize.argtypes = [
        *[ctypes.c_int64] * 2, *[ctypes.c_int] * 3, *[ctypes.c_double] * 3, *[ctypes.c_void_p] * 2,
    ]  # fmt: skip
    return loaded


class Muon(Optimizer):
    r"""Momentum, orthogonalized, for weight matrices.

    .. math:: W \leftarrow (1 - \eta \lambda) W
        - \eta\, 0.2 \sqrt{\max(m, n)}\; \mathrm{orthogonalize}(\text{Nesterov momentum})

    for every W of shape (m, n) in stacks of shape (k, m, n). The factor gives an update the size of one of Adam's
    (Liu et al. 2025, arXiv 2502.16982).
    Without the weight decay :math:`\lambda`, a spectrally normalized W grows without end, because its size does not
    matter. The update does not grow with it, so it counts for less and less: seen in runs of thousands of steps.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, compiled: bool = False
    ) -> None:
        super().__init__(matrices, lr)
        self.momentum, self.weight_decay, self.compiled = momentum, weight_decay, compiled
        if compiled and self.parameters:
            library_of(self.parameters[0].dtype)  # here, not in the first step, whose time counts

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(parameter, requires_grad=False)}

    @torch.no_grad()
    def step(self) -> None:
        lr = self.param_groups[0]["lr"]  # may be a tensor
        for W, state in zip(self.parameters, self.state, strict=True):
            average = state["momentum"].lerp_(W.grad, 1 - self.momentum)
            update = orthogonalize(torch.lerp(W.grad, average, self.momentum), self.compiled)
            W.mul_(1 - lr * self.weight_decay)
            W.sub_(update.mul_(lr * 0.2 * max(W.shape[-2:]) ** 0.5))
