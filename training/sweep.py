"""Sweeps: every run leaves a row as it ends, and the rows make a table and pictures."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from arguments import ArgumentError
from atomic import locked, write_atomically
from training.configuration import load_config
from training.diagnosis import OUT_OF_MEMORY, is_of_memory
from training.interruption import SIGPIPE, Interrupted, stop_signals
from training.report import write_sweep_report
from training.run_folder import STOPPED, UnwritableError, load_summary, resuming
from training.sweep_table import SWEEP, SweepRow, differences, in_words, of_data, read_rows, write_table

__all__ = ["Run", "Sweep", "SweepCallback", "belongs_to_sweep", "combinations", "finish"]

Run = Callable[[DictConfig, Path], float | None]
"""Makes one run, of a configuration in a folder; returns what it is judged by."""

FOREIGN = ("_target_", "custom_search_space")
EXPECTED = (ArgumentError, *STOPPED)
"""Errors that say all in their one line."""


class SweepCallback(Callback):
    """Hydra's callback: a row and the table after each run, in whichever process it ran; the pictures at the end."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        row = SweepRow.read(Path(config.hydra.runtime.output_dir))
        if row is None or row.overrides != list(config.hydra.overrides.task):
            return  # the folder was another run's: its row stays, and the error ends the sweep
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            if is_of_memory(error):
                row.error = OUT_OF_MEMORY
            elif isinstance(error, EXPECTED):
                row.error = " ".join(str(error).split())
            else:
                row.error = " ".join(repr(error).split())
                traceback.print_exception(error)
            print(f"run {row.number} failed: {row.error}", file=sys.stderr)
            # To Hydra it has ended, without a result: so the others go on, and a search counts a failed trial.
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED
        elif job_return.return_value is not None:  # a failed trial of a search stays what it was
            with contextlib.suppress(FileNotFoundError):  # while the run is trained longer: its old figures stay
                row.figures = load_summary(row.folder)
            row.error = None
        # Hydra would make a warning of an error here. What is missing is found, and the table tried again, in the end.
        try:
            row.write()
        except OSError as error:
            print(f"the result of run {row.number} cannot be kept: {error}", file=sys.stderr)
        try:
            write_table(Path(config.hydra.sweep.dir))
        except OSError as error:
            print(f"the table cannot be written: {error}", file=sys.stderr)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        finish(Path(config.hydra.sweep.dir))


