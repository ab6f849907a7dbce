"""What every benchmark does: interleaved timing, a table, and a JSON file that says where its figures come from."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from atomic import write_atomically

__all__ = ["Timing", "arguments", "interleaved", "print_table", "ratio", "write_json"]

PAUSE = 0.02
"""Seconds before a turn: OpenMP's threads spin for some milliseconds after their work."""

WARM_UP = 3
"""Rounds that are not timed, before those that are."""

PACKAGES = ("torch", "numpy", "normflows", "torchflows", "zuko")


@dataclass(frozen=True)
class Timing:
    """The seconds of one contestant in every round, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ratio(slow: Timing, fast: Timing) -> tuple[float, float, float]:
    """The median of slow / fast, with its quartiles: round by round, so that the machine's drift cancels."""
    ratios = [a / b for a, b in zip(slow.seconds, fast.seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def interleaved(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Time each contestant once a round, A B C A B C ..., on the CPU.

    A turn is a pause, then the work twice, of which the second is timed. So it is timed as in a loop that does nothing
    else: the previous contestant's threads, which spin on after their work, are asleep, and this one's data are cached.

    Args:
        contestants: a name and what to time.
        rounds: timed rounds, after `WARM_UP` that are not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in tqdm(range(WARM_UP + rounds), unit="round", leave=False, disable=None):
        for name, work in contestants.items():
            time.sleep(PAUSE)
            work()
            began = time.perf_counter()
            work()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def arguments(description: str, name: str, results: str = "json") -> argparse.ArgumentParser:
    """A command line with what all benchmarks take: `--threads`, and `--json` or what else their results are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    file = Path(f"outputs/benchmarks/{name}.{results}")
    parser.add_argument(f"--{results}", type=Path, default=file, help="file to write")
    return parser


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table that Markdown understands as well."""
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for index, row in enumerate(texts):
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write_json(path: Path, threads: int, results: Any) -> None:
    """Write `results` with the machine, the threads they were made with, and the versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    about = {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(about, indent=1) + "\n").encode())
    print(f"written to {path}")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()
