"""Reports: one file that loads nothing, and reads well in a real browser."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from reports.chart import COLORS, HEIGHT, WIDTH, Series, chart, swatch
from reports.page import picture
from tests.conftest import PROJECT, TINY, Result, composed
from training import defaults
from training.configuration import load_config
from training.defaults import changed_settings
from training.report import _changed_in_all, _seeds_table
from training.sweep_table import SweepRow, differences

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class TestChart:
    def points(self, text: str) -> list[list[tuple[float, ...]]]:
        lines = re.findall(r' points="([^"]*)"', text)
        return [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]

    def test_draws_each_series_inside_the_picture(self) -> None:
        text = chart("a", "step", [Series("x", 0, [1, 2, 3], [5.0, 7.0, 6.0]), Series("y", 9, [1, 4], [-1.0, 2.0])])
        first, second = self.points(text)
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in first + second)
        assert first[1][1] < first[2][1] < first[0][1] < second[1][1]  # higher values are further up
        assert [x for x, _ in first] == sorted(x for x, _ in first)
        assert 'stroke-dasharray=""' in text
        assert 'stroke-dasharray="7 3"' in text

    def test_a_logarithmic_axis_makes_equal_ratios_equal_steps(self) -> None:
        ((_, a), (_, b), (_, c)) = self.points(chart("a", "step", [Series("", 0, [1, 2, 3], [1.0, 0.1, 0.01])], True))[
            0
        ]
        assert b - a == pytest.approx(c - b, abs=0.2)

    @pytest.mark.parametrize("values", [[0.0, 0.0], [3.0, 3.0], [1e-7, 2e-7], [-1.0, 5.0], [1e6, 2e6], [0.97, 0.971]])
    @pytest.mark.parametrize("logarithmic", [True, False])
    def test_any_values_have_an_axis(self, values: list[float], logarithmic: bool) -> None:
        text = chart("a", "step", [Series("", 0, [10, 20], values)], logarithmic)
        (line,) = self.points(text)
        assert all(0 <= y <= HEIGHT for _, y in line)
        assert 2 <= text.count('class="grid"') <= 14

    @pytest.mark.parametrize("logarithmic", [True, False])
    def test_a_constant_seen_through_rounding_is_flat(self, logarithmic: bool) -> None:
        text = chart("a", "step", [Series("", 0, [1, 2, 3], [0.9702990, 0.9702991, 0.9702989])], logarithmic)
        ((_, a), (_, b), (_, c)) = self.points(text)[0]
        assert max(a, b, c) - min(a, b, c) < 0.5
        labels = re.findall(r'text-anchor="end">([^<]*)<', text)
        assert len(labels) == len(set(labels))

    def test_what_is_not_finite_is_left_out(self) -> None:
        (line,) = self.points(chart("a", "step", [Series("", 0, [1, 2, 3], [1.0, float("nan"), 2.0])]))
        assert len(line) == 2
        nothing = Series("", 0, [1], [float("nan")])
        assert "no values" in chart("a", "step", [nothing])
        assert len(self.points(chart("a", "step", [nothing, Series("", 1, [1, 2], [1.0, 2.0])]))) == 1

    def test_one_point_is_seen(self) -> None:
        text = chart("a", "step", [Series("", 0, [3], [2.0]), Series("", 1, [1, 2], [1.0, 2.0])])
        (a, b), _ = self.points(text)
        assert a == b  # a line without length, whose round ends are drawn
        assert text.count('class="line dot"') == 1

    def test_what_has_no_logarithm_is_drawn_at_the_lower_end(self) -> None:
        text = chart("a", "step", [Series("", 0, [1, 2, 3, 4], [1.0, 0.1, -0.0001, 0.01])], True)
        ((_, a), (_, b), (_, c), (_, d)) = self.points(text)[0]
        assert b - a == pytest.approx(d - b, abs=0.2)  # still logarithmic
        assert c == d == max(a, b, c, d)
        assert "3,-0.0001" in text
        far = chart("a", "step", [Series("", 0, [1, 2, 3], [1.0, 1e-9, 0.1])], True)
        ((_, a), (_, b), (_, c)) = self.points(far)[0]
        assert b - a == pytest.approx(5 * (c - a), abs=0.5)

    def test_a_spike_does_not_hide_what_is_small(self) -> None:
        ((_, _), (_, a), (_, b)) = self.points(chart("a", "step", [Series("", 0, [1, 2, 3], [1e4, 1e-3, 1e-4])], True))[
            0
        ]
        assert b - a > 10

    def test_no_more_points_than_can_be_seen(self) -> None:
        steps = list(range(5001))
        text = chart("a", "step", [Series("", 0, steps, [float(step) for step in steps])])
        assert 200 < len(self.points(text)[0]) <= WIDTH + 1
        assert "5000,5000" in text

    def test_a_swatch_is_the_line_it_stands_for(self) -> None:
        looks = [re.search(r'stroke="(.*?)".*stroke-dasharray="(.*?)"', swatch(index)).groups() for index in range(32)]
        assert len(set(looks)) == 32
        for index, (color, dash) in enumerate(looks):
            drawn = chart("a", "step", [Series("", index, [1, 2], [1, 2])])
            assert f'--color: {color}" stroke-dasharray="{dash}"' in drawn

    def test_names_are_text(self) -> None:
        assert "<b>" not in chart("<b>", "step", [Series('<b>"', 0, [1, 2], [1.0, 2.0])])


# What a deuteranope sees, of linear red, green and blue (Machado, Oliveira and Fernandes 2009); and to X, Y and Z.
DEUTERANOPE = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
TO_XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8728]]  # white is 1, 1, 1


def lab_of_a_deuteranope(color: str) -> np.ndarray:
    """L, a and b (CIE 1976) of what is seen of `#rrggbb`."""
    rgb = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ (np.array(DEUTERANOPE) @ linear).clip(0, 1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("schemes", [1, 2], ids=["light", "dark"])
def test_a_deuteranope_tells_the_first_lines_apart(schemes: int) -> None:
    style = (PROJECT / "reports" / "style.css").read_text()
    found = {}
    for scheme in style.split("@media (prefers-color-scheme: dark)", 1)[:schemes]:
        found |= dict(re.findall(r"--(c\d|text): ([^;]+);", scheme))
    colors = [found[f"c{index}"] for index in range(COLORS)]
    seen = [lab_of_a_deuteranope(found["text"] if color == "var(--text)" else color) for color in colors]
    for (a, one), (b, other) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(one - other) > 13, (a, b)


def test_a_picture_too_large_to_be_embedded_stays_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.gif").write_bytes(b"GIF89a")
    assert 'src="data:image/gif;base64,R0lGODlh"' in picture(tmp_path / "a b.gif", "a")
    monkeypatch.setattr("reports.page.MOST_EMBEDDED", 5)
    assert 'src="a%20b.gif"' in picture(tmp_path / "a b.gif", "a")


def test_changed_settings_are_those_that_differ_from_what_was_chosen(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    choices = ("flow=iresnet", "optimizer=adam", "optimizer.lr=7e-3", "flow.width=64", "seed=2", "flow.coeff=0.9")
    short = ("trainer.epochs=1", "trainer.steps_per_epoch=1", "trainer.held_out=500", "trainer.plots=false")
    run("train", *choices, "device=cpu", *short, folder=tmp_path / "run")
    assert changed_settings(load_config(tmp_path / "run", "run")) == {
        "flow": ("iresnet", "resflow"),
        "optimizer": ("adam", "muon"),
        "seed": (2, 0),
        "device": ("cpu", "auto"),
        "flow.coeff": (0.9, 0.88),
        "trainer.epochs": (1, 10),
        "trainer.steps_per_epoch": (1, 480),
        "trainer.held_out": (500, 100000),
        "trainer.plots": (False, True),
    }


def test_a_setting_of_all_runs_is_named_where_it_is_the_default_of_some() -> None:
    runs = []
    for flow in ("implicit", "resflow", "iresnet"):
        config = composed(f"flow={flow}", "flow.coeff=0.99", "flow.blocks=2")
        runs.append(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))  # as a run's config.yaml has it
    assert _changed_in_all(runs) == {"flow.coeff": ("0.99", "0.87, 0.88"), "flow.blocks": ("2", "8, 12, 16")}


def test_a_flow_may_go_on_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "deeper.yaml").write_text("defaults: [iresnet, _self_]\ndepth: 6\n")
    for name in ("train.yaml", "flow/iresnet.yaml"):
        (tmp_path / name).write_text((defaults.CONFIGS / name).read_text())
    monkeypatch.setattr(defaults, "CONFIGS", tmp_path)
    assert defaults.choices_of("deeper") == defaults.choices_of("iresnet")
    assert defaults.choices_of("deeper")["estimator"] == "truncated"


def test_runs_that_differ_by_seed_alone_are_one_line() -> None:
    def seeds_table(*runs: tuple[str, float | None]) -> list[list[str]]:
        rows = [
            SweepRow(Path(), number, typed.split(), None if kl else "failed", {"kl": kl} if kl else {})
            for number, (typed, kl) in enumerate(runs)
        ]
        text = "".join(_seeds_table(rows, differences(rows)))
        found = [re.findall("<td[^>]*>(.*?)</td>", line) for line in re.findall("<tr>(.*?)</tr>", text)]
        return [re.findall("<button[^>]*>(.*?)</button>", text), *found[1:]] if text else []

    found = [("a", 0, 0.3), ("b", 0, 0.5), ("a", 1, 0.0001), ("b", 1, None), ("a", 2, 0.2), ("c", 0, None)]
    assert seeds_table(*((f"flow={flow} seed={seed}", kl) for flow, seed, kl in found)) == [
        ["flow", "seeds", "median KL, nats", "lowest", "highest"],
        ["a", "3", "0.2000", "0.00010", "0.3000"],
        ["b", "1 of 2", "0.5000", "0.5000", "0.5000"],
        ["c", "0 of 1", "", "", ""],
    ]
    assert seeds_table(("seed=0", 0.1), ("seed=1", 0.4))[1:] == [["2", "0.2500", "0.1000", "0.4000"]]
    assert seeds_table(("flow=a seed=0", 0.1), ("flow=b seed=1", 0.4)) == []
    assert seeds_table(("flow=a", 0.1), ("flow=a", 0.4)) == []  # nor do they differ by a seed


@pytest.fixture
def sweep(run: Callable[..., Result], made_once: Path) -> Path:
    if not made_once.exists():
        settings = (*TINY, "flow=iresnet,resflow", "data=moons,rings", f"hydra.sweep.dir={made_once}")
        assert run("train", "-m", *settings).status == 0
    return made_once


def look(page: Path, width: int, script: str, *flags: str) -> dict:
    """Open `page` in a browser of this width, and return what `script` fills the object `seen` with, once loaded."""
    probe = page.with_name("probe.html")
    watcher = (
        "<script>addEventListener('load', () => { const seen = {loaded: performance.now(), width: innerWidth, "
        "wide: document.documentElement.scrollWidth, broken: [...document.images].filter(i => !i.naturalWidth).length};"
        f"{script}; document.title = JSON.stringify(seen); }})</script>"
    )
    probe.write_text(page.read_text().replace("</body>", f"{watcher}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000", *flags]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=60, check=False
    )
    probe.unlink()
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout).group(1)))


def test_reports_load_nothing(sweep: Path) -> None:
    pages = [sweep / "report.html", *(sweep / str(number) / "report.html" for number in range(4))]
    for page in pages:
        text = page.read_text()
        sources = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert sources
        assert all(source.startswith("data:") or (page.parent / source).exists() for source in sources)
        assert "@import" not in text
        assert "url(" not in text
    assert all(f">{name}</" in pages[0].read_text() for name in ("moons", "iresnet", "KL, nats", "trainer.epochs"))
    assert all(f"{words}" in pages[1].read_text() for words in ("KL, nats", "trainer.epochs", "git_commit"))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_reports_work_in_a_browser(sweep: Path) -> None:
    sort = """
        const column = () => [...document.querySelectorAll('tr[data-index]')].map(row => row.dataset.index);
        const head = [...document.querySelectorAll('th')].find(h => h.textContent === 'run');
        seen.sorted = document.querySelector('th[aria-sort]')?.getAttribute('aria-sort');
        seen.first = column(); head.click(); seen.up = column(); head.click(); seen.down = column();
        const shown = () => [...document.querySelectorAll('.charts')].map(c => getComputedStyle(c).display !== 'none');
        seen.steps = shown(); document.getElementById('by-time').click(); seen.time = shown();
        seen.background = getComputedStyle(document.body).backgroundColor;
        const name = document.querySelector('.legend [data-index="2"]');
        name.dispatchEvent(new Event('pointerenter'));
        const on = () => [...new Set([...document.querySelectorAll('.on')].map(e => e.dataset.index))];
        seen.chosen = on();
        const tap = document.querySelector('.legend [data-index="1"]');
        for (const kind of ['pointerenter', 'pointerdown', 'pointerup', 'pointerleave'])
            tap.dispatchEvent(new PointerEvent(kind, {pointerType: 'touch', bubbles: kind.length < 12}));
        seen.tapped = on();
    """
    loaded = []
    for width in (1280, 500):
        seen = look(sweep / "report.html", width, sort)
        assert seen["width"] == width
        assert seen["wide"] <= width  # nothing sticks out
        assert seen["broken"] == 0
        loaded.append(seen["loaded"])
        assert seen["up"] == ["0", "1", "2", "3"] == seen["down"][::-1]
        assert sorted(seen["first"]) == seen["up"]
        assert (seen["steps"], seen["time"]) == ([True, False], [False, True])
        assert seen["chosen"] == ["2"]
        assert seen["tapped"] == ["1"]
        assert seen["sorted"] == "ascending"
    assert min(loaded) < 2000
    dark = look(sweep / "report.html", 1280, sort, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert dark["background"] != seen["background"]
    assert look(sweep / "0" / "report.html", 500, "")["wide"] <= 500