class Sweep:
    """The folder of a sweep, and what was typed for it.

    Attributes:
        options: options of the command line that all its runs need, such as --config-dir.
        where: overrides that choose or set its launcher.
        files: digests of its data files when it began, by their paths.
        begun_in: the folder that paths of data are relative to.
        is_submitted: whether its runs are jobs of a cluster, which go on when the process that waits for them ends.
        is_here: whether its runs are made in this process.
        is_search: whether the results of earlier runs decide which runs are made next.
    """

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides = folder.resolve(), overrides
        self.begun_in = os.getcwd()
        self.options: list[str] = []
        self.where: list[str] = []
        self.files: dict[str, str] = {}
        self.is_submitted, self.is_here, self.is_search = False, True, False

    @classmethod
    def stored(cls, folder: Path) -> Sweep:
        """A sweep that was begun earlier.

        Raises:
            ArgumentError: there is none in `folder`.
        """
        accepts = f"a folder written by train.py -m, with its {SWEEP}"
        try:
            content = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
            overrides, files = content["overrides"], dict(content.get("files", {}))
            # A file may come from anyone: it may choose settings, not name code to run.
            foreign = [
                item.input_line for item in OverridesParser.create().parse_overrides(overrides) if _foreign(item)
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HydraException) as error:
            raise ArgumentError("resume", accepts, f"'{folder}'") from error
        if foreign:
            raise ArgumentError("resume", accepts, f"'{folder}', whose {SWEEP} speaks of {foreign[0]}")
        sweep = cls(folder, overrides)
        sweep.begun_in, sweep.files = str(content.get("begun_in", sweep.begun_in)), files
        return sweep

    def create(self) -> None:
        """Make the folder, and write down what was typed.

        Raises:
            ArgumentError: another sweep is there, or the folder cannot be written.
        """
        path = self.folder / SWEEP
        kept = {"overrides": self.overrides, "begun_in": self.begun_in, "files": self.files}
        content = json.dumps(kept, indent=2) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                path.touch(exist_ok=False)  # of two that begin at once, one does
            except FileExistsError:
                accepts = f"a folder without a sweep (or go on with -m {resuming(self.folder)})"
                raise ArgumentError("hydra.sweep.dir", accepts, f"'{self.folder}'") from None
            try:
                write_atomically(path, content.encode())
            except BaseException:
                path.unlink()
                raise
        except OSError as error:
            accepts = "a folder that can be written"
            raise ArgumentError("hydra.sweep.dir", accepts, f"'{self.folder}': {error.strerror}") from error

    def exists(self) -> bool:
        """Whether there is one in the folder."""
        return (self.folder / SWEEP).exists()

    def run(self, config: DictConfig, run: Run) -> float | None:
        """Begin one of its runs, go on with it, or return its earlier result; a launcher calls this, in any process.

        Raises:
            ArgumentError: its folder holds a run of other settings.
        """
        job = HydraConfig.get()
        folder, overrides = Path(job.runtime.output_dir), list(job.overrides.task)
        row = SweepRow.read(folder)
        if row is not None and not row.figures:
            _wait_for_others(folder)
            row = SweepRow.read(folder)
        if row is None:
            row = SweepRow(folder, int(job.job.num), overrides)
            try:
                row.write()
            except OSError as error:
                raise UnwritableError(f"{self._how_to_go_on('before a run')} ({error})") from error
        elif row.overrides != overrides:
            got = f"'{folder}', which is of {' '.join(row.overrides)} where {' '.join(overrides)} should be"
            raise ArgumentError("resume", "a sweep that runs as it did before", got)
        if row.figures:
            return row.merit
        if row.error is not None and self.is_search:
            return None  # the search is retraced: its later trials were chosen knowing that this one had failed
        if (folder / "config.yaml").exists():
            config = load_config(folder, "resume")
            config.resume = str(folder)
        elif isinstance(path := config.data.get("path"), str):
            config.data.path = os.path.join(self.begun_in, os.path.expanduser(path))
            if "sha256" in config.data and config.data.sha256 is None:  # or runs of one table could be of other data
                config.data.sha256 = self.files.get(os.path.abspath(config.data.path))
        try:
            with contextlib.nullcontext() if self.is_here else _named(row.number):
                return run(config, folder)
        except Interrupted as stop:
            raise Interrupted(stop.number, self._how_to_go_on(f"in run {row.number}")) from None
        except (UnwritableError, BrokenPipeError) as error:
            if BrokenPipeError in (type(error), type(error.__cause__)):  # nobody reads what the next would say either
                raise Interrupted(SIGPIPE, self._how_to_go_on(f"in run {row.number}")) from error
            raise

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """While entered, a signal that meets no run at work ends the sweep at once. Nothing is lost by that."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.is_submitted:
                when = "stopped waiting; what was submitted may still run: when it has ended, go on with"
                raise Interrupted(number, f"{when}: {self.command}")
            if not self.is_here:
                when = "stopped; runs at work keep what they had after their last epoch; go on with"
                raise Interrupted(number, f"{when}: {self.command}")
            raise Interrupted(number, self._how_to_go_on("between runs"))

        previous = {number: signal.signal(number, stop) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _how_to_go_on(self, where: str) -> str:
        return f"stopped {where}, all saved; go on with: {self.command}"

    @property
    def command(self) -> str:
        """What to type to go on with it."""
        options, where = map(shlex.quote, self.options), map(shlex.quote, self.where)
        return " ".join(["python train.py -m", *options, resuming(self.folder), *where])

    def all_failed(self) -> bool:
        rows = read_rows(self.folder)
        return bool(rows) and all(row.error is not None for row in rows)

    def report(self) -> None:
        """Say what came out.

        Raises:
            SystemExit: a run failed, or has no result, with status 1.
        """
        rows = read_rows(self.folder)
        failed = sum(1 for row in rows if row.error is not None)
        targets: dict[str, list[SweepRow]] = {}  # of which each has a lowest of its own
        for row, told in zip(rows, differences(rows)):
            if row.figures:
                target = in_words({"data": row.figures["data"], **of_data(told)})
                targets.setdefault(" ".join(target), []).append(row)
        for target, runs in targets.items():
            best, on = min(runs, key=lambda row: row.rank), f" on {target}" if len(targets) > 1 else ""
            print(f"lowest {best.headline} nats{on}, in run {best.number}: {' '.join(best.overrides)}")
        print(f"{len(rows)} run{'s' * (len(rows) != 1)}; table, sheets and report in {self.folder}")
        if failed:
            again = "" if self.is_search else f"; to try them again: {self.command}"
            print(f"{failed} of {len(rows)} runs failed: see the last rows of summary.csv{again}", file=sys.stderr)
        if lost := sum(1 for row in rows if not row.ended):
            print(f"{lost} of {len(rows)} runs have no result; {self._how_to_go_on('short')}", file=sys.stderr)
        if failed or lost:
            raise SystemExit(1)


def finish(folder: Path) -> None:
    """Make a sweep's table, sheets and report.

    Raises:
        SystemExit: one of them cannot be made, with status 1: Hydra would make a warning of any other error, and
            the sweep would end as if all was well.
    """
    from training.sheets import draw_sheets  # here, because matplotlib takes a while to import

    lost = False
    for name, make in (("table", write_table), ("sheets", draw_sheets), ("report", write_sweep_report)):
        try:
            make(folder)
        except Exception as error:  # the others are made
            lost, why = True, str(error) if isinstance(error, (OSError, *EXPECTED)) else repr(error)
            print(f"all runs have ended, but the sweep's {name} cannot be made: {why}", file=sys.stderr)
    if lost:
        raise SystemExit(1)


class _Named(io.TextIOBase):
    """What is written to it goes to `stream`, a name before each line. It is no terminal, so that no bar is drawn."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._begins = stream, name, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._name * self._begins + line)
            self._begins = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # such as `reconfigure`, by which lines come at once
        return getattr(self._stream, name)


