"""report.html: what a run or a sweep came to, on one page that opens anywhere."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, OmegaConf

from atomic import write_atomically
from reports.chart import Series, chart, swatch
from reports.page import embedded, page, picture, table, tiles
from training.configuration import load_config
from training.defaults import changed_settings
from training.figures import in_digits, with_error
from training.run_folder import figure_path, load_metrics, load_summary
from training.sweep_table import SweepRow, differences, in_words, read_rows

__all__ = ["write_run_report", "write_sweep_report"]

CURVES = (
    ("kl", "KL from the target, nats", True),
    ("nll", "negative log-likelihood, nats", False),
    ("lipschitz", "largest certified Lipschitz constant of a block", False),
    ("logdet_std", "estimator's error: standard deviation of one sample's log-determinant, nats", False),
    ("logdet_bias", "estimator's error: mean over the held-out points, nats", False),
)
AXES = (("step", "by-step", "step"), ("seconds", "by-time", "seconds"))
VERSIONS = ("python", "torch", "numpy", "git_commit", "git_dirty", "device", "cpu_capability", "threads",
            "config_sha256")  # fmt: skip
SHOWN = {"nll": "NLL, nats", "lipschitz": "Lipschitz", "seconds": "seconds"}
"""Figures of a sweep's table, beside the KL."""
AXIS_CHOICE = (
    '<p class="axis-choice soft">against <label><input type="radio" name="axis" id="by-step" checked>steps</label>'
    '<label><input type="radio" name="axis" id="by-time">time</label></p>'
)


def write_run_report(run: Path) -> None:
    """Write report.html of a run that has ended, from the files in its folder."""
    config, summary = load_config(run, "resume"), load_summary(run)
    if summary["kl"] is None:  # of one's own points, whose density is not known
        merit = {"NLL, nats": with_error(summary["nll"], summary["nll_stderr"])}
    else:
        merit = {
            "KL, nats": with_error(summary["kl"], summary["kl_stderr"]),
            "NLL, nats": f"{summary['nll']:.4f}",
            "entropy of the target, nats": f"{summary['entropy']:.4f}",
        }
    body = [
        tiles(
            {
                **merit,
                "Lipschitz bound": _short(summary["lipschitz"]) or "none",
                "inverse error": f"{summary['inverse_error']:.1e}",
                "parameters": f"{summary['parameters']:,}",
                "steps": f"{summary['steps']:,}",
                "seconds, with the last evaluation": f"{summary['seconds']:.0f}",
            }
        ),
        '<div class="pictures">',
        picture(run / "density.gif", "the learned density, epoch by epoch"),
        picture(run / "transport.gif", "samples carried from the base to the data"),
        picture(figure_path(run, summary["epochs"]), "the last epoch, measured on fewer points", wide=True),
        "</div>",
        *_curves([(0, "", load_metrics(run))]),
        *_settings_table("Settings that differ from the defaults", changed_settings(config)),
        *_versions({key: summary.get(key) for key in VERSIONS}),
    ]
    title = f"{summary['flow']} on {summary['data']}, seed {summary['seed']}"
    _write(run, page(title, str(run), body))


def write_sweep_report(sweep: Path) -> None:
    """Write report.html of a sweep, from the files in its folder and its runs'."""
    rows = read_rows(sweep)
    told_apart = differences(rows)
    ended = [row for row in rows if row.figures]
    body = [
        '<div class="pictures">',
        picture(sweep / "sheet.gif", "what each run has learned, epoch by epoch", wide=True),
        "</div>",
        *_seeds_table(rows, told_apart),
        "<h2>Runs</h2>",
        _runs_table(sweep, rows, told_apart),
        *_curves(
            [(row.number, " ".join(in_words(told)), load_metrics(row.folder)) for row, told in zip(rows, told_apart)]
        ),
    ]
    if ended:
        configs = [load_config(row.folder, "resume") for row in ended]
        body += _settings_table("Settings of all runs that differ from the defaults", _changed_in_all(configs))
        body += _versions({key: _common(row.figures.get(key) for row in ended) for key in VERSIONS[:-1]})
    failed = sum(1 for row in rows if row.error is not None)
    subtitle = f"{len(rows)} run{'s' * (len(rows) != 1)}{f', {failed} failed' if failed else ''}; {sweep}"
    _write(sweep, page(f"Sweep {sweep.name}", subtitle, body))


def _write(folder: Path, text: str) -> None:
    write_atomically(folder / "report.html", text.encode(errors="replace"))  # a path may hold what is no text


def _curves(runs: list[tuple[int, str, list[dict[str, float]]]]) -> list[str]:
    """The charts of runs, given by number, name and metrics."""
    every = [row for _, _, rows in runs for row in rows]
    # Without figures that do not apply, such as the KL of one's own points, or are zero, as an exact estimator's error.
    shown = [curve for curve in CURVES if any(math.isfinite(row[curve[0]]) and row[curve[0]] for row in every)]
    parts = ["<h2>Curves</h2>", AXIS_CHOICE, _legend(runs)]
    for key, kind, label in AXES:
        parts.append(f'<div class="charts {kind}">')
        for figure, title, logarithmic in shown:
            lines = [
                Series(name, number, [row[key] for row in rows], [row[figure] for row in rows])
                for number, name, rows in runs
            ]
            parts.append(chart(title, label, lines, logarithmic))
        parts.append("</div>")
    return parts


