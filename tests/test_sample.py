"""sample.py as people use it."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY, Result
from training import evaluation, passes
from training.run_folder import load_run

Run = Callable[..., Result]


@pytest.fixture
def trained(run: Run, made_once: Path, tmp_path: Path) -> Path:
    if not made_once.exists():
        assert run("train", *TINY, "trainer.plots=false", folder=made_once).status == 0
    return shutil.copytree(made_once, tmp_path / "run")


def test_samples_and_their_log_density(run: Run, trained: Path) -> None:
    result = run("sample", f"run={trained}", "n=500")
    assert result.status == 0, result.err
    samples, log_prob = np.load(trained / "samples.npy"), np.load(trained / "log_prob.npy")
    assert (samples.shape, samples.dtype) == ((500, 2), np.float32)
    assert log_prob.shape == (500,)
    flow = load_run(trained).flow
    with torch.no_grad():
        np.testing.assert_allclose(flow.log_prob(torch.from_numpy(samples)).numpy(), log_prob, atol=1e-5)
    Image.open(trained / "samples.png").load()


def test_csv_holds_the_same_numbers(run: Run, trained: Path, tmp_path: Path) -> None:
    run("sample", f"run={trained}", "n=50")
    assert run("sample", f"run={trained}", "n=50", "format=csv", f"out={tmp_path}/new/folder").status == 0
    folder = tmp_path / "new" / "folder"
    for name, header in (("samples", "x,y"), ("log_prob", "log_prob")):
        assert (folder / f"{name}.csv").read_text().splitlines()[0] == header
        table = np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1, dtype=np.float32)
        np.testing.assert_array_equal(table, np.load(trained / f"{name}.npy"))


def test_the_seed_decides(run: Run, trained: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("sample", f"run={trained}", "n=20", f"seed={seed}", f"out={tmp_path}/{name}")
    a, b, c = (np.load(tmp_path / name / "samples.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_the_points_of_a_file_are_evaluated(run: Run, trained: Path, tmp_path: Path) -> None:
    run("sample", f"run={trained}", "n=50", "format=csv", "out=samples")
    samples = tmp_path / "samples" / "samples.csv"  # with a header, as sample.py writes it
    for form in ("npy", "csv"):
        result = run("sample", f"run={trained}", f"points={samples}", f"format={form}", "out=points")
        assert result.status == 0, result.err
    assert sorted(file.name for file in (tmp_path / "points").iterdir()) == [
        "points_log_prob.csv",
        "points_log_prob.npy",
    ]
    expected = np.loadtxt(tmp_path / "samples" / "log_prob.csv", skiprows=1)
    np.testing.assert_allclose(np.load(tmp_path / "points" / "points_log_prob.npy"), expected, atol=1e-5)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "points" / "points_log_prob.csv", skiprows=1), expected, atol=1e-5)


def test_the_density_on_a_grid(run: Run, trained: Path, tmp_path: Path) -> None:
    assert run("sample", f"run={trained}", "grid=60", "out=grid").status == 0
    assert [file.name for file in (tmp_path / "grid").iterdir()] == ["density.npz"]
    grid, loaded = np.load(tmp_path / "grid" / "density.npz"), load_run(trained)
    x, y, log_prob = grid["x"], grid["y"], grid["log_prob"]
    assert (x.shape, y.shape, log_prob.shape) == ((60,), (60,), (60, 60))
    for axis, (low, high) in zip((x, y), loaded.window, strict=True):
        np.testing.assert_allclose([axis[0] - low, high - axis[-1]], (high - low) / 120, rtol=1e-4)
    with torch.no_grad():
        np.testing.assert_allclose(
            loaded.flow.log_prob(torch.tensor([[x[50], y[7]]])).numpy(), log_prob[7, 50], atol=1e-5
        )
    samples = loaded.flow.sample(20_000, torch.Generator().manual_seed(0)).numpy()
    inside = np.logical_and(
        *(abs(samples[:, i] - np.mean(loaded.window[i])) < np.ptp(loaded.window[i]) / 2 for i in (0, 1))
    )
    assert np.exp(log_prob).sum() * (x[1] - x[0]) * (y[1] - y[0]) == pytest.approx(inside.mean(), abs=0.02)


def test_many_points_are_taken_in_passes_with_a_bar(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, sizes = load_run(trained).flow, []
    x = flow.sample(500, torch.Generator().manual_seed(3))
    monkeypatch.setattr(evaluation, "CHUNK", 64)
    monkeypatch.setattr(evaluation, "PLAIN_CHUNK", 64)
    monkeypatch.setattr(flow, "preimage", lambda z: sizes.append(len(z)) or type(flow).preimage(flow, z))
    for patience, shown in ((0.0, True), (1e6, False)):
        monkeypatch.setattr(passes, "PATIENCE", patience)
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        samples = evaluation.sample(flow, 500, torch.Generator().manual_seed(3))
        np.testing.assert_allclose(samples.numpy(), x.numpy(), atol=1e-6)
        with torch.no_grad():
            np.testing.assert_allclose(evaluation.log_prob(flow, x).numpy(), flow.log_prob(x).numpy(), atol=1e-5)
        assert ("sampling:" in terminal.getvalue()) == shown
        assert ("evaluating:" in terminal.getvalue()) == shown
    assert sizes == [*[64] * 7, 52] * 2


def test_a_bad_file_of_points_is_named_with_its_line(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n3\n")
    result = run("sample", f"run={trained}", "points=bad.csv", "out=new")
    assert result.status == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith("sample.py: points accepts a .csv file")
    assert line.endswith("line 3 is '3'")
    assert not (tmp_path / "new").exists()


def test_a_point_beyond_numbers_is_named(run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("far.npy", [[0.0, 0.0], [1.0, 2.0]])
    flow = type(load_run(trained).flow)
    monkeypatch.setattr(flow, "log_prob", lambda self, x: torch.where(x[:, 0] > 0, torch.nan, 0.0))
    result = run("sample", f"run={trained}", "points=far.npy", "out=new")
    assert (result.status, Path("new").exists()) == (2, False)
    assert result.err.endswith("accepts points that the flow can be evaluated at; got [1.0, 2.0], row 1 (from 0)\n")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("points=nowhere.csv", "points accepts a .csv file of two numbers a line"),
        ("grid=0", "grid accepts a whole number at least 1 and at most 4096"),
        ("n=0", "n accepts a whole number at least 1"),
        ("n=many", "n accepts a whole number"),
        ("format=txt", "format accepts npy | csv"),
        ("seed=-1", "seed accepts a whole number at least 0"),
        ("run=nowhere", "run accepts a folder written by train.py"),
        ("run=null", "run accepts a folder written by train.py; got none"),
        ("out=/proc/nowhere", "out accepts a folder that can be written"),
        ("device=cuda:99", "device accepts auto or a device of this machine"),
        ("number=3", "number accepts nothing: there is no such setting"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, trained: Path, override: str, words: str) -> None:
    result = run("sample", f"run={trained}", "n=10", override)
    assert result.status == 2
    (line,) = result.err.strip().splitlines()
    assert line.startswith(f"sample.py: {words}")


def test_of_several_runs_each_has_its_results(run: Run, trained: Path, tmp_path: Path) -> None:
    result = run("sample", "-m", f"run={trained}", "n=10", "seed=0,1")
    assert (result.status, result.out) == (2, "")
    assert result.err == "sample.py: seed accepts one value: only run and out take several; got 'seed=0,1'\n"
    result = run("sample", "-m", f"run={trained},{trained}", "n=10", "out=a")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("sample.py: out accepts nothing where run takes several")
    assert run("sample", "-m", f"run={trained}", "n=10", f"out={tmp_path / 'a'},{tmp_path / 'b'}").status == 0
    assert {path.name for path in tmp_path.glob("[ab]/*")} == {"samples.npy", "log_prob.npy", "samples.png"}
    for several, words in ((f"run={trained},nowhere", "a folder written by train.py"), ("run=glob(*)", "one value or")):
        result = run("sample", "-m", several, "n=10")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert result.err.startswith(f"sample.py: run accepts {words}")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a", "b"}


def test_it_makes_no_sweep(run: Run, trained: Path, tmp_path: Path) -> None:
    for typed in ("hydra.mode=MULTIRUN", "-m hydra/launcher=joblib", "hydra.run.dir=elsewhere"):
        result = run("sample", *typed.split(), f"run={trained}", "n=10")
        assert (result.status, result.out) == (2, "")
        assert " accepts nothing outside a sweep, train.py -m; got " in result.err
    result = run("sample", "-m", f"run={trained}", "out=interval(0,1)")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_tilde_is_ones_home(run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("sample", f'run="~/{trained.relative_to(tmp_path)}"', "n=10", 'out="~/new"').status == 0
    assert (tmp_path / "new" / "samples.npy").exists()


def test_points_and_a_grid_in_one_call(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "my.csv").write_text("1,2\n3,4\n")
    assert run("sample", f"run={trained}", "points=my.csv", "grid=20", "out=both").status == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"points_log_prob.npy", "density.npz"}
    assert run("sample", f"run={trained}", "points=my.csv", "n=5", "seed=1", "out=with_samples").status == 0
    assert len(np.load(tmp_path / "with_samples" / "samples.npy")) == 5
    assert (tmp_path / "with_samples" / "points_log_prob.npy").exists()


def test_a_run_may_be_called_by_a_number(run: Run, trained: Path, tmp_path: Path) -> None:
    trained.rename(tmp_path / "0")
    assert run("sample", "run=0").status == 0
    assert len(np.load(tmp_path / "0" / "samples.npy")) == 10_000
