"""Flows of other families, from zuko (`pip install -r requirements-neighbours.txt`), trained and evaluated as ours are.

None of them is reimplemented here: each of zuko's transforms is wrapped as a :class:`~flows.bijection.Bijection`.
Zuko's NICE has no scaling at the end, so an ActNorm is added to it.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from arguments import ArgumentError, Count, checked
from flows.actnorm import ActNorm
from flows.bijection import Bijection
from flows.flow import Flow

__all__ = ["ffjord", "maf", "nice", "nsf", "realnvp"]


class ZukoTransform(Bijection):
    """One transform of a zuko flow. It computes in the dtype of its weights, whatever that of its input."""

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__()
        self.lazy = lazy

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(self.lazy(), x)

    @torch.no_grad()
    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(self.lazy().inv, z)

    def _call(self, transform: torch.distributions.Transform, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = transform.call_and_ladj(x.to(next(self.parameters())))
        return y.to(x.dtype), log_det.to(x.dtype)


def _zuko() -> ModuleType:
    """
    Raises:
        ArgumentError: it is not installed.
    """
    try:
        import zuko
    except ImportError:
        accepts = "what is installed (pip install -r requirements-neighbours.txt)"
        raise ArgumentError("", accepts, "one of zuko's, which is not") from None
    return zuko


def _bijections(name: str, dimensions: int, width: int, depth: int, **settings: Any) -> list[Bijection]:
    """The transforms of zuko's flow `name` on R^d; its networks have `depth` hidden layers of `width` units."""
    made = getattr(_zuko().flows, name)(dimensions, hidden_features=[width] * depth, **settings).transform
    return [ZukoTransform(lazy) for lazy in getattr(made, "transforms", [made])]


@checked
def nice(dimensions: int, transforms: Count = 8, width: Count = 64, depth: Count = 2) -> Flow:
    """NICE (Dinh et al. 2014, arXiv 1410.8516): additive couplings, of constant volume, and a scaling at the end."""
    additive = {"univariate": _zuko().transforms.AdditiveTransform, "shapes": [()]}  # zuko's default is affine
    couplings = _bijections("NICE", dimensions, width, depth, transforms=transforms, **additive)
    return Flow([*couplings, ActNorm(dimensions)], dimensions)


@checked
def realnvp(dimensions: int, transforms: Count = 8, width: Count = 64, depth: Count = 2) -> Flow:
    """Real NVP (Dinh et al. 2017, arXiv 1605.08803): affine couplings."""
    return Flow(_bijections("RealNVP", dimensions, width, depth, transforms=transforms), dimensions)


@checked
def maf(dimensions: int, transforms: Count = 8, width: Count = 64, depth: Count = 2) -> Flow:
    """A masked autoregressive flow (Papamakarios et al. 2017, arXiv 1705.07057)."""
    return Flow(_bijections("MAF", dimensions, width, depth, transforms=transforms), dimensions)


@checked
def nsf(dimensions: int, transforms: Count = 4, bins: Count = 16, width: Count = 64, depth: Count = 2) -> Flow:
    """A neural spline flow (Durkan et al. 2019, arXiv 1906.04032), autoregressive."""
    return Flow(_bijections("NSF", dimensions, width, depth, transforms=transforms, bins=bins), dimensions)


@checked
def ffjord(dimensions: int, width: Count = 64, depth: Count = 2) -> Flow:
    """A continuous flow with its exact trace (Grathwohl et al. 2019, arXiv 1810.01367)."""
    flow = Flow(_bijections("CNF", dimensions, width, depth), dimensions)
    # The ODE solver waits for the device anyway, to read its error estimate in each of its steps. And the loss must be
    # checked before the next training step, because with NaN weights the solver would never end.
    flow.waits_for_device = True
    return flow
