"""Sample a trained flow: `python sample.py run=outputs/resflow-moons/2026-01-01_12-00-00 n=10000`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from omegaconf import DictConfig

from arguments import ArgumentError, Range
from atomic import write_atomically
from plots.samples import draw_samples
from training.command_line import command
from training.configuration import choose_device
from training.evaluation import log_prob
from training.run_folder import load_run


@dataclass(frozen=True)
class Settings:
    """The settings at the top level."""

    run: str
    n: Annotated[int, Range(ge=1)]
    seed: Annotated[int, Range(ge=0)]
    format: Literal["npy", "csv"]
    out: str | None
    device: str


@torch.no_grad()
def sample(config: DictConfig, settings: Settings, folder: Path) -> None:
    """Write samples of a run's flow, their log-densities in nats, and a picture of both."""
    run = load_run(Path(settings.run), "run", choose_device(settings.device))
    out = Path(settings.run if settings.out is None else settings.out)
    samples = run.flow.sample(settings.n, torch.Generator().manual_seed(settings.seed))
    x, log_q = samples.cpu().numpy().astype(np.float32), log_prob(run.flow, samples).cpu().numpy().astype(np.float32)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / f"samples.{settings.format}", x, "x,y")
        _write(out / f"log_prob.{settings.format}", log_q, "log_prob")
        title = f"{settings.n:,} samples of {run.title}"
        draw_samples(out / "samples.png", x, log_q, run.window, title)
    except OSError as error:
        raise ArgumentError("out", "a folder that can be written", f"'{out}': {error.strerror}") from error
    print(f"samples.{settings.format}, log_prob.{settings.format} and samples.png in {out}")


def _write(path: Path, array: np.ndarray, header: str) -> None:
    buffer = io.BytesIO()
    if path.suffix == ".npy":
        np.save(buffer, array)
    else:
        np.savetxt(buffer, array, fmt="%.9g", delimiter=",", header=header, comments="")  # 9 digits keep a float32
    write_atomically(path, buffer.getvalue())


# Hydra's shell completion asks only scripts that hold the text @hydra.main: this comment is for it to find.
if __name__ == "__main__":
    command(sample, Settings, "sample")
