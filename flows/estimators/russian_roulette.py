"""The Residual Flow estimator: the power series cut at random, and weighted so that the mean is exact."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from arguments import Count, Range, checked
from flows.estimators.estimator import JacobianMode
from flows.estimators.power_series import Gradient, Memory, PowerSeries, Probe

__all__ = ["RussianRoulette"]


class RussianRoulette(PowerSeries):
    r"""`n_exact_terms` terms of weight 1, then N more, term k weighted by :math:`1 / P(N \ge k - n_{exact})`.

    Unbiased (Chen et al. 2019, arXiv 1906.02735, equation 6), as is the Neumann gradient with the same weights.

    Args:
        n_exact_terms: terms that are always computed.
        distribution: of N: `geometric`, on 1, 2, ..., or `poisson`, on 0, 1, ...
        p: chance that the geometric stops at each term.
        rate: mean of the Poisson.
        share: `sample` draws one N for each sample. `batch` draws one for all, which ties their errors together,
            so that the mean over the batch does not average them out.

    The others are those of :class:`~flows.estimators.power_series.PowerSeries`.
    """

    draws_on_host = True

    @checked
    def __init__(
        self,
        n_exact_terms: Annotated[int, Range(ge=0)] = 2,
        distribution: Literal["geometric", "poisson"] = "geometric",
        p: Annotated[float, Range(gt=0, lt=1)] = 0.5,
        rate: Annotated[float, Range(gt=0)] = 2.0,
        share: Literal["sample", "batch"] = "sample",
        n_probes: Count = 1,
        probe: Probe = "gaussian",
        gradient: Gradient = "neumann",
        memory: Memory = "saving",
        jacobian: JacobianMode = "auto",
    ) -> None:
        super().__init__(n_probes, probe, gradient, memory, jacobian)
        self.n_exact_terms, self.share = n_exact_terms, share
        self.distribution, self.p, self.rate = distribution, p, rate

    def draw_orders(self, batch: int) -> Tensor:
        shape = (batch if self.share == "sample" else 1,)
        if self.distribution == "geometric":
            return torch.empty(shape, dtype=torch.float64, device="cpu").geometric_(self.p).long()
        return torch.poisson(torch.full(shape, self.rate, dtype=torch.float64, device="cpu")).long()

    def survival(self, k: Tensor) -> Tensor:
        """P(N >= k) for whole numbers `k`, float64; 1 for the k at or below the support's start."""
        if self.distribution == "geometric":
            return (1 - self.p) ** (k - 1).clamp(min=0)
        # 1 - sum_{i<k} e^-rate rate^i / i! is the regularized incomplete gamma function, without the cancellation.
        tail = torch.special.gammainc(k.clamp(min=1), torch.full_like(k, self.rate))
        return torch.where(k >= 1, tail, 1.0)

    def weights(self, powers: int) -> tuple[Tensor, Tensor]:
        weights = 1 / self.survival(torch.arange(powers, dtype=torch.float64, device="cpu") - self.n_exact_terms)
        return weights, weights

    def lengths(self, orders: Tensor) -> Tensor:
        return self.n_exact_terms + orders + 1
