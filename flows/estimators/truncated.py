"""The iResNet estimator: the power series cut after a fixed number of terms."""

from __future__ import annotations

import torch
from torch import Tensor

from arguments import Count, checked
from flows.estimators.estimator import JacobianMode
from flows.estimators.power_series import Gradient, Memory, PowerSeries, Probe

__all__ = ["Truncated"]


class Truncated(PowerSeries):
    r"""The first n terms of the series, weight 1 each (Behrmann et al. 2019, arXiv 1811.00995, section 3.2).

    Biased, by at most :math:`-d\,(\ln(1 - L) + \sum_{k \le n} L^k / k)` nats (the same, theorem 3).

    Args:
        n_terms: n, terms that are kept.

    The others are those of :class:`~flows.estimators.power_series.PowerSeries`.
    """

    @checked
    def __init__(
        self,
        n_terms: Count = 5,
        n_probes: Count = 1,
        probe: Probe = "gaussian",
        gradient: Gradient = "series",
        memory: Memory = "standard",
        jacobian: JacobianMode = "auto",
    ) -> None:
        super().__init__(n_probes, probe, gradient, memory, jacobian)
        self.n_terms = n_terms

    def weights(self, powers: int) -> tuple[Tensor, Tensor]:
        in_series = torch.ones(powers, dtype=torch.float64, device="cpu")
        in_gradient = in_series.clone()
        in_gradient[self.n_terms :] = 0  # that of tr(J^k) / k is tr(J^(k-1) dJ): n terms have the powers 0 to n - 1
        return in_series, in_gradient

    def lengths(self, orders: Tensor | None) -> int:
        return self.n_terms + 1
