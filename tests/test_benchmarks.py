"""What the benchmarks keep of the runs they make: nothing is made twice, and nothing that was made is lost."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from benchmarks import equal_time, flows, runs
from benchmarks.record import Job, Record
from tests.conftest import PROJECT

KL = {("moons", "a", 0): 0.5, ("moons", "a", 1): 0.03125, ("moons", "b", 0): 0.0625, ("rings", "b", 0): -0.0001,
      ("moons", "c", 0): 0.0652, ("rings", "c", 0): 0.0028}  # fmt: skip
SUMMARY = {"kl_stderr": 0.001, "steps": 700, "torch": "2.13.0", "cpu_capability": "AVX2", "git_commit": "abc"}
VARIANTS = {"a": ["flow=iresnet"], "b": ["flow=resflow"], "c": ["flow=implicit"]}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Folders and settings of the runs made, each of which has the KL above; others fail."""
    found: list[tuple[str, list[str]]] = []

    def run(parent: Path, name: str, settings: list[str]) -> tuple[list, dict[str, Any]]:
        density, variant, seed = name.split("-")
        kl = KL[density, variant, int(seed)]
        found.append((str(parent), settings))
        return [], {**SUMMARY, "kl": kl, "more": "not kept"}

    monkeypatch.setattr(equal_time, "run", run)
    return found


