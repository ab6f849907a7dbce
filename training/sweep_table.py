"""The rows of a sweep, one in each run's folder, and the table they make."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments import ArgumentError
from atomic import locked, write_atomically
from training.figures import with_error

__all__ = ["ROW", "SWEEP", "SweepRow", "differences", "in_words", "of_data", "read_rows", "write_table"]

ROW = "row.json"  # in the folder of each of its runs: see SweepRow
SWEEP = "sweep.json"  # in the folder of a sweep: what was typed for it
OF_EPOCHS = ("plots", "densities", "tensorboard")  # folders in a run's, of many files
GROUPS = ("flow", "data", "estimator", "optimizer", "experiment", "trainer")
"""Settings that are shown by their value alone, which is a name: `iresnet`, not `flow=iresnet`."""
FIRST_COLUMNS = ("kl", "kl_stderr", "nll", "lipschitz", "inverse_error", "seconds", "parameters")


@dataclass
class SweepRow:
    """What a sweep knows of one of its runs, kept in the run's folder as row.json from the run's start.

    Attributes:
        number: of the run in the sweep, from 0.
        overrides: what was typed for it.
        error: why it failed; None if it did not.
        figures: those of its summary.json, once it has ended.
    """

    folder: Path
    number: int
    overrides: list[str]
    error: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.error is not None or bool(self.figures)

    @property
    def measure(self) -> str:
        """What the run is judged by: `kl`, or `nll` where its data's density is not known."""
        return "nll" if self.figures and self.figures.get("kl") is None else "kl"

    @property
    def merit(self) -> float:
        """KL(target || model) in nats, or the NLL where that is not known; not a number where the run has none."""
        return float(self.figures.get(self.measure, math.nan))

    @property
    def rank(self) -> tuple[bool, bool, float, int]:
        """What rows are sorted by: the lowest KL first, then the lowest NLL of those that have no KL, then the rest."""
        return math.isnan(self.merit), self.measure == "nll", self.merit, self.number

    @property
    def merit_in_words(self) -> str:
        """The merit with its standard error; empty where the run has none."""
        return with_error(self.merit, self.figures[f"{self.measure}_stderr"]) if self.figures else ""

    @property
    def headline(self) -> str:
        """The merit after its name, such as `KL 0.0123 ± 0.0004`; empty where the run has none."""
        return f"{self.measure.upper()} {self.merit_in_words}" if self.figures else ""

    @classmethod
    def read(cls, folder: Path) -> SweepRow | None:
        """The row of a run's folder; None where there is none.

        Raises:
            ArgumentError: the file there is not a row.
        """
        try:
            return cls(folder, **json.loads((folder / ROW).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            raise ArgumentError("resume", "a sweep's folder as train.py -m left it", f"'{folder / ROW}'") from error

    def write(self) -> None:
        row = {"number": self.number, "overrides": self.overrides, "error": self.error, "figures": self.figures}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / ROW, (json.dumps(row, indent=2) + "\n").encode())

    @property
    def settings(self) -> dict[str, str]:
        """The overrides by name, without a `+` or `++` before it; of one name the last counts."""
        return dict(item.lstrip("+").partition("=")[::2] for item in self.overrides)


def read_rows(sweep: Path) -> list[SweepRow]:
    """The rows of all runs that have begun, by number; those of sweeps in folders within are not its own."""
    rows = []
    for path, folders, files in os.walk(sweep):
        folder = Path(path)
        if SWEEP in files and folder != sweep:
            folders.clear()
        elif ROW in files:
            rows.append(SweepRow.read(folder))
            folders[:] = [name for name in folders if name not in OF_EPOCHS]
    return sorted((row for row in rows if row is not None), key=lambda row: row.number)


def write_table(sweep: Path) -> None:
    """Write summary.csv: a row for each run that has ended, the best first by `SweepRow.rank`, failed ones last.

    Settings that tell runs apart have a column each, unless the summaries have one of that name.
    """
    with _alone(sweep):
        rows = sorted((row for row in read_rows(sweep) if row.ended), key=lambda row: row.rank)
        found = dict.fromkeys(key for row in rows for key in row.figures)
        keys = [*(key for key in FIRST_COLUMNS if key in found), *(key for key in found if key not in FIRST_COLUMNS)]
        told_apart = differences(rows)
        settings = [key for key in (told_apart[0] if rows else ()) if key not in found]
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["number", "overrides", *keys, *settings, "error"])
        for row, told in zip(rows, told_apart, strict=True):
            cells = [*(row.figures.get(key) for key in keys), *(told[key] for key in settings)]
            writer.writerow([row.number, " ".join(row.overrides), *cells, row.error])
        write_atomically(sweep / "summary.csv", table.getvalue().encode(errors="replace"))  # paths may be no text


@contextlib.contextmanager
def _alone(sweep: Path) -> Iterator[None]:
    """Wait for the sweep's other processes to leave the table: two that write at once would lose each other's rows."""
    with open(sweep / ".summary.lock", "wb") as file, locked(file.fileno(), wait=True):
        yield


def differences(rows: Sequence[SweepRow]) -> list[dict[str, str]]:
    """The settings that are not the same in all of `rows`, with each one's values: those that tell runs apart."""
    settings = [row.settings for row in rows]
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    differing = [key for key in keys if len({of_run.get(key) for of_run in settings}) > 1]
    return [{key: of_run.get(key) or "default" for key in differing} for of_run in settings]


def of_data(difference: dict[str, str]) -> dict[str, str]:
    """The differences that change the target within one choice of `data`: `data.noise`, but not `data` itself."""
    return {key: value for key, value in difference.items() if key.startswith("data.")}


def in_words(difference: dict[str, str]) -> list[str]:
    """Differences for a narrow place: `iresnet` for flow=iresnet, `lr=0.0123` for optimizer.lr=0.01234567."""
    short = [key.rpartition(".")[2] for key in difference]
    words = []
    for (key, value), name in zip(difference.items(), short):
        with contextlib.suppress(ValueError):  # numbers that a search has drawn have more digits than anyone reads
            value = f"{float(value):.4g}" if len(value) > 8 and not value.isdigit() else value
        words.append(value if key in GROUPS else f"{name if short.count(name) == 1 else key}={value}")
    return words
