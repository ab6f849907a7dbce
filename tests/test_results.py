"""The defaults reach what the README says: minutes each, so `python -m pytest -m slow`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import start


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("flow", "data", "most_kl"), [("resflow", "moons", 0.03), ("iresnet", "moons", 0.05)])
def test_the_default_run(tmp_path: Path, flow: str, data: str, most_kl: float) -> None:
    began = time.perf_counter()
    process = start("train", f"flow={flow}", f"data={data}", "hydra.run.dir=run", cwd=tmp_path)
    _, err = process.communicate()
    seconds = time.perf_counter() - began
    assert process.returncode == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    print(f"{flow} on {data}: KL {summary['kl']:.4f} in {seconds:.0f} s, plots {summary['plot_seconds']:.0f} s")
    assert summary["kl"] + 2 * summary["kl_stderr"] <= most_kl
    assert summary["lipschitz"] < 1
    assert seconds < 180
    assert summary["plot_seconds"] < 0.1 * seconds
    for name in ("density.gif", "transport.gif"):
        assert (tmp_path / "run" / name).stat().st_size < 3_000_000
        Image.open(tmp_path / "run" / name).load()
