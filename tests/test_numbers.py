"""Numbers at their limits: what is not finite stops a run, a bound that slips is repaired, extremes are computed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flows import ResidualFlow
from flows.estimators import Exact, RussianRoulette, Truncated
from flows.lipschitz import LipschitzLinear
from plots import samples
from tests import seeds
from tests.conftest import TINY, Result
from training import trainer
from training.learner import POWER_ITERATIONS, Learner

Run = Callable[..., Result]

SHORT = (*TINY, "trainer.plots=false", "trainer.epochs=1")


class TestNotFinite:
    """Each is found, and the run stopped, before the checkpoint is overwritten."""

    @pytest.fixture
    def stopped(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        def run_broken(owner: type | object, name: str, broken: Callable) -> str:
            folder = tmp_path / "run"
            assert run("train", *SHORT, "optimizer=adam", folder=folder).status == 0
            before = (folder / "checkpoint.pt").read_bytes()
            monkeypatch.setattr(owner, name, broken)
            result = run("train", f"resume={folder}", "trainer.epochs=2")
            assert result.status == 1
            (line,) = result.err.strip().splitlines()
            assert f"the last good checkpoint is {folder}/checkpoint.pt" in line
            assert (folder / "checkpoint.pt").read_bytes() == before
            assert len((folder / "metrics.csv").read_text().splitlines()) == 2
            return line

        return run_broken

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_gradient_where_the_loss_is_finite(self, stopped: Callable[..., str], value: float) -> None:
        backward = Learner.backward

        def broken(self: Learner, x: torch.Tensor) -> torch.Tensor:
            loss = backward(self, x)
            if self.steps == 8:
                self.flow.get_parameter("bijections.1.net.layers.0.bias").grad[0] = value
            return loss

        line = stopped(Learner, "backward", broken)
        assert "the gradient of step 9 is not finite" in line
        assert "that of bijections.1.net.layers.0.bias" in line

    def test_weights_after_the_last_step_of_an_epoch(self, stopped: Callable[..., str]) -> None:
        update = Learner.update

        def broken(self: Learner, rate: float) -> torch.Tensor:
            norm = update(self, rate)
            if self.steps == 10:
                self.flow.get_parameter("bijections.1.net.layers.0.bias").data[0] = math.inf
            return norm

        line = stopped(Learner, "update", broken)
        assert "a weight after step 10 is not finite: bijections.1.net.layers.0.bias" in line

    def test_a_figure_of_an_evaluation(self, stopped: Callable[..., str]) -> None:
        base_log_prob = ResidualFlow.base_log_prob

        def broken(self: ResidualFlow, z: torch.Tensor) -> torch.Tensor:
            return base_log_prob(self, z) * (1 if self.training else math.nan)

        assert "nll after step 10 is not finite" in stopped(ResidualFlow, "base_log_prob", broken)


class TestContraction:
    """Power iteration that falls behind is noticed and helped, and no evaluation is without a certificate."""

    @pytest.fixture
    def behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every update doubles what power iteration has not seen: one singular value of each matrix, another one."""
        update = Learner.update

        def outrun(self: Learner, rate: float) -> torch.Tensor:
            norm = update(self, rate)
            for layer in self.flow.modules():
                if isinstance(layer, LipschitzLinear):
                    left, values, right = torch.linalg.svd(layer.weight.data, full_matrices=False)
                    layer.weight.data += 1.2 * float(values[0]) * torch.outer(left[:, -1], right[-1])
            return norm

        monkeypatch.setattr(Learner, "update", outrun)

    def test_a_broken_bound_is_repaired_and_said(self, run: Run, tmp_path: Path, behind: None) -> None:
        result = run("train", *SHORT, "trainer.epochs=3", "trainer.steps_per_epoch=1", folder=tmp_path / "run")
        assert result.status == 0, result.err
        assert "a block's Lipschitz constant had slipped to" in result.err
        assert f"power iterations a step doubled to {2 * POWER_ITERATIONS}" in result.err
        assert result.summary["power_iterations"] > POWER_ITERATIONS
        assert result.summary["lipschitz_in_training"] > 1
        assert max(float(row["lipschitz_in_training"]) for row in result.rows) > 1
        assert all(float(row["lipschitz"]) < 0.87**5 + 1e-5 for row in result.rows)

    def test_one_that_cannot_be_repaired_stops_the_run(
        self, run: Run, tmp_path: Path, behind: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trainer, "MOST_REPAIRS", 1)
        result = run("train", *SHORT, "trainer.epochs=9", "trainer.steps_per_epoch=1", folder=tmp_path / "run")
        assert result.status == 1
        assert "power iterations a step do not hold it below 1: a lower optimizer.lr may" in result.err

    def test_repairs_are_remembered_by_a_resumed_run(self, run: Run, tmp_path: Path, behind: None) -> None:
        settings = (*SHORT, "trainer.steps_per_epoch=1", "trainer.schedule=constant", "trainer.warmup=0")
        whole = run("train", *settings, "trainer.epochs=4", folder=tmp_path / "whole")
        run("train", *settings, "trainer.epochs=2", folder=tmp_path / "part")
        assert run("train", f"resume={tmp_path}/part", "trainer.epochs=4").status == 0
        assert Result(0, "", "", tmp_path / "part").rows == whole.rows

    def test_in_ordinary_training_it_holds(self, run: Run, tmp_path: Path) -> None:
        result = run("train", *SHORT, "trainer.steps_per_epoch=101", folder=tmp_path / "run")
        assert result.err == ""
        assert 0.5 < result.summary["lipschitz_in_training"] < 1
        assert result.summary["power_iterations"] == POWER_ITERATIONS

    def test_an_evaluation_without_a_bound_below_one_stops_the_run(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LipschitzLinear, "singular_value", lambda self: 1.01)
        monkeypatch.setattr(trainer.Trainer, "_hold_contraction", lambda self: None)
        result = run("train", *SHORT, folder=tmp_path / "run")
        assert result.status == 1
        assert "no certified inverse" in result.err
        assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(
    "settings",
    [
        "flow.coeff=0.999", "flow.blocks=100", "flow.width=1", "flow.width=2",
        "flow.width=1024 flow.depth=1",
        "flow.depth=8", "trainer.batch_size=1", "trainer.batch_size=100000 trainer.steps_per_epoch=1",
        "optimizer.lr=1", "optimizer=adam optimizer.lr=1",
        "data.noise=1e-6", "data=rings data.noise=1e-6", "data=8gaussians data.noise=1e-6",
        "data=checkerboard data.noise=1e-6", "data.noise=1000", "trainer.ema_decay=0.9999", "flow.coeff=1e-6",
    ],
)  # fmt: skip
def test_extreme_settings_train_and_are_certified(run: Run, tmp_path: Path, settings: str) -> None:
    result = run("train", *SHORT, *settings.split(), folder=tmp_path / "run")
    assert result.status == 0, result.err
    assert result.err == ""
    assert result.summary["lipschitz"] < 1
    figures = [result.summary[name] for name in ("kl", "nll", "kl_stderr", "entropy", "logdet_bias", "logdet_std")]
    assert all(math.isfinite(figure) for figure in figures)
    assert result.summary["kl"] > -4 * result.summary["kl_stderr"]


