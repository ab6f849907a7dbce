"""Sweeps: the table, the sheets, and that nothing is lost, whatever fails or stops."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from arguments import ArgumentError
from atomic import locked
from plots.sheet import Sheet
from tests.conftest import TINY, Result, start, table
from training import sheets
from training.command_line import _show_each_line
from training.interruption import Interrupted
from training.overrides import parse
from training.sweep import Sweep, _named, _wait_for_others, combinations
from training.sweep_table import SweepRow, differences, in_words, read_rows

Run = Callable[..., Result]
SHORT = (*TINY, "trainer.plots=false")


def by_number(sweep: Path) -> dict[int, float]:
    return {int(row["number"]): float(row["kl"]) for row in table(sweep)}


BAD = {
    "data=moon,rings": "; got 'moon' (did you mean 'moons'?)",
    "data=moons,ringz": "; got 'ringz' (did you mean 'rings'?)",
    "flow.blocks=2,0": "flow.blocks accepts a whole number at least 1; got 0",
    "flow=iresnet,resflow estimator.n_terms=3": "estimator.n_terms accepts nothing",
    "optimizer.lr=0.1,fast": "optimizer.lr accepts a number",
    "flow=resflow,nice estimator=exact": "estimator accepts nothing: flow=nice takes none",
    "seed=0,1 trainer.cuda_graph=true": "trainer.cuda_graph accepts false here",
    "data.noise=0.1,1e-9": "data.noise accepts at least",
    "device=cpu,tpu": "device accepts auto or a device of this machine",
    "sed=0,1": "sed accepts nothing: there is no such setting",
    "seed=0,1 hydra/launcher=jobib": "hydra/launcher accepts basic | joblib | ",
    "seed=0,1 hydra/launcher=joblib flow.blokcs=3": "flow.blokcs accepts nothing: there is no such setting; got ",
    "seed=0,1 hydra.run.dir=here": "hydra.run.dir accepts nothing with -m",
    "hydra.sweeper.max_batch_size=1,2": "hydra.sweeper.max_batch_size accepts one value; got ",
    "flow=iresnet,resflow seed=0,1 hydra.sweep.subdir=${choices.flow}": "hydra.sweep.subdir accepts a name of its own "
    "for each run; got 'iresnet' for runs 0 and 1",
    "optimizer.lr=interval(1e-3,1e-1)": "optimizer.lr accepts values with commas between them; an interval with",
    "flow=nice,realnvp flow.transforms=6": "flow.transforms accepts ++flow.transforms=... where flow takes several",
    "seed=shuffle(0,1,2)": "seed accepts values in an order that is the same when the sweep is resumed",
    "seed=range(3,1)": "seed accepts one value or more",
    "seed=range(0,4,0)": "seed accepts one value or more",
    "data=glob(nowhere*)": "data accepts one value or more",
    "seed=0,1 hydra.sweeper.max_batch_size=0": "hydra.sweeper.max_batch_size accepts a whole number at least 1 or ",
    "--config-dir nowhere seed=0,1": "--config-dir accepts a folder of configs; got 'nowhere'",
    "--config-path nowhere seed=0,1": "--config-path would leave the project's configs",
    "resume=a,b seed=0": "resume accepts one folder; got 'resume=a,b'",
    "resume=[a]": "resume accepts one folder; got 'resume=[a]'",
    "optimizer.lr=range(0,1,0.0)": "optimizer.lr accepts one value or more",
    "hydra.sweep.dir=/proc/nowhere": "hydra.sweep.dir accepts a folder that can be written",
    "flow=iresnet trainer.epochs=7 hydra.sweep.dir=/proc/nowhere/${choices.flow}-${trainer.epochs}": "hydra.sweep.dir "
    "accepts a folder that can be written; got '/proc/nowhere/iresnet-7'",
    "resume=nowhere": "resume accepts a folder written by train.py -m, with its sweep.json; got 'nowhere'",
}


class TestSweep:
    def test_ends_with_a_table_and_sheets(self, run: Run, tmp_path: Path) -> None:
        result = run("train", "-m", *SHORT, "flow=iresnet,resflow", "data=moons,rings", "hydra.sweep.dir=sweep")
        assert result.status == 0, result.err
        sweep = tmp_path / "sweep"
        rows = table(sweep)
        assert sorted(row["number"] for row in rows) == ["0", "1", "2", "3"]
        kls = [float(row["kl"]) for row in rows]
        assert kls == sorted(kls)
        for row in rows:
            summary = json.loads((sweep / row["number"] / "summary.json").read_text())
            assert f"flow={summary['flow']} data={summary['data']}" in row["overrides"]
            assert {key: row[key] for key in summary} == {key: str(value) for key, value in summary.items()}
            assert row["error"] == ""
        for data in ("moons", "rings"):  # each has a lowest of its own
            best = next(row for row in rows if row["data"] == data)
            ending = f" nats on {data}, in run {best['number']}: {best['overrides']}\n"
            assert re.search(r"^lowest KL \S+ ± \S+" + re.escape(ending), result.out, re.MULTILINE)
        with Image.open(sweep / "sheet.png") as sheet, Image.open(sweep / "sheet.gif") as animation:
            assert sheet.size == animation.size
            assert animation.n_frames == 2
        mixed = run("train", *SHORT, folder=sweep)
        assert mixed.status == 2
        assert "hydra.run.dir accepts a folder that is not a sweep's" in mixed.err
        # Each run is the run that it would have been alone.
        alone = run("train", *SHORT, "flow=resflow", "data=rings", folder=tmp_path / "alone")
        swept = Result(0, "", "", sweep / "3")
        assert swept.rows == alone.rows
        assert swept.summary["config_sha256"] == alone.summary["config_sha256"]
        for name, weight in alone.checkpoint["learner"]["average"].items():
            assert torch.equal(swept.checkpoint["learner"]["average"][name], weight)
        # And its pictures do without what is missing of a run.
        (sweep / "0" / "densities" / "epoch_0002.npy").unlink()
        (sweep / "sheet.gif").unlink()
        assert run("train", "-m", "resume=sweep").status == 0
        assert (sweep / "sheet.gif").exists()

    def test_each_target_has_a_lowest_of_its_own(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = [("++data.noise=0.1 seed=0", 0.2), ("++data.noise=0.1 seed=1", 0.1), ("++data.noise=0.2 seed=0", 0.3)]
        for number, (typed, kl) in enumerate(found):
            figures = {"data": "moons", "kl": kl, "kl_stderr": 0.01}
            SweepRow(tmp_path / str(number), number, typed.split(), None, figures).write()
        Sweep(tmp_path, []).report()
        assert capsys.readouterr().out.splitlines()[:-1] == [
            "lowest KL 0.1000 ± 0.0100 nats on moons noise=0.1, in run 1: ++data.noise=0.1 seed=1",
            "lowest KL 0.3000 ± 0.0100 nats on moons noise=0.2, in run 2: ++data.noise=0.2 seed=0",
        ]

    def test_a_failed_run_is_a_row_and_the_others_go_on(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = train.train

        def failing(config: object, settings: train.Settings, folder: Path) -> float:
            if settings.seed == 1:
                raise RuntimeError("out of\nmemory")
            return plain(config, settings, folder)

        monkeypatch.setattr(train, "train", failing)
        result = run("train", "-m", *SHORT, "seed=0,1,2", "hydra.sweep.dir=sweep")
        assert result.status == 1
        assert "1 of 3 runs failed" in result.err
        rows = table(tmp_path / "sweep")
        assert rows[-1]["number"] == "1"
        assert rows[-1]["error"] == r"RuntimeError('out of\nmemory')"
        assert all(row["kl"] and not row["error"] for row in rows[:2])
        assert (tmp_path / "sweep" / "sheet.png").exists()
        assert "<td>2 of 3</td>" in (tmp_path / "sweep" / "report.html").read_text()  # seeds that the medians are of

        # What failed is tried again; what ended well is not.
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        before = {number: (tmp_path / f"sweep/{number}/summary.json").stat().st_mtime_ns for number in (0, 2)}
        result = run("train", "-m", "resume=sweep")
        assert result.status == 0, result.err
        assert set(by_number(tmp_path / "sweep")) == {0, 1, 2}
        assert before == {number: (tmp_path / f"sweep/{number}/summary.json").stat().st_mtime_ns for number in (0, 2)}

    def test_a_result_that_cannot_be_kept_is_told_of(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a disk that is full when a run has ended, or before one has begun."""
        write, full = SweepRow.write, []

        def write_unless_full(row: SweepRow) -> None:
            if row.number == 1 and bool(row.figures) == full[0]:
                raise OSError(28, "No space left on device", str(row.folder / "row.json"))
            write(row)

        monkeypatch.setattr(SweepRow, "write", write_unless_full)
        settings = ("-m", *SHORT, "trainer.epochs=1", "seed=0,1")
        full[:] = [True]
        result = run("train", *settings, "hydra.sweep.dir=after")
        assert result.status == 1
        assert "the result of run 1 cannot be kept: [Errno 28] No space left on device" in result.err
        assert "1 of 2 runs have no result" in result.err
        assert f"go on with: python train.py -m resume={tmp_path / 'after'}" in result.err
        full[:] = [False]
        result = run("train", *settings, "hydra.sweep.dir=before")
        assert result.status == 1
        assert "No space left on device" in result.err
        assert f"go on with: python train.py -m resume={tmp_path / 'before'}" in result.err
        assert "Traceback" not in result.err
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert run("train", "-m", "resume=after").status == 0
        assert sorted(by_number(tmp_path / "after")) == [0, 1]

    def test_a_table_that_cannot_be_written_is_told_of(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "sweep" / "summary.csv").mkdir(parents=True)
        result = run("train", "-m", *SHORT, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=sweep")
        assert result.status == 1
        assert result.err.count("the table cannot be written: ") == 2
        assert "all runs have ended, but the sweep's table cannot be made: " in result.err
        assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2

    def test_a_reader_who_leaves_stops_it(self, run: Run, tmp_path: Path) -> None:
        """As of `python train.py -m ... | head -1`."""
        process = start("train", "-m", *SHORT, "seed=0,1,2", "hydra.sweep.dir=sweep", cwd=tmp_path)
        process.stdout.close()
        line = process.stderr.read().strip()
        assert process.wait() == 141
        assert line == f"stopped in run 0, all saved; go on with: python train.py -m resume={tmp_path}/sweep"
        assert run("train", "-m", "resume=sweep").status == 0
        assert sorted(by_number(tmp_path / "sweep")) == [0, 1, 2]

    def test_too_little_memory_is_one_line(self, run: Run, tmp_path: Path) -> None:
        result = run("train", "-m", *SHORT, "trainer.held_out=1000000000000000", "seed=0,1", "hydra.sweep.dir=sweep")
        assert result.status == 1
        assert "Traceback" not in result.err
        assert "run 1 failed: these settings need more memory than there is" in result.err

    def test_pictures_that_cannot_be_made_are_told_of(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "sweep" / "sheet.png").mkdir(parents=True)
        result = run("train", "-m", *SHORT, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=sweep")
        assert result.status == 1
        (line,) = result.err.strip().splitlines()
        assert line.startswith("all runs have ended, but the sweep's sheets cannot be made: ")
        assert "sheet.png" in line
        assert (tmp_path / "sweep" / "report.html").exists()
        assert len(table(tmp_path / "sweep")) == 2

    def test_killed_twice_and_resumed_it_is_complete(self, run: Run, tmp_path: Path) -> None:
        settings = (*SHORT, "trainer.epochs=3", "flow=iresnet,resflow", "seed=0,1,2,3", "threads=1")
        sweep = tmp_path / "sweep"
        stops = [
            (("-m", *settings, "hydra.sweep.dir=sweep"), "1/metrics.csv", signal.SIGINT, 130),
            (("-m", "resume=sweep"), "4/metrics.csv", signal.SIGKILL, -9),
        ]
        for arguments, sign, number, status in stops:
            process = start("train", *arguments, cwd=tmp_path)
            while not (sweep / sign).exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            assert process.returncode == status, err
            assert "Traceback" not in err
            assert len(table(sweep)) >= int(sign[0])  # all that had ended by then
            if number == signal.SIGINT:
                assert f"go on with: python train.py -m resume={sweep}" in err
        finished = {path: path.stat().st_mtime_ns for path in sweep.glob("*/summary.json")}
        assert 0 < len(finished) < 8
        result = run("train", "-m", "resume=sweep")
        assert result.status == 0, result.err
        assert sorted(by_number(sweep)) == list(range(8))
        assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
        with Image.open(sweep / "sheet.gif") as animation:
            assert animation.n_frames == 3
        # The runs that were stopped are those that they would have been.
        for number, choices in ((1, ("flow=iresnet", "seed=1")), (4, ("flow=resflow",))):
            alone = run("train", *SHORT, "trainer.epochs=3", "threads=1", *choices, folder=tmp_path / str(number))
            stopped = Result(0, "", "", sweep / str(number))
            assert stopped.rows == alone.rows
            weights, others = (result.checkpoint["learner"]["average"] for result in (stopped, alone))
            assert all(torch.equal(weights[key], others[key]) for key in weights)

    @pytest.mark.parametrize("overrides", BAD)
    def test_bad_input_is_one_line_and_writes_nothing(self, run: Run, tmp_path: Path, overrides: str) -> None:
        result = run("train", "-m", *overrides.split())
        assert result.status == 2
        (line,) = result.err.strip().splitlines()
        assert BAD[overrides] in line
        assert not list(tmp_path.iterdir())

    def test_configs_of_ones_own_are_among_what_goes_on(self, run: Run, tmp_path: Path) -> None:
        own = "Jörg's (own)"
        (tmp_path / own / "data").mkdir(parents=True)
        (tmp_path / own / "data" / "mine.yaml").write_text("_target_: datasets.moons.Moons\nnoise: 0.2\n")
        settings = (*SHORT, "trainer.epochs=30", "data=mine", "seed=0,1", "hydra.sweep.dir=sweep")
        process = start("train", "-m", "--config-dir", own, *settings, cwd=tmp_path)
        while not (tmp_path / "sweep" / "0" / "metrics.csv").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        _, _, command = err.partition("go on with: python train.py ")
        assert run("train", *shlex.split(command)).status == 0
        assert len(table(tmp_path / "sweep")) == 2

    def test_a_glob_sees_configs_of_ones_own(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "own" / "data").mkdir(parents=True)
        (tmp_path / "own" / "data" / "mine.yaml").write_text("_target_: datasets.moons.Moons\nnoise: 0.2\n")
        result = run("train", "-m", "--config-dir", "own", "data=glob(mine*)", "flow.blocks=0")
        assert result.status == 2
        assert result.err.startswith("train.py: flow.blocks accepts a whole number at least 1; got 0")

    def test_jobs_of_a_cluster_are_waited_for(self, tmp_path: Path) -> None:
        sweep = Sweep(tmp_path, [])
        sweep.is_submitted = True
        with pytest.raises(Interrupted) as caught, sweep.stopped_by_signals():
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.message == (
            "stopped waiting; what was submitted may still run: when it has ended, go on with: "
            f"python train.py -m resume={tmp_path}"
        )

    def test_a_worker_that_outlived_its_sweep_is_waited_for(self, tmp_path: Path) -> None:
        handle = os.open(tmp_path, os.O_RDONLY)
        with locked(handle, wait=False):
            waiting = threading.Thread(target=_wait_for_others, args=(tmp_path,))
            waiting.start()
            waiting.join(0.2)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()
        os.close(handle)

    def test_a_sweep_that_cannot_be_written_down_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("training.sweep.write_atomically", full)
        with pytest.raises(ArgumentError, match="No space left on device"):
            Sweep(tmp_path, []).create()
        assert list(tmp_path.iterdir()) == []

    def test_a_sheet_of_many_runs_shows_the_best(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        monkeypatch.setattr(sheets, "MOST", 2)
        monkeypatch.setattr(sheets, "Sheet", lambda *arguments: made.append(arguments) or Sheet(*arguments))
        assert run("train", "-m", *SHORT, "seed=0,1,2", "hydra.sweep.dir=sweep").status == 0
        (((strip,), title),) = made
        best = sorted(row["number"] for row in table(tmp_path / "sweep")[:2])
        assert [panel.title.partition(":")[0].split()[-1] for panel in strip.panels] == best
        assert title == "sweep: the best 2 of 3 runs, KL in nats"

    def test_a_sweeps_folder_is_its_own(self, run: Run, tmp_path: Path) -> None:
        arguments = ("-m", *SHORT, "trainer.epochs=1", "hydra.sweep.dir=sweep")
        assert run("train", *arguments).status == 0
        result = run("train", *arguments, "seed=1")
        assert result.status == 2
        assert f"go on with -m resume={tmp_path}/sweep" in result.err
        result = run("train", "-m", "resume=sweep", "seed=1")
        assert result.status == 2
        assert "seed accepts no change with -m resume=" in result.err

    def test_sweeps_begun_within_a_second_have_a_folder_each(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create, begun = Sweep.create, []

        def create_as_two_at_once(self: Sweep) -> None:
            if not begun:
                begun.append(self.folder)
                create(Sweep(self.folder, ["seed=7"]))
            create(self)

        monkeypatch.setattr(Sweep, "create", create_as_two_at_once)
        assert run("train", "-m", *SHORT, "trainer.epochs=1", "seed=0,1").status == 0
        (other,) = {path.parent.resolve() for path in tmp_path.glob("multirun/*/sweep.json")} - {*begun}
        assert len(table(other)) == 2
        assert json.loads((begun[0] / "sweep.json").read_text())["overrides"] == ["seed=7"]

    def test_what_is_of_one_sitting_is_not_in_the_way_of_another(self, run: Run, tmp_path: Path) -> None:
        arguments = (*SHORT, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=by/${seed}")
        assert run("train", "-m", *arguments, "hydra.job.chdir=false").status == 0
        (tmp_path / "sweep" / "by" / "1" / "row.json").unlink()
        result = run("train", "-m", "resume=sweep")
        assert result.status == 0, result.err
        assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["by"]
        assert 'href="by/1/report.html"' in (tmp_path / "sweep" / "report.html").read_text()

    @pytest.mark.parametrize(
        "foreign",
        [
            "hydra.sweeper._target_=os.system", "hydra.launcher.setup=[reboot]", "+hydra.job.env_set.CC=reboot",
            "hydra.searchpath=[file://evil]", "hydra/callbacks=evil", "hydra.sweeper.params={a: 1}",
        ],
    )  # fmt: skip
    def test_a_stored_sweep_runs_nothing_foreign(self, run: Run, tmp_path: Path, foreign: str) -> None:
        (tmp_path / "sweep.json").write_text(json.dumps({"overrides": [foreign]}))
        result = run("train", "-m", "resume=.")
        assert result.status == 2
        assert "resume accepts a folder written by train.py -m, with its sweep.json; got '.', whose" in result.err

    def test_lines_of_runs_at_work_at_once_say_whose_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And come at once, whatever letters they hold, as those of one run do."""
        seen = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(seen, encoding="ascii"))
        with _named(3):
            _show_each_line()
            assert not sys.stdout.isatty()
            print("a", "ö", end="\n\n")
            assert seen.getvalue() == b"run 3: a ?\nrun 3: \n"

    def test_of_one_setting_the_last_values_count(self) -> None:
        """As in Hydra's own sweeps."""
        typed = parse(["seed=0,1", "data=moons,rings", "seed=2"])
        assert list(combinations(typed, search=False)) == [["seed=2", "data=moons"], ["seed=2", "data=rings"]]

    def test_a_stored_sweep_may_speak_of_targets(self, tmp_path: Path) -> None:
        overrides = ["data=points", "data.path=my_target_points.csv", "seed=0,1"]
        Sweep(tmp_path, overrides).create()
        assert Sweep.stored(tmp_path).overrides == overrides


def test_sweeps_within_a_sweep_are_not_its_own(tmp_path: Path) -> None:
    for number, folder in enumerate((tmp_path, tmp_path / "lr=1", tmp_path / "later")):
        SweepRow(folder / "0", number, []).write()
    for folder in (tmp_path, tmp_path / "later"):
        (folder / "sweep.json").write_text("{}")
    assert [row.number for row in read_rows(tmp_path)] == [0, 1]
    assert [row.number for row in read_rows(tmp_path / "later")] == [2]


def test_the_lowest_kl_is_first_and_what_has_none_follows() -> None:
    found = [{}, {"kl": None, "nll": -3.0}, {"kl": 0.2, "nll": 5.0}, {"kl": None, "nll": -4.0}, {"kl": 0.1, "nll": 6.0}]
    rows = [SweepRow(Path(), number, [], figures=figures) for number, figures in enumerate(found)]
    assert [row.number for row in sorted(rows, key=lambda row: row.rank)] == [4, 2, 3, 1, 0]


def test_runs_are_told_apart_by_what_differs() -> None:
    rows = [
        SweepRow(Path(), 0, ["flow=iresnet", "optimizer.lr=0.0123456", "seed=0", "data.noise=1", "flow.noise=1"]),
        SweepRow(Path(), 1, ["flow=resflow", "optimizer.lr=0.5", "seed=0", "data.noise=2", "flow.noise=2"]),
    ]
    first, second = map(in_words, differences(rows))
    assert first == ["iresnet", "lr=0.01235", "data.noise=1", "flow.noise=1"]
    assert second == ["resflow", "lr=0.5", "data.noise=2", "flow.noise=2"]
    assert in_words({"seed": "20240101"}) == ["seed=20240101"]
    added = [SweepRow(Path(), number, [f"++data.noise={number}", "+data.seed=3"]) for number in range(2)]
    assert differences(added) == [{"data.noise": "0"}, {"data.noise": "1"}]
    assert in_words({"flow.coeff": "0.99999"}) == ["coeff=0.99999"]
