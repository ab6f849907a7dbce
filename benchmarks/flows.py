"""KL of every flow on every density at equal time: `python -m benchmarks.flows`.

Ordinary runs of train.py, each flow as its config has it, cut off after the same number of seconds; residual ones with
the exact log-determinant. What is done already is not done again, so that it may be stopped and go on.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.measurement import arguments, print_table, write_json
from benchmarks.runs import run

DENSITIES = ("moons", "circles", "rings", "checkerboard", "8gaussians", "2spirals", "swissroll", "pinwheel",
             "4circles", "diamond")  # fmt: skip
FLOWS = {
    "iresnet": ["flow=iresnet", "estimator=exact"],
    "resflow": ["flow=resflow", "estimator=exact"],
    "idensenet": ["flow=idensenet"],
    "implicit": ["flow=implicit"],
    **{name: [f"flow={name}"] for name in ("nice", "realnvp", "maf", "nsf", "ffjord")},
}
EPOCH = 500  # steps between two evaluations, which the clock counts as well
MOST_EPOCHS = 200  # more steps than there is time for


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "flows")
    parser.add_argument("--seconds", type=float, default=60, help="of each run, evaluation included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", nargs="+", default=DENSITIES)
    parser.add_argument("--flows", nargs="+", default=list(FLOWS))
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, of --threads threads each")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks/flows"), help="of the runs")
    options = parser.parse_args()

    def kl(job: tuple[str, str, int]) -> float:
        data, flow, seed = job
        folder = options.folder / f"{options.seconds:g}s" / f"{data}-{flow}-{seed}"
        clock = [f"trainer.max_seconds={options.seconds}", f"trainer.steps_per_epoch={EPOCH}",
                 f"trainer.epochs={MOST_EPOCHS}"]  # fmt: skip
        settings = [*FLOWS[flow], f"data={data}", f"seed={seed}", f"threads={options.threads}", *clock]
        return run(folder, settings)[1]["kl"]

    jobs = [(data, flow, seed) for seed in range(options.seeds) for data in options.densities for flow in options.flows]
    with ThreadPoolExecutor(options.at_once) as pool:
        found = dict(zip(jobs, tqdm(pool.map(kl, jobs), total=len(jobs), unit="run", disable=None), strict=True))
    of_seeds = {
        data: {flow: [found[data, flow, seed] for seed in range(options.seeds)] for flow in options.flows}
        for data in options.densities
    }
    table = [
        [data, *(f"{statistics.median(values):.4f}" for values in of_flows.values())]
        for data, of_flows in of_seeds.items()
    ]
    print_table(["KL, nats (median)", *options.flows], table)
    write_json(options.json, {"seconds": options.seconds, "threads": options.threads, "at_once": options.at_once,
                              "kl": of_seeds})  # fmt: skip


if __name__ == "__main__":
    main()
