"""In what precision a trained flow is computed."""

from __future__ import annotations

from torch import Tensor

__all__ = ["widened"]


def widened(x: Tensor) -> Tensor:
    """Return `x` in float64 where its device has that (Apple's MPS does not).

    Rounding grows along a chain of blocks: forward by up to 1 + L a block, in the inverse by up to 1 / (1 - L).
    """
    return x if x.device.type == "mps" else x.double()
