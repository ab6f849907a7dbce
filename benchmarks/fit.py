"""KL against seconds of training, ours beside flows of other packages, at equal time: `python -m benchmarks.fit`.

Each contestant trains for the same number of seconds, in a worker process; the clock stands still while it is
evaluated. KL is estimated alike for all: the mean of log p(x) - log q(x) over held-out points, log q exact.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from matplotlib.axes import Axes
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measurement import arguments, print_table, write_json
from datasets import TargetDensity
from plots.figure import new_figure, pixels, write_png
from training.batches import stratified
from training.configuration import build
from training.defaults import CONFIGS
from training.evaluation import log_prob
from training.learner import Learner

DENSITIES = ("moons", "circles", "rings", "checkerboard", "8gaussians")
CHUNK = 4096
EPOCH = 100  # batches drawn at a time
Curve = list[tuple[float, float]]  # of (seconds, KL in nats)
COLORS = {"ours": "#b5367a", "normflows residual flow": "#2a788e", "zuko spline flow": "#e08214", "zuko CNF": "0.5"}


@dataclass
class Contestant:
    """A model in training.

    Attributes:
        step: takes one training step, given a batch, shape (n, 2), and the share of the run that is done, 0 to 1.
        log_prob: the log-density at points, shape (n, 2), of the model that one would use now, such as an average.
        batches: training batches without end.
    """

    step: Callable[[Tensor, float], None]
    log_prob: Callable[[Tensor], Tensor]
    batches: Iterator[Tensor]


def fresh(target: TargetDensity, size: int, evenly: bool = False) -> Iterator[Tensor]:
    """Batches of `size` fresh points, `EPOCH` drawn at a time; `evenly`: each covers the target, as in our recipes."""
    while True:
        points = target.sample(EPOCH * size)
        yield from stratified(points, size) if evenly else points.split(size)


def config_of(data: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("train", [f"experiment={data}_fast"])


def ours(data: str, target: TargetDensity) -> Contestant:
    """The recipe of experiment=<data>_fast."""
    config = config_of(data)
    flow, trainer = build(config.flow, dimensions=2), config.trainer
    flow.compile_for(torch.device("cpu"))
    learner = Learner(
        flow, build(config.optimizer)(flow), trainer.clip_norm, trainer.ema_decay, trainer.power_iterations
    )
    learner.initialize(target.sample(2048))
    flow.train()

    def step(x: Tensor, done: float) -> None:
        learner.backward(x)
        learner.update(min(1.0, done / trainer.warmup + 0.02) * _cosine(done))

    def log_prob_of_average(x: Tensor) -> Tensor:
        learner.converge()
        return log_prob(learner.average.eval(), x)

    return Contestant(step, log_prob_of_average, fresh(target, trainer.batch_size, trainer.stratified))


def normflows_flow(data: str, target: TargetDensity) -> Contestant:
    """The residual flow of normflows' example, 16 blocks 2-128-128-2: see `benchmarks.peers`."""
    import normflows

    from benchmarks.peers import normflows_model

    model = normflows_model(2, 16, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(x: Tensor, done: float) -> None:
        model.train()
        optimizer.zero_grad()
        loss = model.forward_kld(x)
        if torch.isfinite(loss):  # as in the example
            loss.backward()
            optimizer.step()
        normflows.utils.update_lipschitz(model, 5)

    def exact(x: Tensor) -> Tensor:
        return torch.cat([model.eval().log_prob(part).detach() for part in x.split(CHUNK)])

    return Contestant(step, exact, fresh(target, 512))


def _zuko(model: nn.Module, rate: float, target: TargetDensity) -> Contestant:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)

    def step(x: Tensor, done: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * _cosine(done)
        optimizer.zero_grad()
        (-model().log_prob(x).mean()).backward()
        optimizer.step()

    @torch.no_grad()
    def exact(x: Tensor) -> Tensor:
        return torch.cat([model().log_prob(part) for part in x.split(CHUNK)])

    return Contestant(step, exact, fresh(target, 512))


def zuko_nsf(data: str, target: TargetDensity) -> Contestant:
    """A neural spline flow: 4 transforms, 16 bins, Adam 5e-3, cosine."""
    import zuko

    return _zuko(zuko.flows.NSF(2, transforms=4, bins=16, hidden_features=(64, 64)), 5e-3, target)


def zuko_cnf(data: str, target: TargetDensity) -> Contestant:
    """A continuous flow, exact trace."""
    import zuko

    return _zuko(zuko.flows.CNF(2, hidden_features=(64, 64)), 2e-3, target)


CONTESTANTS = {"ours": ours, "normflows residual flow": normflows_flow, "zuko spline flow": zuko_nsf,
               "zuko CNF": zuko_cnf}  # fmt: skip


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def compete(run: tuple[str, str, int], seconds: float, looks: int, held_out: int) -> Curve:
    """Train for `seconds`; return the KL at `looks` moments, the last at the end.

    Args:
        run: density, contestant and seed.
        held_out: points of the last evaluation; those before have a tenth.
    """
    data, name, seed = run
    target = build(config_of(data).data)
    x = target.sample(held_out, torch.Generator().manual_seed(10_000))
    log_p = target.log_prob(x.double())
    torch.manual_seed(seed)
    contestant = CONTESTANTS[name](data, target)
    contestant.step(next(contestant.batches), 0.0)
    moments = list(seconds * np.geomspace(0.05, 1, looks))
    curve, clock = [], 0.0
    while moments:
        began = time.perf_counter()
        contestant.step(next(contestant.batches), clock / seconds)
        clock += time.perf_counter() - began
        if clock >= moments[0]:
            moments.pop(0)
            part = held_out // 10 if moments else held_out
            curve.append((clock, float((log_p[:part] - contestant.log_prob(x[:part]).double()).mean())))
    return curve


def draw(path: Path, curves: Mapping[str, Mapping[str, list[Curve]]], seconds: float, threads: int) -> None:
    """KL against seconds, a panel for each density: every seed a line."""
    figure = new_figure(330 * len(curves), 360)
    for index, (data, of_density) in enumerate(curves.items()):
        width = 0.93 / len(curves)
        axes: Axes = figure.add_axes((0.05 + width * index, 0.15, width * 0.82, 0.68))
        for name, runs in of_density.items():
            for number, curve in enumerate(runs):
                times, values = zip(*curve, strict=True)
                axes.plot(times, np.maximum(values, 1e-4), color=COLORS[name], linewidth=1.4,
                          label=name if number == 0 else None)  # fmt: skip
        axes.set(xscale="log", yscale="log", title=data, xlabel="seconds of training")
        ticks = seconds * np.array([0.05, 0.2, 0.5, 1])
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.25, which="both", linewidth=0.4)
        axes.tick_params(labelsize=9)
        if index == 0:
            axes.set_ylabel("KL(target || model), nats")
            axes.legend(fontsize=9, loc="lower left")
    figure.text(0.5, 0.93, f"the fit at equal time: {seconds:.0f} s, threads: {threads}", ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, pixels(figure))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "fit")
    parser.add_argument("--seconds", type=float, default=60, help="of training, each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", nargs="+", default=DENSITIES)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--held-out", type=int, default=100_000, help="points of the last evaluation")
    parser.add_argument("--looks", type=int, default=8, help="evaluations of a run")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, of --threads threads each")
    options = parser.parse_args()

    runs = [
        (data, name, seed)
        for seed in range(options.seeds)
        for data in options.densities
        for name in options.contestants
    ]
    race = functools.partial(compete, seconds=options.seconds, looks=options.looks, held_out=options.held_out)
    with ProcessPoolExecutor(
        options.at_once, multiprocessing.get_context("spawn"), torch.set_num_threads, (options.threads,)
    ) as pool:
        found = dict(zip(runs, tqdm(pool.map(race, runs), total=len(runs), unit="run", disable=None), strict=True))
    curves = {
        data: {name: [found[data, name, seed] for seed in range(options.seeds)] for name in options.contestants}
        for data in options.densities
    }
    rows = []
    for data, of_density in curves.items():
        for name, of_seeds in of_density.items():
            last = [curve[-1][1] for curve in of_seeds]
            rows.append([data, name, f"{statistics.median(last):.4f}", f"{min(last):.4f} to {max(last):.4f}"])
    print_table(["density", "model", f"KL, nats, after {options.seconds:.0f} s (median)", "of the seeds"], rows)
    write_json(options.json, options.threads, {"seconds": options.seconds, "at_once": options.at_once,
                              "curves": curves})  # fmt: skip
    draw(options.json.with_suffix(".png"), curves, options.seconds, options.threads)


if __name__ == "__main__":
    main()
