"""Flows of other families in our harness: the same contract, the same commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flows import Flow, neighbours
from tests.conftest import TINY, Result

pytest.importorskip("zuko")

Run = Callable[..., Result]

NAMES = sorted(neighbours.__all__)
SOLVED = 1e-3  # as closely as the continuous flow solves its differential equation


@pytest.fixture(params=NAMES)
def flow(request: pytest.FixtureRequest) -> Flow:
    torch.manual_seed(0)
    flow = getattr(neighbours, request.param)(2)
    with torch.no_grad():
        for parameter in flow.parameters():  # away from the identity
            parameter += 0.05 * torch.randn_like(parameter)
    return flow.eval()


def test_the_inverse_and_the_log_det(flow: Flow) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    z, log_det = flow(x)
    back, back_log_det = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=SOLVED)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=SOLVED)
    J = torch.stack([torch.autograd.functional.jacobian(lambda y: flow(y.unsqueeze(0))[0][0], y) for y in x[:5]])
    torch.testing.assert_close(log_det[:5], torch.linalg.slogdet(J).logabsdet, rtol=0, atol=SOLVED)


@pytest.mark.parametrize("name", ["nice", "realnvp"])
def test_of_the_couplings_those_of_nice_alone_keep_volumes(name: str) -> None:
    torch.manual_seed(0)
    flow = getattr(neighbours, name)(2, width=8)
    flow.initialize(3 * torch.randn(500, 2) + 1)
    log_det = flow(torch.randn(50, 2))[1].detach()
    assert (float(log_det.std()) < 1e-6) == (name == "nice")
    if name == "nice":  # all of it is that of the scaling, which the data have set
        torch.testing.assert_close(log_det[0], flow.bijections[-1].log_scale.detach().sum())
        assert float(log_det[0]) < -1


def test_its_density_integrates_to_one(flow: Flow) -> None:
    side = torch.linspace(-8, 8, 101)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        mass = flow.log_prob(grid).double().exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_commands(run: Run, tmp_path: Path, name: str) -> None:
    settings = [setting for setting in TINY if not setting.startswith(("flow.", "estimator."))]
    small = [f"flow={name}", "flow.width=8", "flow.depth=1", *settings]
    whole = run("train", *small, "trainer.epochs=1", f"trainer.plots={name == 'nsf'}", folder=tmp_path / "whole")
    assert whole.status == 0, whole.err
    assert whole.summary["estimator"] is None
    assert whole.summary["logdet_std"] == 0
    files = {path.name for path in whole.folder.iterdir()}
    assert ("report.html" in files, {"density.gif", "transport.gif"} <= files) == (True, name == "nsf")
    longer = run("train", f"resume={whole.folder}", "trainer.epochs=2")
    assert longer.status == 0, longer.err
    sampled = run("sample", f"run={whole.folder}", "n=10")
    assert sampled.status == 0, sampled.err


def test_a_spline_has_the_bins_it_is_given() -> None:
    few, many = (sum(tensor.numel() for tensor in neighbours.nsf(2, bins=bins).parameters()) for bins in (4, 16))
    assert few < many


@pytest.mark.parametrize(
    ("setting", "named"),
    [("estimator=exact", "estimator accepts nothing: flow=nsf"), ("flow.coeff=0.9", "flow.coeff"),
     ("flow.blocks=3", "flow.blocks"), ("flow.transforms=0", "flow.transforms"),
     ("estimator.n_terms=3", "estimator.n_terms accepts nothing: with flow=nsf there is no estimator"),
     ("+flow.dimensions=3", "flow.dimensions accepts nothing"),
     ("trainer.power_iterations=3", "trainer.power_iterations accepts nothing: flow=nsf")],
)  # fmt: skip
def test_what_does_not_apply_is_refused_by_name(run: Run, tmp_path: Path, setting: str, named: str) -> None:
    result = run("train", "flow=nsf", setting, folder=tmp_path / "run")
    assert result.status == 2
    assert named in result.err
    assert not (tmp_path / "run").exists()
