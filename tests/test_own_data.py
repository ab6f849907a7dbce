"""Data of one's own: points from a file, and a picture's darkness."""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from arguments import ArgumentError
from datasets.image import Image
from datasets.point_table import PointTable
from datasets.points import Points, window_of
from tests.conftest import TINY, Result, same_weights
from tests.conftest import table as rows_of
from training.checkpoint import save_checkpoint
from training.configuration import load_config
from training.density_grid import DensityGrid
from training.run_folder import load_run

Run = Callable[..., Result]

GOOD = [f"{i % 7},{i * 0.5 + 100}" for i in range(40)]


def cloud(n: int = 400) -> np.ndarray:
    """Far from zero, and a hundred times longer than wide."""
    return np.random.default_rng(0).normal(size=(n, 2)) * [2.0, 200.0] + [50.0, -3000.0]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.savetxt(tmp_path / "my.csv", cloud(), delimiter=",", header="width,length", comments="")
    return tmp_path / "my.csv"


class TestPoints:
    @pytest.mark.parametrize(
        "text",
        ["\n".join(GOOD), "x,y\n" + "\n".join(GOOD) + "\n\n", "\ufeffa;b\r\n" + "\r\n".join(GOOD).replace(",", ";"),
         "\n".join(GOOD).replace(",", "\t"), "\n".join(GOOD).replace(",", " , "),
         "x y\n" + "\n".join(GOOD).replace(",", "  ")],
        ids=["plain", "header", "semicolons", "tabs", "spaces about commas", "spaces alone"],
    )  # fmt: skip
    def test_reads_what_people_have(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.csv").write_text(text, newline="", encoding="utf-8")
        points = Points(str(tmp_path / "a.csv"), held_out=0.25)
        assert (len(points.train), len(points.held_out)) == (30, 10)
        found = torch.cat([points.train, points.held_out]).tolist()
        assert sorted(found) == sorted([float(x), float(y)] for x, y in (line.split(",") for line in GOOD))

    @pytest.mark.parametrize(
        ("line", "bad"),
        [(1, "1,x"), (9, "3"), (9, "1,2,3"), (9, ""), (9, "a,b"), (9, "1,nan"), (9, "inf,1"), (9, "1,1e39"), (9, "1 2"),
         (9, "1_0,2"), (9, '"1","2"'), (9, "1,"), (9, "0x1,2"), (40, "1,2,"),
         (1, '"1.5","2.5"'), (1, "1 2"), (1, "0x1,0x2"), (1, "-.5.1, +3a"), (1, "nan,x"), (1, "Infinity,-infinity"),
         (1, ","), (1, "-,-"), (1, "")],
    )  # fmt: skip
    def test_a_bad_line_is_named(self, tmp_path: Path, line: int, bad: str) -> None:
        lines = [*GOOD[: line - 1], bad, *GOOD[line:], "5,5"]
        (tmp_path / "a.csv").write_text("\n".join(lines))
        with pytest.raises(ArgumentError, match=rf"^path accepts a \.csv file.*: line {line} is "):
            Points(str(tmp_path / "a.csv"))

    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
    def test_a_line_in_another_encoding_is_named_but_a_header_is_fine(
        self, tmp_path: Path, mark: bytes, end: bytes
    ) -> None:
        lines = ["x °C,y".encode("cp1252"), *(line.encode() for line in GOOD)]
        (tmp_path / "a.csv").write_bytes(mark + end.join(lines))
        assert len(PointTable(str(tmp_path / "a.csv")).table) == 40
        lines[4] = b"\xff,3"
        (tmp_path / "a.csv").write_bytes(mark + end.join(lines))
        with pytest.raises(ArgumentError, match="line 5 is not UTF-8 text"):
            Points(str(tmp_path / "a.csv"))

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "only 0 points|line 1 is|no points"), (b"x,y\n", "no points"), (b"1,2\n3,4", "only 2 points"),
         ("x,y\n1,2\n3,4\n".encode("utf-16"), "line 1 is not UTF-8 text"), (b"1,2\n3,\0\n", "line 2 is not UTF-8 text"),
         (b"1,2\n" * 30, "all points have the same x"),
         (b"0.1,1\n0.1,2\n" * 30, "all points have the same x"),
         ("\n".join(f"{i % 3},{1e9 + i}" for i in range(30)).encode(), "y is 1e.09 .* too far from zero"),
         ("\n".join(f"{i},{1.7e9 + i % 7 if i > 4 else 0}" for i in range(40)).encode(), "half of all y are between"),
         ("\n".join(f"{i % 3},{1e20 * (i % 4)}" for i in range(30)).encode(), "y is .* change its unit"),
         ("\n".join(f"{1e-20 * (i % 3)},{i}" for i in range(30)).encode(), "x is .* change its unit")],
    )  # fmt: skip
    def test_a_file_that_is_no_point_cloud_is_refused(self, tmp_path: Path, content: bytes, words: str) -> None:
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ArgumentError, match=words):
            Points(str(tmp_path / "a.csv"))

    def test_what_may_be_names_or_a_point_is_refused(self, tmp_path: Path) -> None:
        """pandas writes 0,1 above columns without names; but it may be the sine and cosine of nothing."""
        (tmp_path / "a.csv").write_text("0 1\n" + "\n".join(GOOD).replace(",", ".0 "))
        with pytest.raises(ArgumentError, match=r"line 1 is '0,1', pandas' names of columns or a point"):
            Points(str(tmp_path / "a.csv"))
        (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text().replace(" ", ","))
        known = hashlib.sha256((tmp_path / "b.csv").read_bytes()).hexdigest()
        assert PointTable(str(tmp_path / "b.csv"), known).table[0].tolist() == [0.0, 1.0]
        (tmp_path / "a.csv").write_text("0,1\n" + "\n".join(GOOD))
        assert len(PointTable(str(tmp_path / "a.csv")).table) == 41

    def test_what_is_wrong_with_a_number_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("\n".join([*GOOD, "1,1e31"]))
        np.save(tmp_path / "a.npy", np.full((30, 2), 1e31))
        for name, where in (("a.csv", "line 41 is '1,1e31'"), ("a.npy", r"row 0 \(from 0\) is \[1e\+31, 1e\+31\]")):
            with pytest.raises(ArgumentError, match=where + r"; numbers are below 1e\+30$"):
                Points(str(tmp_path / name))

    @pytest.mark.parametrize("unit", [1e-4, 1e6])
    def test_the_window_is_in_the_datas_own_units_where_nearly_all_have_one_value(self, unit: float) -> None:
        x = torch.zeros(40, 2)
        x[:, 1] = torch.linspace(0, unit, 40)
        x[0, 0], x[-1, 0] = -unit, unit
        ((left, right), _) = window_of(x)
        assert 2 * unit < right - left < 3 * unit

    def test_the_window_shows_the_middle_of_extreme_tails_and_all_of_others(self) -> None:
        u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        cauchy, gaussian = torch.tan(math.pi * (u - 0.5)), torch.special.ndtri(u)
        for x, y in ((cauchy, gaussian), (gaussian, cauchy)):
            window = window_of(torch.stack([x + 100, y - 100], dim=1))
            for axis, values, middle in zip(window, (x, y), (100, -100), strict=True):
                assert sum(axis) / 2 == pytest.approx(middle, abs=0.1)
                within = float(((values + middle > axis[0]) & (values + middle < axis[1])).double().mean())
                assert within > (0.97 if values is cauchy else 0.998)
                assert axis[1] - axis[0] < (80 if values is cauchy else 30)
        clusters = torch.cat([gaussian[::20], gaussian[:20] / 20 + 20])  # of two hundredths
        assert window_of(clusters.unsqueeze(1).expand(-1, 2))[0][1] > 20

    @pytest.mark.parametrize(
        "array",
        [np.zeros((30, 3)), np.zeros(30), np.full((30, 2), "a"), np.full((30, 2), np.nan), np.array([{}] * 2), None],
        ids=["columns", "shape", "text", "nan", "objects", "no array"],
    )
    def test_a_bad_array_is_refused(self, tmp_path: Path, array: np.ndarray | None) -> None:
        if array is None:
            (tmp_path / "a.npy").write_bytes(b"1,2\n3,4\n")
        else:
            np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(ArgumentError, match=r"^path accepts a \.csv file of two numbers a line, or a \.npy file"):
            Points(str(tmp_path / "a.npy"))

    @pytest.mark.parametrize(
        ("old", "new"),
        [(None, b"PK\x03\x04 cut"), (b"(30, 2)", b"(30, 2 "), (b"(30, 2)", b"(9**9, )"), (b"(30, 2)", b"(3e9,2)")],
    )
    def test_a_damaged_array_is_refused(self, tmp_path: Path, old: bytes | None, new: bytes) -> None:
        np.save(tmp_path / "a.npy", np.zeros((30, 2)))
        whole = (tmp_path / "a.npy").read_bytes()
        (tmp_path / "a.npy").write_bytes(new if old is None else whole.replace(old, new))
        with pytest.raises(ArgumentError, match=r"^path accepts a \.csv file .*: not a NumPy array: ."):
            Points(str(tmp_path / "a.npy"))

    def test_more_rows_than_memory_holds_are_refused(self, tmp_path: Path) -> None:
        with open(tmp_path / "a.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**15, 2)})
        with pytest.raises(ArgumentError, match="not a NumPy array"):
            Points(str(tmp_path / "a.npy"))

    def test_a_link_is_read_by_its_own_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.save(tmp_path / "kept.npy", cloud())
        (tmp_path / "kept.npy").rename(tmp_path / "0f3a")
        (tmp_path / "a.npy").symlink_to("0f3a")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(PointTable("~/a.npy").table) == 400

    def test_what_is_held_out_decides_nothing(self, tmp_path: Path) -> None:
        """Neither the mean nor the standard deviation by which a flow standardizes."""
        np.savetxt(tmp_path / "a.csv", cloud(), delimiter=",")
        points = Points(str(tmp_path / "a.csv"), held_out=0.5)
        torch.testing.assert_close(points.mean, points.train.double().mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(points.std, points.train.double().std(0, correction=0), rtol=1e-6, atol=0)

    def test_held_out_points_are_never_trained_on(self, tmp_path: Path) -> None:
        table = np.stack([np.arange(40.0), np.arange(40.0) ** 2], axis=1)
        np.save(tmp_path / "a.npy", table)
        points = Points(str(tmp_path / "a.npy"), held_out=0.25)
        held_out = points.hold_out(100, torch.Generator()).tolist()
        assert len(held_out) == 10
        assert sorted(held_out + points.sample(30, torch.Generator()).tolist()) == table.tolist()

    def test_the_histogram_is_upright(self, tmp_path: Path) -> None:
        """Its first row is the lowest."""
        chance = np.random.default_rng(0)
        np.save(tmp_path / "a.npy", np.stack([chance.uniform(size=4000), chance.uniform(size=4000) ** 4], axis=1))
        drawn = Points(str(tmp_path / "a.npy")).on_grid()
        assert drawn[:50].sum() > 2 * drawn[50:].sum()
        assert drawn[:, :50].sum() == pytest.approx(drawn[:, 50:].sum(), rel=0.2)

    def test_a_million_points_load_quickly(self, tmp_path: Path) -> None:
        lines = [f"{i % 1000 * 0.001:.6f},{i * 1e-6:.6f}" for i in range(1_000_000)]
        (tmp_path / "a.csv").write_text("\n".join(lines))
        began = time.process_time()
        points = Points(str(tmp_path / "a.csv"))
        assert time.process_time() - began < 6
        assert len(points.train) == 900_000
        lines[777_776] = "1,2,3"
        (tmp_path / "a.csv").write_text("\n".join(lines))
        with pytest.raises(ArgumentError, match="line 777777 is '1,2,3'"):
            Points(str(tmp_path / "a.csv"))

    def test_steps_see_views_of_one_epochs_points(self, table: Path) -> None:
        """Each point once before any comes again; and a batch is no copy."""
        data = Points(str(table)).sample(720, torch.Generator().manual_seed(0))
        assert sorted(data[:360].tolist()) == sorted(data[360:].tolist()) == sorted(Points(str(table)).train.tolist())
        assert data.split(32)[3].untyped_storage().data_ptr() == data.untyped_storage().data_ptr()

    def test_the_histograms_peak_is_the_densitys(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(10_000, 2)))
        assert Points(str(tmp_path / "a.npy")).on_grid().max() < 1.4 / (2 * math.pi)

    def test_histogram_is_a_density(self, table: Path) -> None:
        points = Points(str(table))
        (left, right), (bottom, top) = points.window
        area = (right - left) * (top - bottom) / 100**2
        assert points.on_grid().sum() * area == pytest.approx(1, abs=0.01)


class TestRun:
    def test_figures_and_samples_are_in_the_datas_own_units(self, run: Run, table: Path, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        result = run("train", "data=points", "data.path=my.csv", *TINY, "trainer.epochs=4", folder=folder)
        assert result.status == 0, result.err
        assert (result.summary["kl"], result.summary["kl_stderr"], result.summary["entropy"]) == (None, None, None)
        assert result.rows[-1]["kl"] == result.rows[-1]["kl_stderr"] == ""
        # The Gaussian that the points are drawn from has 8.83 nats in these units, and 2.84 in standardized ones.
        gaussian = math.log(2 * math.pi * math.e * 2.0 * 200.0)
        assert gaussian - 0.3 < result.summary["nll"] < gaussian + 1
        assert f"NLL {result.summary['nll']:.4f} ± " in result.out
        assert "KL" not in result.out
        PIL.Image.open(folder / "plots" / "epoch_0004.png").load()
        assert PIL.Image.open(folder / "density.gif").n_frames == 4

        table.unlink()  # a trained flow needs its data no more
        assert run("sample", f"run={folder}", "n=2000").status == 0
        assert run("sample", f"run={folder}", "grid=50").status == 0  # on the window that the run was drawn in
        grid, drawn = np.load(folder / "density.npz"), np.load(folder / "densities" / "target.npz")
        for axis, (low, high) in zip("xy", drawn["window"], strict=True):
            np.testing.assert_allclose(grid[axis], low + (np.arange(50) + 0.5) * (high - low) / 50)
        samples = np.load(folder / "samples.npy")
        for axis, (middle, scale) in enumerate(((50, 2), (-3000, 200))):
            assert abs(np.median(samples[:, axis]) - middle) < 0.3 * scale
        flow = load_run(folder).flow
        with torch.no_grad():
            log_q = flow.log_prob(torch.from_numpy(samples)).numpy()
        np.testing.assert_allclose(log_q, np.load(folder / "log_prob.npy"), atol=1e-4)

    def test_train_returns_the_nll(
        self, table: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import train

        returned = []
        plain = train.train
        monkeypatch.setattr(train, "train", lambda *arguments: returned.append(plain(*arguments)))
        result = run("train", "data=points", "data.path=my.csv", *TINY, "trainer.plots=false", folder=tmp_path / "run")
        assert returned == [result.summary["nll"]]

    @pytest.mark.parametrize("data", ["points", "image"])
    def test_resumed_from_elsewhere_it_goes_on_as_if_it_never_stopped(
        self, run: Run, table: Path, tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = "my.csv"
        if data == "image":
            path = "my.png"
            PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
        settings = (f"data={data}", f"data.path={path}", *TINY, "trainer.schedule=constant", "trainer.warmup=0")
        whole = run("train", *settings, folder=tmp_path / "whole")
        run("train", *settings, "trainer.epochs=1", folder=tmp_path / "part")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        found = "found.csv" if data == "points" else "found.png"
        (tmp_path / path).rename(found)
        missing = run("train", f"resume={tmp_path}/part", "trainer.epochs=2")
        assert (missing.status, "data.path accepts" in missing.err) == (2, True)
        result = run("train", f"resume={tmp_path}/part", f"data.path={found}", "trainer.epochs=2")
        assert result.status == 0, result.err
        part = Result(0, "", "", tmp_path / "part")
        assert part.rows == whole.rows
        assert same_weights(part, whole)
        assert (part.folder / "density.gif").read_bytes() == (whole.folder / "density.gif").read_bytes()

    def test_a_resumed_run_refuses_another_file(self, run: Run, table: Path, tmp_path: Path) -> None:
        run("train", "data=points", f"data.path={table}", *TINY, "trainer.plots=false", folder=tmp_path / "run")
        np.savetxt(table, cloud(401), delimiter=",")
        result = run("train", f"resume={tmp_path}/run", "trainer.epochs=3")
        assert result.status == 2
        assert "data.path accepts the file whose SHA-256 is" in result.err

    def test_a_finished_run_stays_as_it_is(self, run: Run, table: Path, tmp_path: Path) -> None:
        first = run("train", "data=points", f"data.path={table}", *TINY, "trainer.plots=false", folder=tmp_path / "run")
        before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
        again = run("train", f"resume={tmp_path}/run")
        assert again.status == 0, again.err
        assert "this run is finished and stays as it is" in again.out
        assert f"NLL {first.summary['nll']:.4f} ± " in again.out.splitlines()[-1]
        assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before

    @pytest.mark.usefixtures("compiler")
    def test_compiled_it_is_the_same_flow(self, run: Run, table: Path, tmp_path: Path) -> None:
        settings = ("data=points", f"data.path={table}", *TINY, "trainer.plots=false", "estimator=exact")
        compiled = run("train", *settings, "compile=true", folder=tmp_path / "compiled")
        plain = run("train", *settings, folder=tmp_path / "plain")
        assert compiled.summary["nll"] == pytest.approx(plain.summary["nll"], abs=1e-3)
        flow, x = load_run(tmp_path / "compiled").flow, torch.from_numpy(cloud()).float()
        assert flow.compiled
        with torch.no_grad():
            found = flow.log_prob(x)
            flow.compiled = False
            torch.testing.assert_close(found, flow.log_prob(x), rtol=1e-6, atol=1e-6)

    def test_a_checkpoint_whose_units_are_none_is_refused(self, run: Run, table: Path, tmp_path: Path) -> None:
        made = run("train", "data=points", f"data.path={table}", *TINY, "trainer.plots=false", folder=tmp_path / "run")
        state = made.checkpoint
        state["learner"]["average"]["bijections.0.std"][0] = 0
        save_checkpoint(tmp_path / "run" / "checkpoint.pt", state)
        result = run("sample", f"run={tmp_path}/run")
        assert result.status == 2
        assert "run accepts" in result.err

    def test_a_sweep_is_sorted_and_titled_by_nll(self, run: Run, table: Path, tmp_path: Path) -> None:
        result = run("train", "-m", "data=points", "data.path=my.csv", *TINY, "seed=0,1,2", "hydra.sweep.dir=sweep")
        assert result.status == 0, result.err
        sweep = tmp_path / "sweep"
        rows = rows_of(sweep)
        nlls = [float(row["nll"]) for row in rows]
        assert nlls == sorted(nlls)
        assert {row["kl"] for row in rows} == {""}
        assert f"lowest NLL {nlls[0]:.4f} ± " in result.out
        assert f" nats, in run {rows[0]['number']}: " in result.out
        PIL.Image.open(sweep / "sheet.png").load()
        for page in (sweep / "report.html", sweep / "0" / "report.html"):
            text = page.read_text()
            assert "NLL, nats" in text
            assert text.count('aria-sort="ascending"><button type="button">NLL') == (page.parent == sweep)
            assert "KL from the target" not in text
            assert ">nan" not in text

    def test_a_sweeps_pictures_need_no_file(self, run: Run, table: Path, tmp_path: Path) -> None:
        settings = (*TINY, "trainer.plots=false", "hydra.sweep.dir=sweep")
        assert run("train", "-m", "data=points", "data.path=my.csv", *settings, "seed=0,1").status == 0
        made = ("sheet.png", "sheet.gif", "report.html")
        before = {name: (tmp_path / "sweep" / name).read_bytes() for name in made}
        table.unlink()
        for name in made:
            (tmp_path / "sweep" / name).unlink()
        result = run("train", "-m", "resume=sweep")
        assert (result.status, result.err) == (0, "")
        assert before == {name: (tmp_path / "sweep" / name).read_bytes() for name in made}

    def test_a_sweep_goes_on_with_its_file_from_elsewhere(
        self, run: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = (*TINY, "trainer.plots=false", "hydra.sweep.dir=sweep")
        assert run("train", "-m", "data=points", "data.path=my.csv", *settings, "seed=0,1").status == 0
        shutil.rmtree(tmp_path / "sweep" / "1")  # as if stopped before
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "my.csv").write_text("\n".join(GOOD))  # another
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert run("train", "-m", f"resume={tmp_path / 'sweep'}").status == 0
        digests = {load_config(tmp_path / "sweep" / number, "resume").data.sha256 for number in "01"}
        assert digests == {hashlib.sha256(table.read_bytes()).hexdigest()}
        shutil.rmtree(tmp_path / "sweep" / "1")
        table.write_text("\n".join(GOOD))  # whose NLL would stand beside that of other data
        assert run("train", "-m", f"resume={tmp_path / 'sweep'}").status == 1
        assert "data.path accepts the file whose SHA-256 is" in rows_of(tmp_path / "sweep")[-1]["error"]

    def test_a_sweep_with_a_bad_file_writes_nothing(self, run: Run, table: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.csv").write_text("1,2\n3,x\n")
        result = run("train", "-m", "data=points", "data.path=my.csv,bad.csv", *TINY)
        assert result.status == 2
        (line,) = result.err.strip().splitlines()
        assert "data.path accepts" in line
        assert "line 2 is '3,x'" in line
        assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.csv", "my.csv"]

    @pytest.mark.parametrize("data", ["points", "image"])
    @pytest.mark.parametrize("path", ["null", "nowhere.csv", ".", "bad.csv"])
    def test_a_bad_path_is_one_line_and_nothing_is_written(
        self, run: Run, tmp_path: Path, data: str, path: str
    ) -> None:
        (tmp_path / "bad.csv").write_text("1,2\n3,x\n")
        result = run("train", f"data={data}", f"data.path={path}", *TINY)
        assert result.status == 2
        (line,) = result.err.strip().splitlines()
        assert line.startswith("train.py: data.path accepts a")
        assert [file.name for file in tmp_path.iterdir()] == ["bad.csv"]


class TestImage:
    def test_is_the_pictures_darkness(self, tmp_path: Path) -> None:
        light = np.full((2, 4), 255, dtype=np.uint8)
        light[0, 0], light[1, 2] = 0, 204  # one black pixel, upper left, and one a fifth as dark
        PIL.Image.fromarray(light).save(tmp_path / "a.png")
        density = Image(str(tmp_path / "a.png"))
        x = torch.tensor([[-3.0, 1.0], [1.0, -1.0], [3.0, 1.0], [-3.0, 2.5]], dtype=torch.float64)
        expected = [math.log(5 / 6 / 4), math.log(1 / 6 / 4), -math.inf, -math.inf]
        assert density.log_prob(x).tolist() == pytest.approx(expected)
        assert density.entropy == pytest.approx(-(5 / 6 * expected[0] + 1 / 6 * expected[1]))
        assert Image(str(tmp_path / "a.png"), invert=True).log_prob(x)[0] == -math.inf

    @pytest.mark.parametrize("size", [3, 7, 255, 1000])
    def test_rounding_leaves_no_sample_on_white(self, tmp_path: Path, size: int) -> None:
        light = np.indices((size, size)).sum(0) % 2 * 255
        PIL.Image.fromarray(light.astype(np.uint8)).save(tmp_path / "a.png")
        density = Image(str(tmp_path / "a.png"), resolution=1024)
        assert torch.isfinite(density.log_prob(density.sample(1_000_000, torch.Generator().manual_seed(0)))).all()

    @pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
    def test_reads_every_kind(self, tmp_path: Path, mode: str) -> None:
        picture = PIL.Image.fromarray((np.arange(64).reshape(8, 8) * 4).astype(np.uint8))
        if mode == "I;16":
            picture = PIL.Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
        (picture if mode == "I;16" else picture.convert(mode)).save(path)
        mass = Image(str(path)).mass
        assert mass.sum() == pytest.approx(1)
        if mode != "1":  # of which only dithering is left
            grey = 1 - np.arange(64).reshape(8, 8) * 4 / 255
            torch.testing.assert_close(
                mass, torch.from_numpy(grey / grey.sum()).flip(0).flatten(), rtol=0.03, atol=1e-3
            )

    @pytest.mark.parametrize("invert", [False, True])
    def test_a_deep_grey_that_is_transparent_is_empty(self, tmp_path: Path, invert: bool) -> None:
        """A PNG may name a colour that is."""
        picture = PIL.Image.fromarray(np.array([[1000, 30000], [65535, 0]], dtype=np.uint16))
        picture.save(tmp_path / "a.png", transparency=1000)
        light = np.array([30000, 65535, 0]) / 65535
        left = light if invert else 1 - light
        expected = torch.tensor([left[1], left[2], 0, left[0]] / left.sum())  # the lowest row first
        torch.testing.assert_close(Image(str(tmp_path / "a.png"), invert=invert).mass, expected, rtol=0, atol=1e-5)

    def test_is_turned_as_its_camera_was(self, tmp_path: Path) -> None:
        picture = PIL.Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4) * 30)
        picture.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / "upright.png")
        exif = picture.getexif()
        exif[0x0112] = 8  # orientation: to be turned by a quarter against the clock
        picture.save(tmp_path / "turned.png", exif=exif)
        upright, turned = (Image(str(tmp_path / f"{name}.png")) for name in ("upright", "turned"))
        assert (turned.rows, turned.columns) == (4, 2)
        assert torch.equal(turned.mass, upright.mass)

    @pytest.mark.parametrize("orientation", [3, 6, 8])
    def test_a_tiff_is_turned_once(self, tmp_path: Path, orientation: int) -> None:
        picture = PIL.Image.fromarray(np.arange(8, dtype=np.uint8).reshape(2, 4) * 30)
        for name in ("a.png", "a.tiff"):
            exif = PIL.Image.Exif()
            exif[0x0112] = orientation
            picture.save(tmp_path / name, exif=exif)
        png, tiff = (Image(str(tmp_path / name)) for name in ("a.png", "a.tiff"))
        assert (tiff.rows, tiff.columns) == (png.rows, png.columns)
        assert torch.equal(tiff.mass, png.mass)

    @pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, False), (16, True)])
    def test_deep_greys_of_a_tiff_are_of_their_range(self, tmp_path: Path, bits: int, white_is_zero: bool) -> None:
        numbers = [0, (2**bits - 1) // 4, 2 ** (bits - 1), 2**bits - 1]
        packed = struct.pack("<4H", *numbers)
        if bits == 12:  # the highest bits first
            packed = sum(number << 12 * (3 - place) for place, number in enumerate(numbers)).to_bytes(6, "big")
        tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: bits // 2}
        entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
        directory = struct.pack("<H", len(tags)) + entries + bytes(4)
        (tmp_path / "a.tiff").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory)
        darkness = torch.tensor([0.0, 0.25, 0.5, 1.0] if white_is_zero else [1.0, 0.75, 0.5, 0.0], dtype=torch.float64)
        torch.testing.assert_close(Image(str(tmp_path / "a.tiff")).mass, darkness / darkness.sum(), rtol=0, atol=1e-3)

    def test_a_deep_grey_pgm(self, tmp_path: Path) -> None:
        (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1000\n" + struct.pack(">3H", 0, 500, 1000))
        mass = Image(str(tmp_path / "a.pgm")).mass
        torch.testing.assert_close(mass, torch.tensor([2 / 3, 1 / 3, 0], dtype=torch.float64), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("invert", [False, True])
    def test_what_is_transparent_is_empty(self, tmp_path: Path, invert: bool) -> None:
        picture = PIL.Image.new("RGBA", (4, 1), (0, 0, 0, 0))
        picture.putpixel((1, 0), (255, 255, 255, 255) if invert else (0, 0, 0, 255))
        picture.save(tmp_path / "a.png")
        assert Image(str(tmp_path / "a.png"), invert=invert).mass.tolist() == [0, 1, 0, 0]

    @pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
    @pytest.mark.parametrize("note", [b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01"])
    def test_a_damaged_note_of_its_camera_is_no_matter(self, tmp_path: Path, kind: str, note: bytes) -> None:
        picture = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
        picture.save(tmp_path / f"a.{kind}", exif=note, **({"lossless": True} if kind == "webp" else {}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Image(str(tmp_path / f"a.{kind}")).rows == 8

    def test_what_is_drawn_is_the_mean_around_each_point(self, tmp_path: Path) -> None:
        light = np.full((900, 900), 255, dtype=np.uint8)
        light[:, ::4] = light[:, 1::4] = 0  # lines finer than the grid
        PIL.Image.fromarray(light).save(tmp_path / "a.png")
        density = Image(str(tmp_path / "a.png"), resolution=900)
        drawn = DensityGrid(density, torch.device("cpu")).of_target
        (left, right), (bottom, top) = density.window
        assert drawn.sum() * (right - left) * (top - bottom) / drawn.size == pytest.approx(1, rel=0.01)
        inside = drawn[20:180, 20:180]
        assert inside.min() > 0.5 * inside.mean()

    def test_no_pixel_is_missed(self, tmp_path: Path) -> None:
        light, dark = np.full((1024, 1024), 255, dtype=np.uint8), range(0, 1024, 31)
        light[dark, dark] = 0
        PIL.Image.fromarray(light).save(tmp_path / "a.png")
        drawn = DensityGrid(Image(str(tmp_path / "a.png"), resolution=1024), torch.device("cpu")).of_target
        for pixel in dark:
            x = (pixel + 0.5) / 1024 * 8 - 4
            column, row = (int((at + 4.5) / 9 * 200) for at in (x, -x))
            assert drawn[row - 1 : row + 2, column - 1 : column + 2].max() > 0, pixel

    def test_larger_ones_are_reduced(self, tmp_path: Path) -> None:
        PIL.Image.fromarray(np.arange(300 * 600, dtype=np.uint32).reshape(300, 600).astype(np.uint8)).save(
            tmp_path / "a.png"
        )
        density = Image(str(tmp_path / "a.png"), resolution=100)
        assert (density.rows, density.columns) == (50, 100)

    @pytest.mark.parametrize("content", ["blank", "cut", "text", "P3\n8 8\n255\n1 2 3 x y"])
    def test_what_is_no_picture_is_refused(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "a.png"
        PIL.Image.fromarray(np.full((50, 50), 255, dtype=np.uint8)).save(path)
        if content != "blank":
            path.write_bytes(path.read_bytes()[:60] if content == "cut" else content.encode())
        with pytest.raises(ArgumentError, match=r"^path accepts a picture"):
            Image(str(path))
