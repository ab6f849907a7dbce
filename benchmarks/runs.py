"""Ordinary runs of train.py, as benchmarks take them: made once, then read."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from training.defaults import CONFIGS
from training.run_folder import load_metrics, load_summary

__all__ = ["digest", "run"]


def digest(overrides: Sequence[str]) -> str:
    """Tells settings apart: eight letters."""
    return hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:8]


def run(parent: Path, name: str, overrides: Sequence[str]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train without pictures, unless it was done before; return the rows of metrics.csv and the summary.

    The run's folder, below `parent`, is called `name` and a digest of the settings. A run that was stopped begins anew,
    since a resumed one would have started twice.
    """
    folder = parent / f"{name}-{digest(overrides)}"
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        where = f"hydra.run.dir={QuotedString(str(folder), Quote.single).with_quotes()}"
        subprocess.run(
            [sys.executable, str(CONFIGS.parent / "train.py"), "trainer.plots=false", where, *overrides],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return load_metrics(folder), load_summary(folder)
