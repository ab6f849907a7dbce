"""The KL that ordinary runs of train.py reach in equal time: variants of a recipe, on several densities."""

from __future__ import annotations

import math
import shlex
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from tqdm import tqdm

from benchmarks.measurement import arguments, print_table
from benchmarks.record import Clock, Job, Merit, Record
from benchmarks.runs import digest, run
from plots.figure import add_axes, new_figure, pixels, write_png

__all__ = ["compare"]

EPOCH = 500  # steps between two evaluations, which the clock counts as well
MOST_EPOCHS = 200  # more steps than there is time for
PANELS = 5  # of the figure, side by side
LEAST = 1e-4  # nats: what a KL below it, or below 0 by its sampling error, is drawn as

Found = dict[tuple[Clock, str, str], list[Merit]]
"""Of every seed, by clock, density and variant."""


def table_of(found: Found, clock: Clock, densities: Sequence[str], variants: Sequence[str]) -> list[list[str]]:
    """The median KL, in nats, a row for each variant, a dash where there is none.

    In bold is the lowest of each density, and every median that is at most two standard errors of the difference above
    the highest seed of that lowest variant.
    """

    def median(runs: list[Merit]) -> Merit:
        return Merit(statistics.median(run.kl for run in runs), max(run.stderr for run in runs))

    def cell(density: str, variant: str) -> str:
        if (clock, density, variant) not in found:
            return "-"
        kl, stderr = median(found[clock, density, variant])
        lowest = min((found[clock, density, name] for name in variants if (clock, density, name) in found), key=median)
        enough = max(run.kl for run in lowest) + 2 * math.hypot(stderr, median(lowest).stderr)
        text = f"{kl:.4f}" if kl < 0.1 else f"{kl:.2f}"
        return f"**{text}**" if kl <= enough else text

    return [[variant, *(cell(density, variant) for density in densities)] for variant in variants]


def draw(path: Path, found: Found, densities: Sequence[str], variants: Sequence[str]) -> None:
    """A panel for each density: the KL of every run a dot, one line of dots for each variant and each clock."""
    clocks = sorted({clock for clock, _, _ in found})
    colors = colormaps["plasma"](np.linspace(0.75, 0.35, len(clocks)))
    columns = min(PANELS, len(densities))
    rows = math.ceil(len(densities) / columns)
    left, width, high = 20 + 6 * max(map(len, variants)), 175, 17 * len(variants)
    figure = new_figure(left + (width + 15) * columns + 10, 65 + (60 + high) * rows)
    total = figure.bbox.height
    drawn = [max(run.kl, LEAST) for runs in found.values() for run in runs]
    limits = (0.7 * min(drawn), 1.5 * max(drawn))
    for index, density in enumerate(densities):
        row, column = divmod(index, columns)
        axes = add_axes(figure, left + (width + 15) * column, 85 + (60 + high) * row, width, high)
        for number, (clock, color) in enumerate(zip(clocks, colors)):
            shift = 0.4 * ((number + 0.5) / len(clocks) - 0.5)
            for line, variant in enumerate(variants):
                values = [max(run.kl, LEAST) for run in found.get((clock, density, variant), [])]
                axes.plot(values, np.full(len(values), line + shift), "o", color=color, markersize=4.5,
                          markeredgewidth=0, label=str(clock) if line == 0 else None)  # fmt: skip
        axes.set(xscale="log", xlim=limits, ylim=(len(variants) - 0.4, -0.6))
        axes.set_xticks([tick for tick in 10.0 ** np.arange(-4, 2) if limits[0] < tick < limits[1]])
        axes.set_title(density, fontsize=10, pad=4)
        axes.set_yticks(range(len(variants)), variants if column == 0 else [])
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.tick_params(labelsize=8, length=2)
        if index == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="upper left", ncols=len(clocks), fontsize=9,
                          frameon=False, bbox_to_anchor=(0, 1 - 24 / total))  # fmt: skip
    title = f"KL(target || model) in nats, every run a dot; what is below {LEAST:g} is drawn there"
    figure.text(8 / figure.bbox.width, 1 - 20 / total, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels(figure))