@contextlib.contextmanager
def _named(number: int) -> Iterator[None]:
    """While entered, lines say which run they are of: those of several, at work at once, come in between each other."""
    output, errors = (_Named(stream, f"run {number}: ") for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        yield


def _wait_for_others(folder: Path) -> None:
    """Return when no other process is at work in `folder`: a worker may have outlived the sweep that it was of.

    One that has yet to open the folder is not seen: then the later of the two fails.
    """
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    handle = os.open(folder, os.O_RDONLY)
    try:
        with locked(handle, wait=True):
            pass
    finally:
        os.close(handle)


def belongs_to_sweep(key: str) -> bool:
    """Whether a Hydra setting is kept with the sweep: it says what is searched, or how the runs' folders are named.

    Hydra's other settings hold for one sitting only. A sweep.json that has one is refused, since it could run code.
    """
    names = ("hydra.sweep.subdir", "hydra.job.name", "hydra.job.config.override_dirname.")
    return key.startswith(("hydra/sweeper", "hydra.sweeper.", *names))


def _foreign(override: Override) -> bool:
    """Whether it could make Hydra build or run something, rather than choose a setting.

    What a run builds is checked with its other settings.
    """
    key, line = override.key_or_group, override.input_line
    if not key.startswith("hydra"):
        return False
    if not belongs_to_sweep(key) or (key.startswith("hydra.sweeper") and "{" in line):
        return True
    return any(word in line for word in FOREIGN)


def combinations(overrides: list[Override], search: bool) -> Iterator[list[str]]:
    """Every combination of the values that `overrides` sweep over.

    Args:
        overrides: of the same setting the last one counts.
        search: whether a sweeper will choose among the values. Then they are not combined: one setting at a time takes
            its other values, while the rest keep their first. The two ends of an interval stand for all of it.

    Raises:
        ArgumentError: an override sweeps over nothing, or over an interval and there is no search.
    """
    values = [*{override.get_key_element(): _values_of(override, search) for override in overrides}.values()]
    if not search:
        yield from (list(choice) for choice in itertools.product(*values))
        return
    first = [choices[0] for choices in values]
    yield first
    for index, choices in enumerate(values):
        yield from ([*first[:index], value, *first[index + 1 :]] for value in choices[1:])


def _values_of(override: Override, search: bool) -> list[str]:
    """What an override sweeps over, each value an override of its own; of an interval its ends."""
    key = override.get_key_element()
    if override.is_interval_sweep():
        interval = override.value()
        if not search:
            accepts = "values with commas between them; an interval with hydra/sweeper=optuna"
            raise ArgumentError(override.key_or_group, accepts, repr(override.input_line))
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    if not override.is_sweep_override():
        return [override.input_line]
    try:
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except (ValueError, HydraException):  # a range in steps of zero; a glob of what is no group
        values = []
    if not values:
        raise ArgumentError(override.key_or_group, "one value or more", repr(override.input_line))
    return values
