"""The folder of a run: opened for a new run, for the rest of one, or to read what it holds."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from arguments import ArgumentError
from atomic import locked, remove_unfinished
from datasets.points import window_of
from datasets.target import Window
from flows import Flow
from flows.bijection import InverseError
from flows.compiled import program
from flows.lipschitz import LipschitzLinear
from flows.precision import evaluation_device
from flows.standardize import Standardize
from training.checkpoint import belonging_together, load_checkpoint
from training.configuration import build_flow, check_config, load_config
from training.density_grid import load_target
from training.diagnosis import ContractionError, NonFiniteError, first_not_finite
from training.sweep_table import ROW, SWEEP

__all__ = [
    "STOPPED",
    "LoadedRun",
    "UnwritableError",
    "describe",
    "figure_path",
    "load_metrics",
    "load_run",
    "load_summary",
    "open_folder",
    "resuming",
]


class UnwritableError(RuntimeError):
    """A file of the run could not be written: a full disk, say. What is in the folder is whole."""


STOPPED = (NonFiniteError, ContractionError, InverseError, UnwritableError)
"""What ends a run that began: the message says all, in one line."""


def resuming(folder: Path) -> str:
    """The override `resume=...`, quoted for a shell, that goes on with the run or sweep in `folder`."""
    path = folder.as_posix()
    if not re.fullmatch(r"[\w/.:@%+*$?| -]+", path, re.ASCII):  # Hydra accepts other characters only in quotes
        path = QuotedString(path, Quote.single).with_quotes()
    setting = f"resume={path}"
    return subprocess.list2cmdline([setting]) if os.name == "nt" else shlex.quote(setting)


@contextlib.contextmanager
def open_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Make the run folder, clear it of what killed processes left, and hold it while entered: two runs would mix.

    Raises:
        ArgumentError: a new run meets an old one there, another process is at work there, or it cannot be written.
        UnwritableError: while entered, a file could not be written.
    """
    setting = "resume" if resume else "hydra.run.dir"
    with contextlib.ExitStack() as on_leaving:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":  # elsewhere a folder cannot be opened, and is not held
                handle = os.open(folder, os.O_RDONLY)
                on_leaving.callback(os.close, handle)
                on_leaving.enter_context(locked(handle, wait=False))
            if not resume and (folder / "config.yaml").exists():
                accepts = f"a folder without a run (or go on with {resuming(folder)})"
                raise ArgumentError(setting, accepts, f"'{folder}'")
            if (folder / SWEEP).exists() and not (folder / ROW).exists():
                raise ArgumentError(setting, "a folder that is not a sweep's", f"'{folder}'")
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            for name in ("plots", "densities"):
                (folder / name).mkdir(exist_ok=True)
                remove_unfinished(folder / name)
            remove_unfinished(folder)
        except BlockingIOError as error:
            raise ArgumentError(setting, "a folder that no other process is training in", f"'{folder}'") from error
        except OSError as error:
            raise ArgumentError(setting, "a folder that can be written", f"'{folder}': {error.strerror}") from error
        try:
            yield
        except OSError as error:
            begun = (folder / "config.yaml").exists()
            then = f"; every file in {folder} is whole: go on with: python train.py {resuming(folder)}" if begun else ""
            raise UnwritableError(f"stopped: {error}{then}") from error


def describe(config: DictConfig, device: torch.device, flow: Flow) -> dict[str, Any]:
    """What a summary says of a run beside its figures: the choices, and all that could make it come out otherwise."""
    settings = {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key != "resume"}
    return {
        "flow": config.choices.flow,
        "data": config.choices.data,
        "estimator": config.choices.estimator,
        "optimizer": config.choices.optimizer,
        "seed": config.seed,
        "device": str(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # rounding depends on it
        "threads": torch.get_num_threads(),
        "compiled": any(
            getattr(part, "compiled", False) for part in (*flow.modules(), getattr(flow, "estimator", None))
        ),
        "config_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command in the project's own folder; None where there is no git or no repository."""
    folder, git = Path(__file__).resolve().parent.parent, program("git")
    if git is None:
        return None
    done = subprocess.run([git, *arguments], cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def figure_path(folder: Path, epoch: int) -> Path:
    """Where an epoch's figure is."""
    return folder / "plots" / f"epoch_{epoch:04d}.png"


def load_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, an empty field as not a number; none where the run ended before its first epoch did."""
    try:
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
            return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def load_summary(folder: Path) -> dict[str, Any]:
    """The summary.json of a run that has ended."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class LoadedRun:
    """A run read back: its flow, with the averaged weights, in evaluation mode."""

    folder: Path
    flow: Flow
    config: DictConfig

    @property
    def title(self) -> str:
        return f"{self.config.choices.flow} on {self.config.choices.data}"

    @property
    def window(self) -> Window:
        """The rectangle that the run's density was drawn in; where that is not kept, one about its samples.

        Raises:
            ArgumentError: names `run`: what is kept cannot be read.
        """
        with belonging_together(self.folder, "run"):
            if (drawn := load_target(self.folder)) is not None:
                return drawn.window
        return window_of(self.flow.sample(10_000, torch.Generator().manual_seed(0)).cpu())


def load_run(folder: Path | str, device: torch.device | str = "cpu") -> LoadedRun:
    """Load the flow of a run folder, ready for `flow.log_prob(x)` and `flow.sample(n)`, and certified.

    This works at any moment, even while the run trains: a checkpoint may be from the middle of an epoch, where spectral
    norms are only power iteration's estimates, so they are made exact here.

    Args:
        folder: what train.py wrote.
        device: where to put the flow, if float64 is there; else it is put on the CPU.

    Raises:
        ArgumentError: names `run`: `folder` is no run folder, or its checkpoint is not of this configuration, or not
            certified.
    """
    folder = Path(folder)
    config = load_config(folder, "run")
    check_config(config)
    state = load_checkpoint(folder, "run")
    flow = build_flow(config, stored=True)
    with belonging_together(folder, "run"):
        flow.load_state_dict(state["learner"]["average"])
        if name := first_not_finite([*flow.named_parameters(), *flow.named_buffers()]):
            raise ValueError(f"{name} is not finite")
        for module in flow.modules():
            if isinstance(module, Standardize) and not (module.std > 0).all():
                raise ValueError("a standard deviation that is not above zero")
            if isinstance(module, LipschitzLinear):
                module.converge()
        if not all(constant < 1 for constant in flow.lipschitz_constants()):
            raise ValueError("a block without a certified inverse")
    device = evaluation_device(torch.device(device))
    if config.get("compile") and device.type == "cpu":  # elsewhere only training is compiled
        flow.compile_for(device)
    return LoadedRun(folder, flow.to(device).eval().requires_grad_(False), config)
