"""The rows of a sweep: what they say, and what is looked through for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import table
from training.sweep_table import SweepRow, read_rows, write_table


@pytest.mark.parametrize(
    ("figures", "headline"),
    [
        ({}, ""),
        ({"kl": 0.01234, "kl_stderr": 0.00036, "nll": 3.0}, "KL 0.0123 ± 0.0004"),
        ({"kl": None, "nll": -999.98764, "nll_stderr": 0.1}, "NLL -999.9876 ± 0.1000"),
        ({"kl": 1234567.8901, "kl_stderr": 12345.6789}, "KL 1.235e+06 ± 1.235e+04"),
    ],
)
def test_a_headline_is_short_whatever_became_of_the_run(figures: dict[str, float | None], headline: str) -> None:
    assert SweepRow(Path(), 0, [], figures=figures).headline == headline


def test_the_table_has_a_column_for_each_setting_that_differs(tmp_path: Path) -> None:
    for number, (coeff, kl) in enumerate([("0.9", 0.3), ("0.99", 0.1), ("0.999", None)]):
        typed = ["flow=resflow", f"flow.coeff={coeff}", f"seed={number}"]
        figures = {"kl": kl, "flow": "resflow", "seed": number} if kl else {}
        SweepRow(tmp_path / str(number), number, typed, None if kl else "it failed", figures).write()
    write_table(tmp_path)
    assert [",".join(row.values()) for row in table(tmp_path)] == [
        "1,flow=resflow flow.coeff=0.99 seed=1,0.1,resflow,1,0.99,",
        "0,flow=resflow flow.coeff=0.9 seed=0,0.3,resflow,0,0.9,",
        "2,flow=resflow flow.coeff=0.999 seed=2,,,,0.999,it failed",
    ]
    assert list(table(tmp_path)[0]) == ["number", "overrides", "kl", "flow", "seed", "flow.coeff", "error"]


def test_folders_of_many_files_are_not_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of hundreds of runs, at the end of each, would take minutes."""
    for number, folder in enumerate(("0", "by/seed=1", "plots/2")):
        SweepRow(tmp_path / folder, number, []).write()
        for name in ("plots", "densities", "tensorboard"):
            (tmp_path / folder / name).mkdir()
    other = SweepRow(tmp_path / "later" / "0" / "deep", 3, [])
    other.write()
    (tmp_path / "later" / "sweep.json").write_text("{}")
    seen, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(Path(path).relative_to(tmp_path)) or scandir(path))
    assert [row.number for row in read_rows(tmp_path)] == [0, 1, 2]
    assert sorted(map(str, seen)) == sorted([".", "0", "by", "by/seed=1", "plots", "plots/2", "later"])
