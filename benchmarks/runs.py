"""Ordinary runs of train.py, as benchmarks take them: made once, then read."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["run"]

PROJECT = Path(__file__).resolve().parent.parent


def run(folder: Path, overrides: Sequence[str]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train without pictures, unless it was done before; return the rows of metrics.csv and the summary."""
    if not (folder / "summary.json").exists():
        subprocess.run(
            [sys.executable, str(PROJECT / "train.py"), "trainer.plots=false", f"hydra.run.dir={folder}", *overrides],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    with open(folder / "metrics.csv") as file:
        rows = [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]
    return rows, json.loads((folder / "summary.json").read_text())
