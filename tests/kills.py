"""Runs killed at random moments, and resumed: `python -m tests.kills 100`, or in parts, `25 0`, `25 25`, ...

Each must end as a run never interrupted: the same metrics, weights, frames and figures, bit for bit; and what a kill
leaves behind must open.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from tests.conftest import TINY, start

SETTINGS = (*TINY, "trainer.epochs=3", "trainer.steps_per_epoch=30", "threads=1", "seed=5")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OF_TIME = ("seconds", "train_seconds", "plot_seconds", "git_commit", "git_dirty")  # which may change meanwhile


def whole(folder: Path) -> Path:
    """Train without interruption in `folder`; the seconds it took are left in a file beside."""
    run = folder / "whole"
    process = _start(run)
    began = time.perf_counter()
    _, err = process.communicate()
    assert process.returncode == 0, err
    (folder / "seconds").write_text(str(time.perf_counter() - began))
    return run


def _start(folder: Path) -> subprocess.Popen:
    """Start a run in `folder`, and return when its settings are written: before lie only imports."""
    process = start("train", f"hydra.run.dir={folder}", *SETTINGS, cwd=folder.parent)
    while not (folder / "config.yaml").exists() and process.poll() is None:
        time.sleep(0.002)
    return process


def kill_and_resume(reference: Path, folder: Path, chance: random.Random) -> str:
    """Train in `folder`, stop it at a moment of `chance`, resume it, and compare; return what was done.

    Raises:
        AssertionError: something cannot be read after the kill, or the end is not that of `reference`.
    """
    number, seconds = chance.choice(SIGNALS), float((reference.parent / "seconds").read_text())
    delay = chance.uniform(0, 0.9 * seconds)
    folder.parent.mkdir(parents=True, exist_ok=True)
    while not _at_work(process := _start(folder), delay):  # the machine is faster than it was
        assert process.returncode == 0, process.communicate()[1]
        shutil.rmtree(folder)
        delay /= 2
    process.send_signal(number)
    _, err = process.communicate()
    assert "Traceback" not in err, err
    assert process.returncode in (0, -signal.SIGKILL, 130, 143, -signal.SIGTERM, -signal.SIGINT), err
    epochs = read_all(folder)
    _train(f"resume={folder}", cwd=folder.parent)
    read_all(folder)
    assert not list(folder.rglob(".*")), "temporary files are left"
    assert end(folder) == end(reference)
    return f"{number.name} after {delay:.2f} s, with {epochs} epochs done"


def _at_work(process: subprocess.Popen, delay: float) -> bool:
    """Whether it still is after so many seconds."""
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        return True
    return False


def _train(*arguments: str, cwd: Path) -> None:
    process = start("train", *arguments, cwd=cwd)
    _, err = process.communicate()
    assert process.returncode == 0, err


def read_all(folder: Path) -> int:
    """Open every file of a run folder; return how many epochs its metrics hold."""
    epochs = 0
    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue  # a temporary file that was never renamed
        if path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                for frame in range(getattr(image, "n_frames", 1)):
                    image.seek(frame)
                    image.load()
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            epochs = len(list(csv.DictReader(path.open())))
        elif path.suffix in (".npy", ".npz"):
            np.load(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:
            yaml.safe_load(path.read_text())
    return epochs


def end(folder: Path) -> dict[str, Any]:
    """All that a run leaves, times aside."""
    rows = [
        {k: v for k, v in row.items() if k not in OF_TIME} for row in csv.DictReader((folder / "metrics.csv").open())
    ]
    summary = {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k not in OF_TIME}
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["learner"]
    return {
        "rows": rows,
        "summary": summary,
        "weights": {
            f"{part}.{key}": value.numpy().tobytes()
            for part in ("flow", "average")
            for key, value in weights[part].items()
        },
        "densities": {path.name: path.read_bytes() for path in (folder / "densities").iterdir()},
        "gifs": [(folder / name).read_bytes() for name in ("density.gif", "transport.gif")],
        "pictures": sorted(path.name for path in (folder / "plots").iterdir() if not path.name.startswith(".")),
    }


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = whole(folder)
        for kill in tqdm(range(first, first + n), unit="kill", disable=None):
            print(f"{kill}: {kill_and_resume(reference, folder / str(kill), random.Random(kill))}", flush=True)
    print(f"{n} kills: {n} resumed to the identical end, 0 unreadable files")


if __name__ == "__main__":
    main()
