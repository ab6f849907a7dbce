"""In what precision a trained flow is computed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["evaluation_device", "widened"]


def widened(x: Tensor) -> Tensor:
    """Return `x` in float64 where its device has that (Apple's MPS does not).

    Rounding grows along a chain of blocks: forward by up to 1 + L a block, in the inverse by up to 1 / (1 - L).

    Raises:
        TypeError: `x` is of whole numbers, to which the result would be rounded.
    """
    if not x.is_floating_point():
        raise TypeError(f"points are of floating-point numbers, as x.float(); got {x.dtype}")
    return x if x.device.type == "mps" else x.double()


def evaluation_device(device: torch.device) -> torch.device:
    """Where a flow trained on `device` is evaluated, inverted and sampled: there, or on the CPU if it has no float64.

    In float32 an inverse cannot be certified to 1e-7.
    """
    return torch.device("cpu") if device.type == "mps" else device
