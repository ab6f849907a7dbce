"""Figures of merit against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datasets import TargetDensity
from datasets.moons import Moons
from datasets.target import Window
from flows import Flow, ResidualFlow
from flows.actnorm import ActNorm
from flows.estimators import Truncated
from flows.lipschitz import LipschitzLinear
from training import evaluation
from training.evaluation import HeldOut, evaluate

CPU = torch.device("cpu")


class Gaussian(TargetDensity):
    """N(0, s^2 I)."""

    def __init__(self, s: float) -> None:
        self.s = s

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return (self.s * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        y = x.double() / self.s
        return (-(y * y).sum(-1) / 2 - math.log(2 * math.pi * self.s**2)).to(x.dtype)

    @property
    def window(self) -> Window:
        return (-9.0, 9.0), (-9.0, 9.0)


def test_kl_and_its_standard_error_are_those_of_two_gaussians() -> None:
    """ln p - ln q is (s^2 - 1) |x / s|^2 / 2 less a constant, whose standard deviation is |s^2 - 1|."""
    s, n = 1.5, 40_000
    held_out = HeldOut.draw(Gaussian(s), n, torch.Generator().manual_seed(0), CPU)
    found = evaluate(Flow([ActNorm(2)], 2), held_out, seed=0)  # the identity
    stderr = abs(s**2 - 1) / math.sqrt(n)
    assert found.kl_stderr == pytest.approx(stderr, rel=0.05)
    assert found.nll_stderr == found.kl_stderr
    assert found.kl == pytest.approx(s**2 - 1 - math.log(s**2), abs=4 * stderr)
    assert found.nll == pytest.approx(math.log(2 * math.pi) + s**2, abs=4 * stderr)


def test_of_the_same_density_kl_is_zero_and_nll_the_entropy_without_noise() -> None:
    held_out = HeldOut.draw(Gaussian(1.0), 1000, torch.Generator().manual_seed(0), CPU)
    found = evaluate(Flow([ActNorm(2)], 2), held_out, seed=0)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.nll == pytest.approx(math.log(2 * math.pi) + 1, abs=1e-5)
    assert found.kl_stderr < 1e-7


def test_the_bound_of_the_inverse_is_the_largest_of_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = iter([1e-9, 3e-9, 2e-9])
    monkeypatch.setattr(evaluation, "PLAIN_CHUNK", 400)
    monkeypatch.setattr(Flow, "inverse_bound", property(lambda self: next(bounds)))
    held_out = HeldOut.draw(Gaussian(1.0), 1000, torch.Generator().manual_seed(0), CPU)
    assert evaluate(Flow([ActNorm(2)], 2), held_out, seed=0).inverse_bound == 3e-9


def test_a_part_has_the_densities_of_its_own_points() -> None:
    part = HeldOut.draw(Moons(), 1000, torch.Generator().manual_seed(0), CPU).part()
    assert len(part.x) == 100
    assert torch.equal(part.log_prob, Moons().log_prob(part.x.double()))


def test_an_estimators_bias_has_its_sign_and_its_deviation_its_size() -> None:
    """Of one term, the trace: estimated by signs, which err by what is off the diagonal."""
    torch.manual_seed(4)
    flow = ResidualFlow(2, Truncated(n_terms=1, n_probes=64, probe="rademacher"), blocks=4, width=16)
    for module in flow.modules():
        if isinstance(module, LipschitzLinear):
            torch.nn.init.orthogonal_(module.weight, gain=2)
            module.converge()
    held_out = HeldOut.draw(Moons(), 2048, torch.Generator().manual_seed(3), CPU)
    found = evaluate(flow, held_out, seed=0)
    x, bias, variance = held_out.x.double(), torch.zeros(2048).double(), torch.zeros(2048).double()
    with torch.no_grad():
        for bijection in flow.bijections:
            if isinstance(bijection, ActNorm):
                x = bijection(x)[0]
                continue
            g, J = bijection.net.forward_with_jacobian(x)
            bias += J.diagonal(dim1=1, dim2=2).sum(1) - torch.linalg.slogdet(torch.eye(2) + J).logabsdet
            variance += (J[:, 0, 1] + J[:, 1, 0]) ** 2 / 64
            x = x + g
    std = math.sqrt(float(bias.var() + variance.mean()))
    assert found.logdet_bias == pytest.approx(float(bias.mean()), abs=4 * std / math.sqrt(2048))
    assert abs(found.logdet_bias) > 8 * std / math.sqrt(2048)
    assert found.logdet_std == pytest.approx(std, rel=0.1)