def _legend(runs: list[tuple[int, str, list[dict[str, float]]]]) -> str:
    """Which line is whose, where there are several; a touch or the pointer on a name leaves the others faint."""
    if len(runs) < 2:
        return ""
    entries = (f'<span data-index="{n}">{swatch(n)} {n} {html.escape(name)}</span>' for n, name, rows in runs if rows)
    return f'<p class="legend">{"".join(entries)}</p>'


def _seeds_table(rows: list[SweepRow], told_apart: list[dict[str, str]]) -> list[str]:
    """A row for each group of runs that differ only by seed, with their median; empty where no two runs do."""
    groups: dict[tuple[str, ...], list[SweepRow]] = {}
    for row, told in zip(rows, told_apart):
        groups.setdefault(tuple(value for key, value in told.items() if key != "seed"), []).append(row)
    keys = list(told_apart[0]) if rows else []
    if "seed" not in keys or len(groups) == len(rows):
        return []
    measures = " or ".join(sorted({row.measure.upper() for row in rows if row.figures})) or "KL"
    names = [*(key for key in keys if key != "seed"), "seeds", f"median {measures}, nats", "lowest", "highest"]
    lines = []
    for values, runs in groups.items():
        merits = [row.merit for row in runs if row.figures]
        seeds = str(len(runs)) if len(merits) == len(runs) else f"{len(merits)} of {len(runs)}"
        cells = [f"<td>{html.escape(text)}</td>" for text in (*values, seeds)]
        for summary in (statistics.median, min, max):
            value = summary(merits) if merits else None
            cells.append(_cell("" if value is None else in_digits(value), value))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return ["<h2>Over seeds</h2>", _sortable(names, lines)]


def _runs_table(sweep: Path, rows: list[SweepRow], told_apart: list[dict[str, str]]) -> str:
    """The runs, the best first by `SweepRow.rank`."""
    keys = list(told_apart[0]) if rows else []
    names = ["run", "learned", "KL, nats", *keys, *SHOWN.values()]
    if failed := any(row.error is not None for row in rows):
        names.append("error")
    lines = []
    for row, told in sorted(zip(rows, told_apart), key=lambda pair: pair[0].rank):
        run = f"{swatch(row.number)} {row.number}"
        if (row.folder / "report.html").exists():
            run = f'<a href="{quote(row.folder.relative_to(sweep).as_posix())}/report.html">{run}</a>'
        figures = row.figures
        texts = {"kl": "", **{key: _short(figures.get(key)) for key in SHOWN}}
        if figures:
            texts |= {"nll": in_digits(figures["nll"]), "seconds": f"{figures['seconds']:.0f}"}
        texts[row.measure] = row.merit_in_words
        cells = [f'<td data-value="{row.number}">{run}</td>', f"<td>{_thumbnail(row.folder)}</td>"]
        cells += [_cell(texts["kl"], figures.get("kl")), *(f"<td>{html.escape(told[key])}</td>" for key in keys)]
        cells += [_cell(texts[key], figures.get(key)) for key in SHOWN]
        if failed:
            cells.append(f'<td class="error">{html.escape(row.error or "")}</td>')
        lines.append(f'<tr data-index="{row.number}">{"".join(cells)}</tr>')
    measures = {row.measure for row in rows if row.figures}
    return _sortable(names, lines, by=SHOWN["nll"] if measures == {"nll"} else "KL, nats")


def _sortable(names: list[str], lines: list[str], by: str | None = None) -> str:
    """A table of `lines` below columns of these names, sorted `by` one of them; a click on another sorts by that."""
    heads = "".join(_head(name, name == by) for name in names)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(name: str, is_sorted: bool) -> str:
    if name == "learned":
        return f"<th>{name}</th>"
    first = ' aria-sort="ascending"' if is_sorted else ""
    return f'<th data-sort{first}><button type="button">{html.escape(name)}</button></th>'


def _cell(text: str, value: float | None) -> str:
    return f'<td data-value="{"" if value is None else value}">{text}</td>'


def _thumbnail(run: Path) -> str:
    """The last learned density of a run, small."""
    from training.sheets import thumbnail  # here, because matplotlib takes a while to import

    data = thumbnail(run)
    return f'<img alt="learned density" src="{embedded(data, ".png")}">' if data is not None else ""


def _changed_in_all(configs: list[DictConfig]) -> dict[str, tuple[Any, Any]]:
    """Settings that have one value in all of `configs` and differ from the default in some: (value, defaults)."""
    changed = [changed_settings(config) for config in configs]
    found = {}
    for key in dict.fromkeys(key for of_run in changed for key in of_run):
        values = {_plain(config.choices.get(key, OmegaConf.select(config, key))) for config in configs}
        if len(values) == 1:
            found[key] = values.pop(), _common(of_run[key][1] for of_run in changed if key in of_run)
    return found


def _settings_table(title: str, changed: dict[str, tuple[Any, Any]]) -> list[str]:
    if not changed:
        return [f"<h2>{title}</h2>", '<p class="soft">none</p>']
    rows = [[key, _plain(value), _plain(default)] for key, (value, default) in changed.items()]
    return [f"<h2>{title}</h2>", table(["setting", "value", "default"], rows)]


def _versions(found: dict[str, Any]) -> list[str]:
    return ["<h2>Versions</h2>", table(["", ""], [[key, _plain(value)] for key, value in found.items()])]


def _common(values: Iterable[Any]) -> str:
    """The value, if it is one for all; otherwise all of them."""
    return ", ".join(dict.fromkeys(map(_plain, values)))


def _plain(value: Any) -> str:
    """A value as configs write it."""
    plain = {True: "true", False: "false", None: "null"}
    return plain[value] if isinstance(value, (bool, type(None))) else str(value)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
