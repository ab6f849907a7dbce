"""Batches of a target's points that cover it evenly."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hilbert_index", "stratified"]

BITS = 15  # of each coordinate's place on the curve: two of them fit into an int32


def stratified(x: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """Deal points into batches, each of which has its share of every region.

    Points are sorted along a Hilbert curve and cut into `batch_size` runs of neighbours, the strata, each of which
    gives every batch one point. A point picked at random from a batch is distributed as `x`, but the points of a batch
    are not independent of each other. If a function varies little within a stratum, as much of a gradient does, its
    mean over a batch has less variance than over independent points (Cochran 1977, Sampling Techniques, section 5.6).

    Args:
        x: shape (n, 2), n a multiple of `batch_size`, on the host.
        batch_size: points of a batch, and strata.
        generator: of the host; it decides which batch a point goes to.

    Returns:
        Shape (n / batch_size, batch_size, 2): every point once, a batch in the order of the strata. The first few
        batches may be used alone. With n = `batch_size` there is nothing to deal: the one batch is all of `x`.
    """
    batches = len(x) // batch_size
    order = hilbert_index(x).argsort(stable=True).view(batch_size, batches)
    dealt = torch.rand(batch_size, batches, generator=generator).argsort(dim=1)
    return x[order.gather(1, dealt).T]


def hilbert_index(x: Tensor, bits: int = BITS) -> Tensor:
    """Where the points `x`, shape (n, 2), lie along a Hilbert curve through their bounding box, shape (n,), int32.

    The curve visits the cells of a grid of 2^bits by 2^bits, each next to the one before: points near each other on it
    are near each other in the plane (Hilbert 1891). From the coarsest square to the finest, the quadrant that a point
    is in gives two bits, and the square is turned so that the curve within enters and leaves where it should.
    """
    low, high = x.amin(dim=0), x.amax(dim=0)
    cells = (x - low) / (high - low).clamp(min=torch.finfo(x.dtype).tiny) * (2**bits - 1)
    a, b = cells.round().to(torch.int32).unbind(dim=1)
    index = torch.zeros_like(a)
    for bit in reversed(range(bits)):
        right, upper = a >> bit & 1, b >> bit & 1
        index = (index << 2) + (3 * right ^ upper)
        # The lower left quadrant is mirrored about the main diagonal, the lower right one about the other diagonal.
        turned = (right & ~upper & 1).bool()
        a, b = (torch.where(turned, 2**bits - 1 - c, c) for c in (a, b))
        a, b = torch.where(upper.bool(), a, b), torch.where(upper.bool(), b, a)
    return index
