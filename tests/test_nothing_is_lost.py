"""What a run that cannot go on leaves behind, and that it goes on from there: full disks, folders that vanish."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import kills
from tests.conftest import PROJECT, TINY, Result, start
from training import trainer
from training.checkpoint import load_checkpoint
from training.evaluation import log_prob
from training.interruption import Interrupted, Interruption, terminate
from training.learner import Learner
from training.run_folder import load_run
from training.trainer import Trainer

Run = Callable[..., Result]


@pytest.fixture
def whole(run: Run, made_once: Path, tmp_path: Path) -> Result:
    """A run that nothing stopped, in a folder of its own."""
    if not made_once.exists():
        result = run("train", *TINY, folder=made_once)
        assert result.status == 0, result.err
    return Result(0, "", "", Path(shutil.copytree(made_once, tmp_path / "whole")))


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """`largest_file(n)` lets the system refuse to write files of more than n bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def is_one_line_of(result: Result, *words: str) -> None:
    assert result.status == 1, result.err
    (line,) = result.err.strip().splitlines()
    for word in words:
        assert word in line


# The files of a tiny run in KB: settings 1.3, checkpoint 20 to 42, density.gif 42, figure 150, transport.gif 517.
@pytest.mark.parametrize("kilobytes", [1, 8, 200])
def test_where_nothing_more_can_be_written(
    run: Run, whole: Result, tmp_path: Path, largest_file: Callable[[int], None], kilobytes: int
) -> None:
    folder = tmp_path / "full"
    largest_file(kilobytes * 1000)
    result = run("train", *TINY, folder=folder)
    largest_file(resource.RLIM_INFINITY)
    is_one_line_of(result, "File too large", str(folder))
    assert not list(folder.rglob(".*.unfinished"))
    kills.read_all(folder)
    again = ("train", f"resume={folder}")
    if kilobytes == 1:  # not even the settings
        assert not [path for path in folder.rglob("*") if path.is_file()]
        again = ("train", *TINY, f"hydra.run.dir={folder}")
    else:
        assert f"go on with: python train.py resume={folder}" in result.err
    assert run(*again).status == 0
    assert kills.end(folder) == kills.end(whole.folder)


# What is synced: each file, then its folder. 25 and 26 are a frame behind the trailer of density.gif, and the byte that
# makes it count.
SYNCED = (
    "config.yaml", "target.npz", "checkpoint.pt", "metrics.csv", "epoch_0001.npy", "epoch_0001.png", "density.gif",
    "transport.gif", "checkpoint.pt", "metrics.csv", "epoch_0002.npy", "epoch_0002.png",
)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_launchers_signal_is_handed_on_when_all_is_saved(
    run: Run, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As before a time limit of a cluster, whose launcher queues the job again and ends it."""
    folder, update, saved = tmp_path / "queued", Learner.update, []

    def update_and_signal(self: Learner, rate: float) -> torch.Tensor:
        norm = update(self, rate)
        if self.steps == 7:
            signal.raise_signal(number)
        return norm

    def queue_again(_: int, frame: object) -> None:
        saved.append(load_checkpoint(folder, "resume")["progress"]["step"])
        raise SystemExit(99)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", update_and_signal)
        before = signal.signal(number, queue_again)
        try:
            assert run("train", *TINY, folder=folder).status == 99
        finally:
            signal.signal(number, before)
    assert saved == [7]
    assert run("train", f"resume={folder}").status == 0
    assert kills.end(folder) == kills.end(whole.folder)


def test_an_epoch_whose_points_are_drawn_in_parts_goes_on_within_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long epoch is not drawn at once, which would take minutes in which nothing else happens."""
    update, settings, stop_at = Learner.update, (*TINY, "trainer.steps_per_epoch=11"), []

    def update_and_stop(self: Learner, rate: float) -> torch.Tensor:
        if self.steps + 1 in stop_at:
            signal.raise_signal(signal.SIGTERM)
        return update(self, rate)

    monkeypatch.setattr(trainer, "STEPS_AT_ONCE", 4)
    monkeypatch.setattr(Learner, "update", update_and_stop)
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))
    assert run("train", *settings, folder=whole).status == 0
    stop_at += [3, 8, 17]  # within a part, at the end of one, in the next epoch
    assert run("train", *settings, folder=stopped).status == 143
    assert run("train", f"resume={stopped}").status == 143
    assert run("train", f"resume={stopped}").status == 143
    assert run("train", f"resume={stopped}").status == 0
    assert kills.end(stopped) == kills.end(whole)


