"""Many short trainings at three times the default learning rate: `python -m tests.seeds 50`, or in parts, `5 0`, `5 5`.

Every seed on five densities with the four flows of this project. Each model must be certified at every evaluation, and
every figure a number, or the run must have stopped and said why.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
from pathlib import Path

from omegaconf import DictConfig

import train
from flows.bijection import InverseError
from tests.conftest import composed
from training.configuration import check_config
from training.diagnosis import ContractionError, NonFiniteError
from training.run_folder import load_run

FLOWS = ("iresnet", "resflow", "idensenet", "implicit")
DENSITIES = ("moons", "rings", "checkerboard", "circles", "8gaussians")
SHORT = (
    "trainer.epochs=2", "trainer.steps_per_epoch=10", "trainer.batch_size=64", "trainer.held_out=300",
    "trainer.plots=false", "device=cpu", "threads=1",
)  # fmt: skip
FASTER = 3.0


def outcome(flow: str, data: str, seed: int, folder: Path) -> str:
    """Train once; return `certified`, `stopped: why`, `uncertified` or `not a number`."""
    config = _config(flow, data, seed)
    settings = train.Settings(**{name: config[name] for name in train.Settings.__annotations__})
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train.train(config, settings, folder)
    except (NonFiniteError, ContractionError, InverseError) as error:
        return f"stopped: {error}"
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    figures = [dict(zip(rows[0], map(float, row), strict=True)) for row in rows[1:]]
    if not all(math.isfinite(figure) for row in figures for figure in row.values()):
        return "not a number"
    constants = [row["lipschitz"] for row in figures] + load_run(folder).flow.lipschitz_constants()
    return "certified" if max(constants) < 1 else "uncertified"


def _config(flow: str, data: str, seed: int) -> DictConfig:
    config = composed(f"flow={flow}", f"data={data}", f"seed={seed}", *SHORT)
    for rate in ("lr", "adam_lr"):
        config.optimizer[rate] *= FASTER
    check_config(config)
    return config


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    outcomes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        for seed in range(first, first + n):
            for flow in FLOWS:
                for data in DENSITIES:
                    found = outcome(flow, data, seed, Path(name) / f"{flow}-{data}-{seed}")
                    if found != "certified":
                        print(f"{flow} {data} seed={seed}: {found}", flush=True)
                    outcomes[found.split(":")[0]] = outcomes.get(found.split(":")[0], 0) + 1
    print(f"seeds {first} to {first + n - 1}: {outcomes}")
    raise SystemExit(any(bad in outcomes for bad in ("uncertified", "not a number")))


if __name__ == "__main__":
    main()
