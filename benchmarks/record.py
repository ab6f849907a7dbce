"""Results of runs in a CSV file with a row for each, so that a run with a row need never be made again."""

from __future__ import annotations

import csv
import dataclasses
import io
import threading
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atomic import write_atomically

__all__ = ["Clock", "Job", "Merit", "Record"]


class Clock(NamedTuple):
    """Which time a run has, and how much of the machine."""

    seconds: float
    threads: int
    at_once: int

    def __str__(self) -> str:
        return f"{self.seconds:g} s, {self.threads} thread{'s' * (self.threads > 1)}, {self.at_once} at once"


class Merit(NamedTuple):
    """KL(target || model) of a run, in nats, and its standard error."""

    kl: float
    stderr: float


@dataclass(frozen=True, order=True)
class Job:
    """A run of train.py."""

    seconds: float
    density: str
    variant: str
    seed: int
    threads: int
    at_once: int
    settings: str
    """Digest of the settings: a variant of the same name may have others later."""

    @property
    def clock(self) -> Clock:
        return Clock(self.seconds, self.threads, self.at_once)


JOB = typing.get_type_hints(Job)
RESULTS = ("kl", "kl_stderr", "steps", "torch", "cpu_capability", "git_commit")  # of summary.json


class Record:
    """The rows of a CSV file, which is rewritten, and always whole, whenever one joins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rows: dict[Job, dict[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    job = Job(**{name: kind(row[name]) for name, kind in JOB.items()})
                    self._rows[job] = {name: row.get(name, "") for name in RESULTS}  # earlier versions lack some

    def __contains__(self, job: Job) -> bool:
        return job in self._rows

    def __iter__(self) -> Iterator[Job]:
        return iter(sorted(self._rows))

    def merit(self, job: Job) -> Merit:
        """
        Raises:
            KeyError: there is no such run.
        """
        return Merit(*(float(self._rows[job][name]) for name in ("kl", "kl_stderr")))

    def add(self, job: Job, summary: dict[str, Any]) -> None:
        """Keep what a run's summary.json says; to be called from any thread."""
        with self._lock:
            self._read()  # another process may have added some
            self._rows[job] = {name: summary.get(name, "") for name in RESULTS}
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow([*JOB, *RESULTS])
            for each in self:
                table.writerow([*dataclasses.astuple(each), *(self._rows[each][name] for name in RESULTS)])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, text.getvalue().encode())
