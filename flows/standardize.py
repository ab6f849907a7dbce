"""Standardization: from data's own units to those that a flow is at ease with."""

from __future__ import annotations

import torch
from torch import Tensor

from flows.bijection import Bijection

__all__ = ["Standardize"]


class Standardize(Bijection):
    """z = (x - mean) / std, with mean and standard deviation of the data, set once. Until then it is the identity.

    Args:
        dimensions: d.
    """

    is_stage = False

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("std", torch.ones(dimensions))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.to(x.dtype), self.std.to(x.dtype)
        return (x - mean) / std, -std.log().sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.mean.to(z.dtype), self.std.to(z.dtype)
        return mean + std * z, std.log().sum().expand(z.shape[0])
