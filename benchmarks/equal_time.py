"""The KL that ordinary runs of train.py reach in equal time: variants of a recipe, on several densities."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.measurement import arguments, print_table, write_json
from benchmarks.runs import run

__all__ = ["compare"]

EPOCH = 500  # steps between two evaluations, which the clock counts as well
MOST_EPOCHS = 200  # more steps than there is time for


def compare(
    name: str, description: str, variants: Mapping[str, Sequence[str]], densities: Sequence[str], base: str
) -> None:
    """Run every variant on every density, print a table of the median KL, in nats, and write all as JSON.

    What is done already is not done again, so that it may be stopped and go on.

    Args:
        name: of the command, its folder and its JSON file.
        description: of the command.
        variants: settings of train.py, by the name that heads a row.
        densities: unless told otherwise.
        base: setting that comes before those of a variant, `{data}` the density.
    """
    parser = arguments(description, name)
    parser.add_argument("--seconds", type=float, default=60, help="of each run, evaluation included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", nargs="+", default=densities)
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(variants), help="all of them")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, of --threads threads each")
    parser.add_argument("--folder", type=Path, default=Path(f"outputs/benchmarks/{name}"), help="of the runs")
    options = parser.parse_args()

    def kl(job: tuple[str, str, int]) -> float:
        data, variant, seed = job
        folder = options.folder / f"{options.seconds:g}s" / f"{data}-{variant.replace(' ', '_')}-{seed}"
        clock = [f"trainer.max_seconds={options.seconds}", f"trainer.steps_per_epoch={EPOCH}",
                 f"trainer.epochs={MOST_EPOCHS}"]  # fmt: skip
        settings = [base.format(data=data), *variants[variant], f"seed={seed}", f"threads={options.threads}", *clock]
        return run(folder, settings)[1]["kl"]

    jobs = [
        (data, variant, seed)
        for seed in range(options.seeds)
        for data in options.densities
        for variant in options.variants
    ]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = dict(zip(jobs, tqdm(pool.map(kl, jobs), total=len(jobs), unit="run", disable=None), strict=True))
    of_seeds = {
        variant: {data: [found[data, variant, seed] for seed in range(options.seeds)] for data in options.densities}
        for variant in options.variants
    }
    table = [
        [variant, *(f"{statistics.median(values):.4f}" for values in of_densities.values())]
        for variant, of_densities in of_seeds.items()
    ]
    print_table(["KL, nats (median)", *options.densities], table)
    write_json(options.json, {"seconds": options.seconds, "threads": options.threads, "at_once": options.at_once,
                              "kl": of_seeds})  # fmt: skip