def test_a_second_signal_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop_twice() -> None:
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it did not act")

    try:
        with pytest.raises(KeyboardInterrupt):
            stop_twice()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("fails", [True, False])
def test_no_signal_is_swallowed(fails: bool) -> None:
    """Neither by an error nor at the end: or a sweep would go on with its next run, though it was told to stop."""
    stopped = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        with contextlib.suppress(ValueError), Interruption():
            signal.raise_signal(signal.SIGTERM)
            assert stopped == []
            if fails:
                raise ValueError("of the run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]


def test_a_signal_that_comes_while_others_are_yet_to_be_caught_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    told, plain = [], signal.signal

    def install_and_be_told(number: int, handler: Callable) -> object:
        before = plain(number, handler)
        if not told:
            told.append("once")
            signal.raise_signal(number)
        return before

    before = {number: plain(number, lambda *_: told.append("at the end")) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        monkeypatch.setattr(signal, "signal", install_and_be_told)
        with Interruption() as interruption:
            assert interruption.number == signal.SIGINT
            assert told == ["once"]
        assert told == ["once", "at the end"]
    finally:
        for number, handler in before.items():
            plain(number, handler)


def path_of(handle: int) -> Path:
    if hasattr(fcntl, "F_GETPATH"):  # macOS
        return Path(os.fsdecode(fcntl.fcntl(handle, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(os.readlink(f"/proc/self/fd/{handle}"))


@pytest.mark.parametrize("sync", [2, 5, 13, 25, 26])
def test_where_the_disk_is_full_at_any_write(
    run: Run, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: int
) -> None:
    folder, synced, fsync = tmp_path / "full", [], os.fsync

    def fail_once(handle: int) -> None:
        synced.append(path_of(handle))
        if len(synced) == sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail_once)
    result = run("train", *TINY, folder=folder)
    is_one_line_of(result, "No space left on device", f"go on with: python train.py resume={folder}")
    files = [path.name.strip(".").removesuffix(f".{os.getpid()}.unfinished") for path in synced[: len(SYNCED) * 2 : 2]]
    assert files == list(SYNCED[: len(files)])
    assert {path.name for path in synced[24:26]} <= {"density.gif"}
    kills.read_all(folder)
    assert run("train", f"resume={folder}").status == 0
    assert kills.end(folder) == kills.end(whole.folder)


def test_a_folder_that_vanishes(run: Run, whole: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.pictures import Pictures

    folder, draw = tmp_path / "run", Pictures.draw

    def draw_nowhere(self: Pictures, *arguments: object) -> None:
        shutil.rmtree(folder / "plots")
        draw(self, *arguments)

    monkeypatch.setattr(Pictures, "draw", draw_nowhere)
    result = run("train", *TINY, folder=folder)
    is_one_line_of(result, "No such file or directory", str(folder / "plots" / "epoch_0001.png"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run("train", f"resume={folder}").status == 0
    assert kills.end(folder) == kills.end(whole.folder)


def test_what_killed_processes_left_is_cleared_away(run: Run, whole: Result) -> None:
    for name in (".checkpoint.pt.unfinished", "plots/.epoch_0002.png.unfinished"):
        (whole.folder / name).write_bytes(b"half a")
    others = [whole.folder / name for name in (".notes.tmp", "deeper/.checkpoint.pt.unfinished")]  # of someone else
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert run("train", f"resume={whole.folder}", "trainer.epochs=3").status == 0
    assert sorted(whole.folder.rglob(".*")) == sorted(others)


def test_a_finished_run_is_left_as_it_is(run: Run, whole: Result) -> None:
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    for settings, limit in (
        ((), "trainer.epochs=2"),
        (("trainer.epochs=1",), "trainer.epochs=2"),  # what would be more than there is
        (("trainer.max_seconds=1e-6", "trainer.epochs=9"), "trainer.max_seconds=1e-06"),
    ):
        result = run("train", f"resume={whole.folder}", *settings)
        assert result.status == 0
        assert f"this run is finished and stays as it is: to train longer, raise {limit}" in result.out
        assert f"KL {whole.summary['kl']:.4f}" in result.out
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


def test_a_run_that_is_out_of_time_at_once_is_finished(run: Run, tmp_path: Path) -> None:
    settings = (*TINY, "trainer.plots=false", "trainer.max_seconds=1e-9")
    first = run("train", *settings, folder=tmp_path / "run")
    assert first.summary["steps"] == 0
    assert first.summary["lipschitz_in_training"] is None
    result = run("train", f"resume={tmp_path}/run")
    assert "this run is finished and stays as it is: to train longer, raise trainer.max_seconds=1e-09" in result.out


def test_a_run_that_goes_on_has_no_report_of_an_earlier_end(
    run: Run, whole: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it is stopped while its last epoch is evaluated."""

    def stop(self: Trainer) -> None:
        raise Interrupted(15, "stopped")

    monkeypatch.setattr(Trainer, "_finish", stop)
    assert run("train", f"resume={whole.folder}", "trainer.epochs=3").status == 143
    assert not (whole.folder / "report.html").exists()
    monkeypatch.undo()
    assert run("train", f"resume={whole.folder}").status == 0
    assert f"{Result(0, '', '', whole.folder).summary['steps']:,}" in (whole.folder / "report.html").read_text()


def test_a_summary_of_fewer_steps_is_not_the_end(run: Run, whole: Result) -> None:
    """As of a run that was trained longer, and killed between its last checkpoint and its summary."""
    early = (whole.folder / "summary.json").read_bytes()
    run("train", f"resume={whole.folder}", "trainer.epochs=3")
    expected = kills.end(whole.folder)
    (whole.folder / "summary.json").write_bytes(early)
    result = run("train", f"resume={whole.folder}")
    assert "finished" not in result.out
    assert kills.end(whole.folder) == expected


def test_what_differs_is_said(run: Run, whole: Result) -> None:
    result = run("train", f"resume={whole.folder}", "flow.blocks=3", "flow.width=8", "data=rings", "seed=1")
    assert result.status == 2
    others = "data.path, device, threads, trainer.cuda_graph, trainer.epochs, trainer.max_seconds"
    changes = "flow.blocks=3 (2 in the run), data=rings (moons in the run), seed=1 (0 in the run)"
    assert f"resume accepts no change of settings other than {others}; got {changes}\n" in result.err
    result = run("train", f"resume={whole.folder}", "flow.blocks=2", "trainer.epochs=3")
    assert result.status == 0, result.err
    assert "resuming with trainer.epochs=3, which was 2\n" in result.out
    result = run("train", f"resume={whole.folder}", "experiment=rings_best")
    assert "; got experiment=rings_best (chosen when a run begins)" in result.err
    result = run("train", f"resume={whole.folder}", "trainer.epochs=-1")
    assert (result.status, result.out) == (2, "")
    result = run("train", f"resume={whole.folder}", "flow.blokcs=2")
    assert "did you mean 'flow.blocks'" in result.err


def test_a_run_that_is_to_end_where_it_was_stopped_has_a_row_of_that(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Trainer) -> None:
        self._save()
        raise Interrupted(2, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop)
        assert run("train", *TINY, folder=tmp_path / "run").status == 130
    assert run("train", f"resume={tmp_path}/run", "trainer.max_seconds=1e-9").status == 0
    ended = Result(0, "", "", tmp_path / "run")
    assert [(row["epoch"], row["step"]) for row in ended.rows] == [("1", "5")]
    assert (ended.summary["epochs"], ended.summary["steps"]) == (1, 5)
    assert (ended.folder / "plots" / "epoch_0001.png").exists()


def test_a_signal_that_was_to_be_ignored_is() -> None:
    """As Ctrl-C by what a script leaves in the background."""

    def be_told_twice() -> None:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
            assert interruption.number is None
            signal.raise_signal(signal.SIGTERM)
            assert interruption.number == signal.SIGTERM

    ways = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: terminate}
    before = {number: signal.signal(number, handler) for number, handler in ways.items()}
    try:
        with pytest.raises(Interrupted):
            be_told_twice()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_refused_resume_changes_nothing(run: Run, whole: Result) -> None:
    state = whole.checkpoint
    state["learner"]["flow"].popitem()
    torch.save(state, whole.folder / "checkpoint.pt")
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    result = run("train", f"resume={whole.folder}", "trainer.epochs=5")
    assert result.status == 2
    assert "resume accepts a folder whose files are all of one run" in result.err
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


def test_sampling_while_training_is_of_a_certified_flow(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in the middle of an epoch holds estimates of the spectral norms; a sample is of exact ones."""

    folder, seen = tmp_path / "run", []
    train_epoch = Trainer._train_epoch

    def train_save_and_sample(self: Trainer, *arguments: object) -> None:
        train_epoch(self, *arguments)
        self._save()
        with torch.random.fork_rng():  # in truth another process
            flow = load_run(folder).flow
        seen.append(max(flow.lipschitz_constants()))
        x = flow.sample(100, torch.Generator().manual_seed(0))
        assert torch.isfinite(log_prob(flow, x)).all()

    settings = (*TINY, "trainer.plots=false", "trainer.power_iterations=1", "optimizer.lr=0.5")
    plain = run("train", *settings, folder=tmp_path / "plain")
    monkeypatch.setattr(Trainer, "_train_epoch", train_save_and_sample)
    watched = run("train", *settings, folder=folder)
    assert watched.status == 0, watched.err
    assert len(seen) == 2
    assert max(seen) < 0.87**5 + 1e-5
    assert watched.rows == plain.rows  # and to be watched changes nothing


def test_a_reader_who_leaves_stops_the_run_in_one_line(run: Run, whole: Result, tmp_path: Path) -> None:
    """As of `python train.py | head -1`."""
    folder = tmp_path / "unread"
    process = start("train", *TINY, f"hydra.run.dir={folder}", cwd=tmp_path)
    process.stdout.close()
    (line,) = process.stderr.read().splitlines()
    assert process.wait() == 1
    assert "Broken pipe" in line
    assert f"go on with: python train.py resume={folder}" in line
    assert run("train", f"resume={folder}").status == 0
    assert kills.end(folder) == kills.end(whole.folder)


def test_a_terminal_changes_nothing(run: Run, whole: Result, tmp_path: Path) -> None:
    folder, (leader, follower) = tmp_path / "terminal", pty.openpty()
    command = [sys.executable, str(PROJECT / "train.py"), *TINY, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    process = subprocess.Popen(command, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the end of a terminal on Linux
            part = b""
        if not part:
            break
        shown += part
    assert process.wait() == 0
    assert b"step/s" in shown  # it did draw its bar
    assert kills.end(folder) == kills.end(whole.folder)


def test_a_summary_says_what_it_was_made_with(run: Run, tmp_path: Path) -> None:
    summary = run("train", *TINY, "trainer.plots=false", "trainer.epochs=1", folder=tmp_path / "run").summary
    assert (summary["torch"], summary["numpy"]) == (torch.__version__, np.__version__)
    assert summary["python"] == ".".join(map(str, sys.version_info[:3]))
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert summary["git_commit"] == (git.stdout.strip() if git.returncode == 0 else None)
    git = subprocess.run(["git", "status", "--porcelain"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert summary["git_dirty"] == bool(git.stdout)
    assert (summary["threads"], summary["device"]) == (1, "cpu")
    assert summary["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("estimator", ["exact", "russian_roulette"])
def test_a_summary_says_whether_anything_was_compiled(run: Run, tmp_path: Path, estimator: str) -> None:
    """Of an i-DenseNet only a series can be."""
    settings = [setting for setting in TINY if not setting.startswith("compile")]
    small = ("flow=idensenet", f"estimator={estimator}", "trainer.plots=false", "trainer.epochs=1")
    result = run("train", *settings, *small, folder=tmp_path / "run")
    assert result.summary["compiled"] == (estimator != "exact")


def test_the_digest_of_settings_tells_them_apart(run: Run, whole: Result, tmp_path: Path) -> None:
    other = run("train", *TINY, "seed=1", "trainer.plots=false", folder=tmp_path / "other").summary["config_sha256"]
    assert len(other) == 64
    assert other != whole.summary["config_sha256"]
