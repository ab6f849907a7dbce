"""Peak memory of a step against the terms of the series and against blocks: `python -m benchmarks.memory`.

Counted is every byte of every tensor alive at once, above those alive before the step. The gradients are not counted:
they were alive before, since they are set to zero in place, as in training. Nor is the working memory of compiled code,
about a MiB a thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.measurement import arguments, print_table, write_json
from benchmarks.peers import normflows_model
from flows.estimators import Truncated
from flows.residual_flow import ResidualFlow
from flows.stacks import stack_parameters

TERMS = (2, 4, 8, 16, 32, 64)
BLOCKS = (2, 8, 32)
WIDTH, BATCH = 128, 512

OURS = {"series, standard": ("series", "standard"), "neumann, standard": ("neumann", "standard"),
        "neumann, saving": ("neumann", "saving")}  # fmt: skip
NORMFLOWS = {"normflows, standard": False, "normflows, saving": True}


def peak(step: Callable[[], Tensor]) -> int:
    """The most bytes allocated at once in a forward and backward pass, above those before it, on the CPU."""
    step()  # gradients, and whatever is made only once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step()
    alive = most = 0
    events = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def ours(
    d: int, blocks: int, terms: int, gradient: str, memory: str, jacobian: str, plain: bool
) -> Callable[[], Tensor]:
    estimator = Truncated(n_terms=terms, gradient=gradient, memory=memory, jacobian=jacobian)
    flow = ResidualFlow(d, estimator, blocks, WIDTH, depth=2, activation="lipswish", coeff=0.98).train()
    if not plain and (reason := flow.compile_for(torch.device("cpu"))):
        raise SystemExit(f"nothing can be compiled here, so only --plain can be measured: {reason}")
    stack_parameters(flow)
    return _step(flow, lambda x: -flow.log_prob(x).mean(), d)


def theirs(d: int, blocks: int, terms: int, reduce_memory: bool) -> Callable[[], Tensor]:
    model = normflows_model(d, blocks, WIDTH, n_power_series=terms, reduce_memory=reduce_memory).train()
    return _step(model, model.forward_kld, d)


def _step(model: torch.nn.Module, loss_of: Callable[[Tensor], Tensor], d: int) -> Callable[[], Tensor]:
    x = torch.randn(BATCH, d)

    def step() -> Tensor:
        model.zero_grad(set_to_none=False)
        loss = loss_of(x)
        loss.backward()
        return loss.detach()

    return step


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "memory")
    parser.add_argument("--terms", nargs="+", type=int, default=TERMS)
    parser.add_argument("--blocks", nargs="+", type=int, default=BLOCKS)
    parser.add_argument("--dimensions", nargs="+", type=int, default=(2, 64))
    parser.add_argument("--plain", action="store_true", help="ours with compile=false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    contestants: dict[str, Callable[[int, int, int], Callable[[], Tensor]]] = {}
    for jacobian in ("dense", "vjp"):
        for name, (gradient, memory) in OURS.items():
            contestants[f"{jacobian}, {name}"] = functools.partial(
                ours, gradient=gradient, memory=memory, jacobian=jacobian, plain=options.plain
            )
    for name, reduce_memory in NORMFLOWS.items():
        contestants[name] = functools.partial(theirs, reduce_memory=reduce_memory)

    results = []
    for d in options.dimensions:
        columns = [(16, terms) for terms in options.terms] + [(blocks, 10) for blocks in options.blocks]
        rows = []
        for name, make in tqdm(contestants.items(), leave=False, disable=None):
            found = [peak(make(d, blocks, terms)) for blocks, terms in columns]
            rows.append([name, *(f"{bytes_ / 2**20:.1f}" for bytes_ in found)])
            results += [
                {"d": d, "what": name, "blocks": blocks, "terms": terms, "bytes": bytes_}
                for (blocks, terms), bytes_ in zip(columns, found, strict=True)
            ]
        print(f"\nd = {d}, width {WIDTH}, batch {BATCH}: peak MiB of a step (blocks x terms)\n")
        print_table(["", *(f"{blocks} x {terms}" for blocks, terms in columns)], rows)
    write_json(options.json, options.threads, results)


if __name__ == "__main__":
    main()
