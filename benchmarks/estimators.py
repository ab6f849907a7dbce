"""What the estimator of the log-determinant does to what is learned: `python -m benchmarks.estimators`.

Equal steps with each estimator, in ordinary runs of train.py. The training objective's own NLL is the exact one less
the estimator's bias. Where the two drift apart, the bias has been optimised into the model (Chen et al. 2019).
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from benchmarks.measurement import arguments, print_table, write_json
from benchmarks.runs import run
from plots.figure import new_figure, pixels, write_png

ESTIMATORS = {
    "exact": ["estimator=exact"],
    **{f"truncated, n = {n}": ["estimator=truncated", f"estimator.n_terms={n}"] for n in (2, 5, 10)},
    **{
        f"russian_roulette, {gradient}": ["estimator=russian_roulette", f"estimator.gradient={gradient}"]
        for gradient in ("series", "neumann")
    },
}
COLORS = {
    "exact": "black",
    "truncated, n = 2": "#fcae12",
    "truncated, n = 5": "#f1605d",
    "truncated, n = 10": "#b5367a",
    "russian_roulette, series": "#2a788e",
    "russian_roulette, neumann": "#22a884",
}

TICKS = (-10, -1, -0.1, 0, 0.1, 1)


def draw(path: Path, found: dict[str, dict[str, list[dict[str, float]]]], entropies: dict[str, float]) -> None:
    """For each density: exact KL (solid) and the objective's own (dashed) against steps."""
    figure = new_figure(600 * len(found), 430)
    for index, (data, curves) in enumerate(found.items()):
        width = 0.94 / len(found)
        axes = figure.add_axes((0.06 + width * index, 0.23, width * 0.9, 0.66))
        for name, rows in curves.items():
            steps = [row["step"] for row in rows]
            axes.plot(steps, [row["kl"] for row in rows], color=COLORS[name], linewidth=1.6, label=name)
            axes.plot(steps, [row["kl"] - row["logdet_bias"] for row in rows], color=COLORS[name], linewidth=1.1,
                      linestyle=(0, (3, 2)))  # fmt: skip
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set_yscale("symlog", linthresh=0.1, linscale=1)
        axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.minorticks_off()
        axes.set(title=f"{data}: NLL less the entropy, {entropies[data]:.3f} nats", xlabel="steps")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.4)
        if index == 0:
            axes.set_ylabel("nats, linear within 0.1: exact (solid),\nthe objective's own (dashed)")
            figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=len(curves), fontsize=9,
                          frameon=False)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels(figure))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "estimators")
    parser.add_argument("--densities", nargs="+", default=["moons", "checkerboard"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks/estimators"), help="of the runs")
    parser.add_argument("overrides", nargs="*", help="settings of train.py, for all runs")
    options = parser.parse_args()

    found, entropies, table, results = {}, {}, [], []
    jobs = [(data, name) for data in options.densities for name in ESTIMATORS]
    for data, name in tqdm(jobs, unit="run", disable=None):
        rows, summary = run(
            options.folder,
            f"{data}-{name.replace(', ', '-').replace(' = ', '')}",
            [f"data={data}", *ESTIMATORS[name], f"threads={options.threads}", *options.overrides],
        )
        found.setdefault(data, {})[name], entropies[data] = rows, summary["entropy"]
        milliseconds = 1e3 * summary["train_seconds"] / summary["steps"]
        table.append(
            [data, name, f"{summary['kl']:.4f}", f"{summary['kl'] - summary['logdet_bias']:.4f}",
             f"{summary['logdet_bias']:+.4f}", f"{summary['logdet_std']:.3f}", f"{milliseconds:.0f}"]
        )  # fmt: skip
        results.append({"data": data, "estimator": name, "rows": rows, "summary": summary})
    header = ["density", "estimator", "KL", "by its own estimate", "bias of log-det", "its std, a sample", "ms a step"]
    print_table(header, table)
    write_json(options.json, options.threads, results)
    draw(options.json.with_suffix(".png"), found, entropies)


if __name__ == "__main__":
    main()
