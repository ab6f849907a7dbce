"""Why a number is not finite, or a bound does not hold, as far as it can be told."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from flows import Flow

__all__ = [
    "OUT_OF_MEMORY",
    "ContractionError",
    "NonFiniteError",
    "diagnose",
    "first_line",
    "first_not_finite",
    "is_of_memory",
]

OUT_OF_MEMORY = "these settings need more memory than there is"

OF_MEMORY = (
    "can't allocate memory",  # the host
    "not enough memory",  # that of Windows
    "Storage size calculation overflowed",
    "out of memory",  # CUDA beside torch's allocator, MPS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Invalid buffer size",  # MPS
)
"""What torch's errors of memory say."""


class NonFiniteError(RuntimeError):
    """Training met a number that is not finite, and stopped before it reached the checkpoint."""


class ContractionError(RuntimeError):
    """Training broke the Lipschitz bound faster than power iteration restored it, or a forward pass was not solved."""


def is_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is short, for which torch has a class of its own only in part."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What `error` says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@torch.no_grad()
def first_not_finite(named: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor that is not finite; None where all are. Waits for the device once."""
    found = [(name, torch.isfinite(tensor).all()) for name, tensor in named if tensor is not None]
    finite = torch.stack([flag for _, flag in found]).tolist()
    return next((name for (name, _), fine in zip(found, finite, strict=True) if not fine), None)


@torch.no_grad()
def diagnose(flow: Flow, x: Tensor) -> str:
    """Say where the batch `x`, shape (batch, d), first leaves the finite numbers on its way through `flow`."""
    if not torch.isfinite(x).all():
        return "the data are not finite"
    if name := first_not_finite(flow.named_parameters()):
        return f"{name} is not finite: a lower optimizer.lr or trainer.clip_norm may help"
    flow.eval()
    for index, bijection in enumerate(flow.bijections):
        x, log_det = bijection(x)
        # Squared, because the base's log-density squares: what overflows there need not be infinite here.
        if torch.isfinite(x * x).all() and torch.isfinite(log_det).all():
            continue
        name, norm = max(
            ((name, float(torch.linalg.vector_norm(parameter))) for name, parameter in bijection.named_parameters()),
            key=lambda item: item[1],
        )
        what = "output" if torch.isfinite(log_det).all() else "log-determinant"
        return (
            f"the {what} of bijections.{index} ({type(bijection).__name__}) leaves the range of numbers; "
            f"its largest parameter is {name}, of norm {norm:.3g}"
        )
    return "its exact NLL is finite, so the estimator's draw of the log-determinant was not, or a block was not solved"
