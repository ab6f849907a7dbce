"""The defaults reach what the README says: minutes each, so `python -m pytest -m slow`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import start
from training.configuration import build
from training.run_folder import load_run


def inverse_error_out_to_six_standard_deviations(folder: Path) -> float:
    run = load_run(folder)
    data = build(run.config.data).sample(10_000, torch.Generator().manual_seed(0))
    angle = torch.linspace(0, 6.2832, 400)
    circle = torch.stack([angle.cos(), angle.sin()], dim=1) * data.std(dim=0)
    x = torch.cat([data.mean(dim=0) + radius * circle for radius in torch.linspace(0.05, 6, 120)])
    return float((run.flow.inverse(run.flow(x)[0])[0] - x).abs().max())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("flow", "data", "most_kl"),
    [
        ("resflow", "moons", 0.03), ("resflow", "circles", 0.03), ("resflow", "rings", 0.03),
        ("resflow", "checkerboard", 0.05), ("resflow", "8gaussians", 0.03),
        ("iresnet", "moons", 0.05), ("iresnet", "circles", 0.05), ("iresnet", "rings", 0.5),
        ("iresnet", "checkerboard", 0.2), ("iresnet", "8gaussians", 0.05),
    ],
)  # fmt: skip
def test_the_default_run(tmp_path: Path, flow: str, data: str, most_kl: float) -> None:
    began = time.perf_counter()
    process = start("train", f"flow={flow}", f"data={data}", "hydra.run.dir=run", cwd=tmp_path)
    _, err = process.communicate()
    seconds = time.perf_counter() - began
    assert process.returncode == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    inverse_error = inverse_error_out_to_six_standard_deviations(tmp_path / "run")
    print(f"{flow} on {data}: KL {summary['kl']:.4f} in {seconds:.0f} s, plots {summary['plot_seconds']:.0f} s, "
          f"inverse within {inverse_error:.1e}")  # fmt: skip
    assert summary["kl"] + 2 * summary["kl_stderr"] <= most_kl
    assert summary["lipschitz"] < 1
    assert summary["inverse_error"] <= 1e-5
    assert inverse_error <= 1e-5
    assert seconds < 180
    assert summary["plot_seconds"] < 0.1 * seconds
    for name in ("density.gif", "transport.gif"):
        assert (tmp_path / "run" / name).stat().st_size < 3_000_000
        Image.open(tmp_path / "run" / name).load()
