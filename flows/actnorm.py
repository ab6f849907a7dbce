"""Activation normalization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from arguments import Count, checked
from flows.bijection import Bijection

__all__ = ["ActNorm", "with_actnorm"]


class ActNorm(Bijection):
    r""":math:`z = e^s \odot x + t`, set from a first batch to give mean 0 and standard deviation 1, then learned.

    Kingma and Dhariwal 2018 (arXiv 1807.03039), section 3.1. Until `initialize` is called it is the identity.
    """

    is_stage = False

    @checked
    def __init__(self, dimensions: Count) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dimensions))
        self.shift = nn.Parameter(torch.zeros(dimensions))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        std = x.std(dim=0, correction=0)
        std = torch.where(std > 1e-6, std, torch.ones_like(std))  # one point, or equal points, have no scale
        self.log_scale.copy_(-std.log())
        self.shift.copy_(-x.mean(dim=0) / std)
        return self(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = self.log_scale.to(x.dtype)
        return torch.addcmul(self.shift.to(x.dtype), x, s.exp()), s.sum().expand(x.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        s = self.log_scale.to(z.dtype)
        return (z - self.shift.to(z.dtype)) * (-s).exp(), (-s).sum().expand(z.shape[0])


def with_actnorm(blocks: Iterable[Sequence[Bijection]], dimensions: int) -> Iterator[Bijection]:
    """An ActNorm before each of the blocks, each of one bijection or several, and one after the last."""
    for block in blocks:
        yield ActNorm(dimensions)
        yield from block
    yield ActNorm(dimensions)
