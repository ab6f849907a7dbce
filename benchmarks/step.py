"""One training step, data to Lipschitz update, beside normflows and torchflows: `python -m benchmarks.step`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measurement import arguments, interleaved, print_table, ratio, write_json
from benchmarks.peers import TRUNCATED, normflows_model, normflows_step, torchflows_step
from datasets.moons import Moons
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated
from flows.residual_flow import ResidualFlow
from training.learner import Learner
from training.optimizers import adam

SIZES = ("8x32", "16x64", "16x128", "32x128")
BATCHES = (512, 4096)
TOGETHER = 64  # batches that are drawn at once, as the trainer does, for all alike

# What is compared with what. Each of ours stands beside the setting of normflows that computes the same.
OURS: dict[str, tuple[LogDetEstimator, str]] = {
    "exact": (Exact(), "normflows exact"),
    "truncated": (Truncated(n_terms=TRUNCATED), "normflows truncated"),
    "russian_roulette": (RussianRoulette(), "normflows russian_roulette"),
    "russian_roulette, vjp": (RussianRoulette(jacobian="vjp", share="batch"), "normflows russian_roulette"),
}
NORMFLOWS = {
    "normflows exact": {"brute_force": True, "reduce_memory": False},
    "normflows truncated": {"n_power_series": TRUNCATED, "reduce_memory": False},
    "normflows russian_roulette": {},  # its default: memory-saving
}


def batches(size: int) -> Iterator[Tensor]:
    """Batches of data."""
    while True:
        yield from Moons().sample(TOGETHER * size).split(size)


def our_step(
    blocks: int, width: int, estimator: LogDetEstimator, draw: Callable[[], Tensor], plain: bool
) -> Callable[[], None]:
    """A step of the trainer: with gradient clipping, the weights' average and, as normflows, 5 power iterations."""
    flow = ResidualFlow(2, estimator, blocks, width, depth=2, activation="lipswish", coeff=0.98).train()
    if not plain and (reason := flow.compile_for(torch.device("cpu"))):
        raise SystemExit(f"nothing can be compiled here, so only --plain can be measured: {reason}")
    learner = Learner(flow, adam(flow, lr=1e-3), clip_norm=1.0, ema_decay=0.99, power_iterations=5)
    learner.initialize(draw())
    flow.train()

    def step() -> None:
        learner.backward(draw())
        learner.update(1.0)

    return step


def products(blocks: int, width: int, batch: int) -> Callable[[], None]:
    """The matrix products of a step alone: value and two tangents through every layer, and twice that backward."""
    x, h = torch.randn(3 * batch, 2), torch.randn(3 * batch, width)
    first, hidden, last = torch.randn(2, width), torch.randn(width, width), torch.randn(width, 2)

    def run() -> None:
        for _ in range(blocks):
            for _ in range(2):  # forward; then the gradients of each layer's input, whose products are as large
                torch.mm(x[:batch], first)
                torch.mm(h, hidden)
                torch.mm(h, last)
            torch.mm(x[:batch].T, h[:batch])  # and the gradients of the weights
            torch.mm(h.T, h)
            torch.mm(h.T, x)

    return run


def main() -> None:
    parser = arguments(__doc__, "step")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="blocks x width")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="points a step")
    parser.add_argument("--rounds", type=int, default=20, help="steps timed of each")
    parser.add_argument("--plain", action="store_true", help="ours with compile=false")
    parser.add_argument("--alone", action="store_true", help="ours and the floor, without the peers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    table, results = [], []
    for size, batch in itertools.product(options.sizes, options.batches):
        blocks, width = (int(number) for number in size.split("x"))
        draw = functools.partial(next, batches(batch))
        contestants = {
            name: our_step(blocks, width, estimator, draw, options.plain) for name, (estimator, _) in OURS.items()
        }
        contestants["products"] = products(blocks, width, batch)
        if not options.alone:
            for name, settings in NORMFLOWS.items():
                contestants[name] = normflows_step(normflows_model(2, blocks, width, **settings), draw)
            contestants["torchflows"] = torchflows_step(2, blocks, width, draw)
        timings = interleaved(contestants, options.rounds)
        results.append(
            {"size": size, "batch": batch, "seconds": {name: timing.seconds for name, timing in timings.items()}}
        )
        for name, (_, peer) in OURS.items():
            ours, row = timings[name], [size, batch, name]
            row += [f"{1e3 * ours.median:.1f}", "{:.2f} ({:.2f} to {:.2f})".format(*ratio(ours, timings["products"]))]
            for other in () if options.alone else (peer, "torchflows"):
                slow = timings[other]
                row.append(f"{1e3 * slow.median:.0f}: " + "{:.1f}x ({:.1f} to {:.1f})".format(*ratio(slow, ours)))
            table.append(row)
    header = ["blocks x width", "batch", "estimator", "ours, ms", "of its products"]
    header += [] if options.alone else ["normflows, ms: ratio (quartiles)", "torchflows, ms: ratio (quartiles)"]
    print_table(header, table)
    write_json(options.json, options.threads, results)


if __name__ == "__main__":
    main()
