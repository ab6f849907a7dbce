"""Sweeps by the extras: on the cores of a machine, in a cluster, and as a search."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import PROJECT, TINY, Result, start, table

SHORT = (*TINY, "trainer.plots=false")


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: pip install -r requirements-sweeps.txt")


@needs("joblib")
def test_cores_share_the_threads_fail_alone_and_go_on(tmp_path: Path) -> None:
    import joblib

    # What diverges: a peak learning rate that no float survives.
    arguments = (
        "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SHORT, "optimizer=adam", "optimizer.lr=1e-3,1e6",
        "trainer.max_seconds=10", "trainer.epochs=100000", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    sweep = tmp_path / "sweep"
    process = start("train", *arguments, cwd=tmp_path, threads=None)
    while not ((sweep / "0" / "metrics.csv").exists() and (sweep / "summary.csv").exists()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"go on with: python train.py -m resume={sweep}" in err
    assert not (sweep / "0" / "summary.json").exists()
    process = start("train", "-m", "resume=sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", cwd=tmp_path,
                    threads=None)  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "Warning" not in err
    assert all(line.startswith("run 0: ") for line in out.splitlines() if "epoch " in line)
    assert "run 0: KL " in out
    good, bad = table(sweep)
    assert (good["number"], good["error"], bad["number"]) == ("0", "", "1")
    assert good["threads"] == str(max(1, joblib.cpu_count() // 2))
    assert "not finite" in bad["error"]
    assert (sweep / "report.html").exists()


@needs("joblib")
def test_a_launcher_that_gives_up_says_how_to_go_on(tmp_path: Path) -> None:
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.timeout=1")
    process = start("train", "-m", *launcher, *SHORT, "trainer.epochs=500", "seed=0,1", "hydra.sweep.dir=sweep",
                    cwd=tmp_path)  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    again = f"python train.py -m resume={tmp_path}/sweep {' '.join(launcher)}"
    assert f"train.py: the launcher gave up: TimeoutError; go on with: {again}" in err.splitlines()
    assert "Traceback" not in err


@needs("optuna")
def test_a_search_counts_failed_trials_and_is_retraced(run: Callable[..., Result], tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "optimizer.lr=tag(log,interval(1e-3,1e-1))")
    settings = (*SHORT, "trainer.epochs=1", "optimizer=adam", "optimizer.beta1=0.9,0.5", "hydra.sweep.dir=sweep")
    result = run("train", "-m", *search, *settings)
    assert result.status == 0, result.err
    rows = sorted(table(tmp_path / "sweep"), key=lambda row: int(row["number"]))
    assert len(rows) == 4
    assert len({row["overrides"] for row in rows}) == 4
    # As if the last two had never been, and the one before them had failed.
    for number in (2, 3):
        for name in ("row.json", "config.yaml", "summary.json"):
            (tmp_path / "sweep" / str(number) / name).unlink()
    row = tmp_path / "sweep" / "1" / "row.json"
    row.write_text(json.dumps({**json.loads(row.read_text()), "figures": {}, "error": "it failed"}))
    result = run("train", "-m", "resume=sweep")
    assert result.status == 1, result.err
    again = sorted(table(tmp_path / "sweep"), key=lambda row: int(row["number"]))
    assert again[0]["kl"] == rows[0]["kl"]
    assert again[1]["error"] == "it failed"
    assert all(row["kl"] for row in again[2:])


@needs("optuna")
def test_a_search_whose_trials_all_fail_ends_as_any_sweep(run: Callable[..., Result], tmp_path: Path) -> None:
    too_much = "trainer.held_out=1000000000000000"
    settings = (*SHORT, too_much, "hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-2,1e-1)")
    for arguments in (("hydra/sweeper=optuna", *settings, "hydra.sweep.dir=sweep"), ("resume=sweep",)):
        result = run("train", "-m", *arguments)
        assert result.status == 1
        assert "2 of 2 runs failed" in result.err
        assert "Traceback" not in result.err
        assert (tmp_path / "sweep" / "report.html").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param("hydra/launcher=joblib hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs accepts a whole number at "
                     "least 1 or a whole number at most -1 or null; got 0", marks=needs("joblib")),
        pytest.param("hydra/sweeper=optuna hydra.sweeper.n_trials=ten", "hydra.sweeper.n_trials accepts a whole number",
                     marks=needs("optuna")),
        pytest.param("hydra/sweeper=optuna hydra.sweeper.n_jobs=null", "hydra.sweeper.n_jobs accepts a whole number",
                     marks=needs("optuna")),
        pytest.param("hydra/sweeper=optuna data=glob(*)", "data accepts values one by one", marks=needs("optuna")),
        pytest.param("hydra/sweeper=optuna hydra.sweeper.direction=maximize", "hydra.sweeper.direction accepts "
                     "minimize", marks=needs("optuna")),
        pytest.param("hydra/launcher=submitit_local hydra.launcher.timeout_min=-1", "hydra.launcher.timeout_min "
                     "accepts a whole number at least 1", marks=needs("submitit")),
    ],
)  # fmt: skip
def test_settings_of_launchers_and_sweepers_are_checked(
    run: Callable[..., Result], tmp_path: Path, overrides: str, message: str
) -> None:
    result = run("train", "-m", *overrides.split(), "seed=0,1")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert message in result.err
    assert not list(tmp_path.iterdir())


@needs("optuna")
def test_an_experiment_may_say_how_a_sweep_searches_and_where(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n"
        "  - override /hydra/sweeper: optuna\n"
        "hydra:\n"
        "  sweep:\n"
        "    dir: /proc/nowhere/mine\n"
    )
    result = run("train", "-m", "--config-dir", "own", "experiment=mine", "optimizer.lr=interval(1e-2,1e-1)")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "hydra.sweep.dir accepts a folder that can be written; got '/proc/nowhere/mine'" in result.err


@needs("submitit")
def test_processes_of_submitit(tmp_path: Path) -> None:
    arguments = ("-m", "hydra/launcher=submitit_local", *SHORT, "hydra.sweep.dir=sweep")
    process = start("train", *arguments, cwd=tmp_path, threads=None)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert [row["threads"] for row in table(tmp_path / "sweep")] == ["1"]


@needs("submitit")
def test_slurm(tmp_path: Path) -> None:
    """A sweep in a real cluster, of this one machine."""
    arguments = ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1")
    command = [sys.executable, str(PROJECT / "train.py"), "-m", *arguments, *SHORT, "seed=0,1", "hydra.sweep.dir=sweep"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["timeout", "200", "sh", str(PROJECT / "tests" / "slurm.sh"), *command],  # which lets it stop the cluster
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=260, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert [row["threads"] for row in table(tmp_path / "sweep")] == ["1", "1"]
    assert (tmp_path / "sweep" / "sheet.png").exists()


def test_an_extra_that_is_not_installed_is_named(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run("train", *TINY, "logger=tensorboard")
    assert result.status == 2
    assert result.err.startswith("train.py: logger accepts tensorboard where it is installed: pip install -r")
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_joblib_launcher.joblib_launcher", None)
    result = run("train", "-m", *TINY, "hydra/launcher=joblib")
    assert result.status == 2
    assert "hydra/launcher accepts what is installed (pip install -r requirements-sweeps.txt" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_has_scalars_figures_and_settings(run: Callable[..., Result], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert run("train", *TINY, "trainer.epochs=1", "logger=tensorboard", folder=folder).status == 0
    result = run("train", f"resume={folder}", "trainer.epochs=2")
    assert result.status == 0, result.err
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for key in ("kl", "nll", "lipschitz", "logdet_std"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        rows = [(int(row["step"]), float(row[key])) for row in Result(0, "", "", folder).rows]
        assert [step for step, _ in found] == [5, 10]
        assert [value for _, value in found] == pytest.approx([value for _, value in rows], rel=1e-5)
    assert [event.step for event in events.Images("epoch")] == [5, 10]
    assert "_hparams_/session_start_info" in events.summary_metadata
