"""The commands as functions: real arguments in, exit status, output and files out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import sample
import train
from flows.compiled import program
from training.command_line import command

PROJECT = Path(__file__).resolve().parent.parent
COMPILER = any(program(name) for name in ("cc", "gcc", "clang"))
TINY = (
    "flow.blocks=2", "flow.width=8", "trainer.epochs=2", "trainer.steps_per_epoch=5", "trainer.batch_size=32",
    "trainer.held_out=500", "device=cpu", f"compile={str(COMPILER).lower()}",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def summary(self) -> dict:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv, the columns of time aside: those differ from run to run."""
        header, *lines = (self.folder / "metrics.csv").read_text().splitlines()
        rows = [dict(zip(header.split(","), line.split(","))) for line in lines]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    @property
    def checkpoint(self) -> dict:
        return torch.load(self.folder / "checkpoint.pt", weights_only=True)


def same_weights(a: Result, b: Result) -> bool:
    first, second = a.checkpoint["learner"], b.checkpoint["learner"]
    return all(
        torch.equal(first[which][name], second[which][name]) for which in ("flow", "average") for name in first[which]
    )


def table(sweep: Path) -> list[dict[str, str]]:
    """The rows of a sweep's summary.csv."""
    with open(sweep / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def composed(*overrides: str) -> DictConfig:
    """The configuration of train.py, without Hydra's own part, to which `${hydra:...}` in it refers."""
    with hydra.initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        config = hydra.compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


@pytest.fixture
def compiler() -> None:
    if not COMPILER:
        pytest.skip("there is no C compiler")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny networks are faster so, and tests in parallel do not fight."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Whatever was tested before in this process."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test of a file that needs a run makes it, for the others to copy."""
    return tmp_path_factory.mktemp("made_once") / "run"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run("train", *overrides, folder=...)` runs a command in this process, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run_command(script: str, *arguments: str, folder: Path | None = None) -> Result:
        if script == "train" and folder is not None:
            arguments = (*arguments, f"hydra.run.dir={folder}")
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        capfd.readouterr()
        status = 0
        try:
            if script == "train":
                command(train.train, train.Settings, "train", train.RESUMABLE)
            else:
                command(sample.sample, sample.Settings, "sample")
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return Result(status, out, err, folder or tmp_path)

    return run_command


def start(script: str, *arguments: str, cwd: Path, threads: str | None = "1") -> subprocess.Popen:
    """Start a command in a process of its own, as a person would; `threads` that it may use, None to leave it open."""
    ours = ("PYTHONUNBUFFERED", "OMP_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.Popen(
        [sys.executable, str(PROJECT / f"{script}.py"), *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | ({} if threads is None else {"OMP_NUM_THREADS": threads}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