def compare(monkeypatch: pytest.MonkeyPatch, csv: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", "--threads", "1", "--csv", str(csv), *options])
    equal_time.compare("flows", "KL", VARIANTS, ("moons", "rings"), "data={data}")


class TestCompare:
    def test_makes_each_run_once_and_shows_all(
        self, monkeypatch: pytest.MonkeyPatch, made: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        csv = tmp_path / "new" / "flows.csv"
        of_a = ("--variants", "a", "--densities", "moons", "--seconds", "7")
        compare(monkeypatch, csv, *of_a, "--seeds", "2")
        assert [settings[1:4] for _, settings in made] == [["flow=iresnet", f"seed={i}", "threads=1"] for i in (0, 1)]
        assert "trainer.max_seconds=7" in made[0][1]
        compare(monkeypatch, csv, *of_a, "--seeds", "2")
        assert len(made) == 2
        compare(monkeypatch, csv, "--variants", "b", "c", "--seconds", "7", "--seeds", "1")
        assert len(made) == 6
        capsys.readouterr()
        compare(monkeypatch, csv, "--threads", "9", "--show")
        assert len(made) == 6
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        assert ["a", "0.27", "-"] in rows
        assert ["b", "**0.0625**", "**-0.0001**"] in rows
        assert ["c", "**0.0652**", "0.0028"] in rows  # two standard errors of the difference are 0.00283
        compare(monkeypatch, csv, "--show", "--seconds", "8")
        assert capsys.readouterr().out == f"no such runs in {csv}\n"
        assert Image.open(csv.with_suffix(".png")).width > 400

    def test_other_clocks_are_other_runs(self, monkeypatch: pytest.MonkeyPatch, made: list, tmp_path: Path) -> None:
        few = ("--variants", "b", "--densities", "moons", "--seeds", "1")
        for clock in (("--seconds", "7"), ("--seconds", "8"), ("--seconds", "7", "--threads", "2"),
                      ("--seconds", "7", "--at-once", "2")):  # fmt: skip
            compare(monkeypatch, tmp_path / "flows.csv", *few, *clock)
        assert len({(folder, *settings) for folder, settings in made}) == 4

    def test_what_a_variant_was_before_is_another(
        self, monkeypatch: pytest.MonkeyPatch, made: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        few = ("--variants", "b", "--densities", "moons", "--seeds", "1", "--seconds", "7")
        compare(monkeypatch, tmp_path / "flows.csv", *few)
        monkeypatch.setitem(VARIANTS, "b", ["flow=resflow", "flow.coeff=0.99"])
        capsys.readouterr()
        compare(monkeypatch, tmp_path / "flows.csv", *few, "--show")
        assert "0.0625" not in capsys.readouterr().out
        compare(monkeypatch, tmp_path / "flows.csv", *few)
        assert len(made) == 2

    def test_keeps_what_was_made_before_a_run_failed(
        self, monkeypatch: pytest.MonkeyPatch, made: list, tmp_path: Path
    ) -> None:
        csv = tmp_path / "flows.csv"
        with pytest.raises(KeyError):  # there is no KL of a on rings
            compare(monkeypatch, csv, "--seeds", "1")
        assert len(list(Record(csv))) == len(made) >= 2


class TestRecord:
    def test_comes_back_as_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.csv"
        record = Record(path)
        late, early = Job(300.0, "moons", "no ActNorm, at all", 0, 1, 2, "ab"), Job(60.0, "rings", "maf", 2, 2, 1, "cd")
        record.add(late, {**SUMMARY, "kl": 1 / 3})
        record.add(early, {**SUMMARY, "kl": 1e-17})
        again = Record(path)
        assert list(again) == [early, late]
        assert again.merit(late) == (1 / 3, 0.001)
        assert again.merit(early).kl == 1e-17
        before = path.read_bytes()
        again.add(early, {**SUMMARY, "kl": 1e-17})
        assert path.read_bytes() == before
        record.add(Job(60.0, "rings", "maf", 3, 2, 1, "cd"), {**SUMMARY, "kl": 0.5})
        again.add(Job(60.0, "rings", "maf", 4, 2, 1, "cd"), {**SUMMARY, "kl": 0.6})
        assert len(list(Record(path))) == 4  # of two processes

    def test_reads_what_an_earlier_version_wrote(self, tmp_path: Path) -> None:
        path, job = tmp_path / "runs.csv", Job(60.0, "rings", "maf", 2, 2, 1, "cd")
        earlier = {key: value for key, value in SUMMARY.items() if key != "cpu_capability"}
        Record(path).add(job, {**earlier, "kl": 0.5})  # of a folder made by one
        path.write_text(path.read_text().replace(",cpu_capability,", ",").replace("2.13.0,,", "2.13.0,"))
        assert Record(path).merit(job) == (0.5, 0.001)


class TestRun:
    def test_goes_on_and_is_told_apart_by_its_settings(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trained = []

        def train(command: list[str], **options: Any) -> None:
            (typed,) = OverridesParser.create().parse_overrides([item for item in command if "hydra.run.dir" in item])
            folder = Path(str(typed.value()))
            folder.mkdir()  # which refuses, as train.py does, where there is one
            (folder / "config.yaml").touch()
            trained.append(command)
            if len(trained) == 1:
                raise KeyboardInterrupt
            (folder / "metrics.csv").write_text("epoch,kl\n1,0.5\n2,\n")
            (folder / "summary.json").write_text(json.dumps({"kl": len(trained)}))

        monkeypatch.setattr(runs.subprocess, "run", train)
        runs_folder = tmp_path / "it's (one), a=b"
        runs_folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            runs.run(runs_folder, "a", ["flow=iresnet"])
        rows, summary = runs.run(runs_folder, "a", ["flow=iresnet"])
        assert rows[0] == {"epoch": 1.0, "kl": 0.5}
        assert math.isnan(rows[1]["kl"])
        assert summary == runs.run(runs_folder, "a", ["flow=iresnet"])[1] == {"kl": 2}
        assert runs.run(runs_folder, "a", ["flow=iresnet", "seed=1"])[1] == {"kl": 3}
        assert len(list(runs_folder.iterdir())) == 2


@pytest.mark.parametrize("seconds", ["60", "300"])
def test_the_readmes_tables_are_those_of_its_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    """Medians, bold and all."""
    shutil.copy(PROJECT / "docs" / "flows.csv", tmp_path)  # beside which a figure is drawn
    monkeypatch.setattr(sys, "argv", ["flows", "--csv", f"{tmp_path}/flows.csv", "--show", "--seconds", seconds])
    equal_time.compare("flows", "", flows.FLOWS, flows.DENSITIES, "data={data}", (60.0, 300.0))
    readme = (PROJECT / "README.md").read_text(encoding="utf-8").splitlines()

    def rows(lines: list[str]) -> set[str]:
        return {" ".join(line.split()) for line in lines if line.startswith("|")}

    shown = {row for row in rows(capsys.readouterr().out.splitlines()) if row.split("|")[1].strip() in flows.FLOWS}
    assert len(shown) == len(flows.FLOWS)
    assert shown <= rows(readme)