def compare(
    name: str,
    description: str,
    variants: Mapping[str, Sequence[str]],
    densities: Sequence[str],
    base: str,
    seconds: Sequence[float] = (60.0,),
) -> None:
    """Run every variant on every density, print a table of the median KL, in nats, and draw each run.

    Runs that the CSV file already has are not made again, so the command may be stopped and started again. It does not
    notice when configs or code change what settings mean: delete the rows from before such a change.

    Args:
        name: of the command, its folder, its CSV file and its figure.
        description: of the command.
        variants: settings of train.py, by the name that heads a row.
        densities: the default of `--densities`.
        base: setting that comes before those of a variant; `{data}` in it stands for the density.
        seconds: of a run, the default of `--seconds`.
    """
    parser = arguments(description, name, "csv")
    parser.add_argument("--seconds", type=float, nargs="+", help="of a run, evaluation included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", nargs="+", default=densities)
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(variants), help="all of them")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, of --threads threads each")
    parser.add_argument("--folder", type=Path, default=Path(f"outputs/benchmarks/{name}"), help="of the runs")
    parser.add_argument("--show", action="store_true", help="make no runs: show those of --csv, by any clock")
    options = parser.parse_args()

    def settings_of(clock: Clock, data: str, variant: str, seed: int) -> list[str]:
        return [base.format(data=data), *variants[variant], f"seed={seed}", f"threads={clock.threads}",
                f"trainer.max_seconds={clock.seconds:g}", f"trainer.steps_per_epoch={EPOCH}",
                f"trainer.epochs={MOST_EPOCHS}"]  # fmt: skip

    def job_of(clock: Clock, data: str, variant: str, seed: int) -> Job:
        return Job(clock.seconds, data, variant, seed, clock.threads, clock.at_once,
                   digest(settings_of(clock, data, variant, seed)))  # fmt: skip

    record = Record(options.csv)
    jobs = [
        job_of(Clock(time, options.threads, options.at_once), data, variant, seed)
        for time in options.seconds or seconds
        for seed in range(options.seeds)
        for data in options.densities
        for variant in options.variants
    ]

    def make(job: Job) -> None:
        name = f"{job.density}-{job.variant.replace(' ', '_')}-{job.seed}"
        settings = settings_of(job.clock, job.density, job.variant, job.seed)
        try:
            record.add(job, run(options.folder / f"{job.at_once}_at_once", name, settings)[1])
        except subprocess.CalledProcessError as error:  # which has said why; the others go on
            failed.append(shlex.join(error.cmd[1:]))

    failed: list[str] = []
    missing = [] if options.show else [job for job in jobs if job not in record]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(tqdm(pool.map(make, missing), total=len(missing), unit="run", disable=None))
    found: Found = {}
    for job in record:
        wanted = job.density in options.densities and job.variant in options.variants
        wanted = wanted and (options.seconds is None or job.seconds in options.seconds)
        as_now = wanted and job == job_of(job.clock, job.density, job.variant, job.seed)
        if as_now and (options.show or job in jobs):
            found.setdefault((job.clock, job.density, job.variant), []).append(record.merit(job))
    shown = [variant for variant in options.variants if any(variant == key[2] for key in found)]
    for clock in sorted({clock for clock, _, _ in found}):
        seeds = [len(values) for key, values in found.items() if key[0] == clock]
        print(f"\nmedian KL in nats after {clock}; {min(seeds)} to {max(seeds)} seeds")
        print_table(["", *options.densities], table_of(found, clock, options.densities, shown))
    if found:
        draw(options.csv.with_suffix(".png"), found, options.densities, shown)
    else:
        print(f"no such runs in {options.csv}")
    if failed:
        raise SystemExit("\n".join([f"{len(failed)} of {len(missing)} runs failed:", *failed]))
