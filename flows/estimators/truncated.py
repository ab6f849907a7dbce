"""The iResNet estimator: the power series cut after a fixed number of terms."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from arguments import Range, checked
from flows.estimators.estimator import JacobianMode
from flows.estimators.power_series import Gradient, Memory, PowerSeries, Probe, ProbeCount

__all__ = ["Truncated", "truncation_bound"]


class Truncated(PowerSeries):
    """The first n terms of the series, weight 1 each. Biased (Behrmann et al. 2019, arXiv 1811.00995, section 3.2).

    Args:
        n_terms: n, terms that are kept.

    The others are those of :class:`~flows.estimators.power_series.PowerSeries`.
    """

    @checked
    def __init__(
        self,
        n_terms: Annotated[int, Range(ge=1)] = 5,
        n_probes: ProbeCount = 1,
        probe: Probe = "gaussian",
        gradient: Gradient = "series",
        memory: Memory = "standard",
        jacobian: JacobianMode = "auto",
    ) -> None:
        super().__init__(n_probes, probe, gradient, memory, jacobian)
        self.n_terms = n_terms

    def weights(self, orders: Tensor | None) -> tuple[Tensor, Tensor]:
        in_series = torch.ones(1, self.n_terms + 1, dtype=torch.float64, device="cpu")
        in_gradient = in_series.clone()
        in_gradient[:, -1] = 0  # that of tr(J^k) / k is tr(J^(k-1) dJ): n terms have the powers 0 to n - 1
        return in_series, in_gradient


def truncation_bound(lipschitz: float, n_terms: int, dimensions: int) -> float:
    r"""The largest error of n terms, :math:`-d\,(\ln(1 - L) + \sum_{k \le n} L^k / k)`, nats (the same, theorem 3)."""
    return -dimensions * (math.log1p(-lipschitz) + sum(lipschitz**k / k for k in range(1, n_terms + 1)))