def test_a_learning_rate_that_leaves_the_numbers_stops_with_its_cause(run: Run, tmp_path: Path) -> None:
    result = run("train", *SHORT, "optimizer=adam", "optimizer.lr=100", folder=tmp_path / "run")
    assert result.status == 1
    part = r"the (output|log-determinant) of bijections\.\d+ \(\w+\)"
    assert re.search(f"the loss of step 2 is not finite: {part} leaves the range", result.err)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_density_too_thin_for_the_grid_is_drawn(run: Run, tmp_path: Path) -> None:
    assert run("train", *TINY, "trainer.epochs=1", "data.noise=1e-6", folder=tmp_path / "run").status == 0


def test_very_many_samples_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A histogram of a hundred million at once would take gigabytes."""
    x = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    arguments = (x, x[:, 0], ((-2.0, 2.0), (-2.0, 2.0)), "1,000 samples")
    samples.draw_samples(tmp_path / "at_once.png", *arguments)
    sizes, histogram2d = [], np.histogram2d
    monkeypatch.setattr(samples, "AT_ONCE", 300)
    monkeypatch.setattr(np, "histogram2d", lambda x, *rest: sizes.append(len(x)) or histogram2d(x, *rest))
    samples.draw_samples(tmp_path / "in_parts.png", *arguments)
    assert sizes == [300, 300, 300, 100]
    assert (tmp_path / "in_parts.png").read_bytes() == (tmp_path / "at_once.png").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", [Exact(), Truncated(), RussianRoulette(), RussianRoulette(jacobian="vjp")])
def test_points_at_a_million_in_either_dtype(dtype: torch.dtype, estimator: object) -> None:
    torch.manual_seed(0)
    flow = ResidualFlow(2, estimator, blocks=4, width=16, coeff=0.99).to(dtype)
    x = torch.randn(50, 2, dtype=dtype) * 1e6
    loss = -flow.train().log_prob(x).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in flow.parameters())
    flow.eval()
    with torch.no_grad():
        z, log_det = flow(x)
        back = flow.inverse(z)[0]
    assert z.dtype == log_det.dtype == back.dtype == dtype
    torch.testing.assert_close(back, x, rtol=1e-5 if dtype == torch.float32 else 1e-6, atol=1e-4)
    assert torch.isfinite(flow.log_prob(x)).all()


@pytest.mark.parametrize(
    ("flow", "data"),
    [("iresnet", "moons"), ("resflow", "rings"), ("resflow", "checkerboard"), ("idensenet", "circles"),
     ("implicit", "8gaussians")],
)  # fmt: skip
def test_at_three_times_the_learning_rate_models_are_certified(flow: str, data: str, tmp_path: Path) -> None:
    """One seed of the many that `python -m tests.seeds` tries."""
    assert seeds.outcome(flow, data, 0, tmp_path / "run") == "certified"
