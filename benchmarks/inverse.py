"""Samples a second through the inverse, beside normflows on the very same weights: `python -m benchmarks.inverse`.

normflows stops when no coordinate moves by more than its tolerance, so its error can exceed that; the errors of both
are measured. How often it evaluates a block depends on how far the flow is from the identity, so two flows are
inverted: one that has barely learned, and one that has learned for as long as a default run.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.measurement import arguments, interleaved, print_table, ratio, write_json
from datasets.moons import Moons
from flows.actnorm import ActNorm
from flows.estimators import Exact
from flows.residual_block import ResidualBlock
from flows.residual_flow import ResidualFlow
from training.learner import Learner
from training.optimizers import adam

POINTS = (1_000, 10_000)


def trained(blocks: int, width: int, steps: int) -> ResidualFlow:
    """A flow that has learned moons for a while, so that its blocks are not the identity."""
    flow, target = ResidualFlow(2, Exact(), blocks, width, depth=2, activation="lipswish", coeff=0.98), Moons()
    flow.compile_for(torch.device("cpu"))
    learner = Learner(flow, adam(flow, lr=5e-3), clip_norm=1.0, ema_decay=0.0, power_iterations=5)
    learner.initialize(target.sample(2048))
    flow.train()
    for step in tqdm(range(steps), desc="training", leave=False, disable=None):
        learner.backward(target.sample(512))
        learner.update(1 - step / steps)
    learner.converge()
    return flow.eval().requires_grad_(False)


def set_tolerance(flow: ResidualFlow, tolerance: float) -> None:
    for bijection in flow.bijections:
        if isinstance(bijection, ResidualBlock):
            bijection.tolerance = tolerance


class Normflows:
    """The same flow made of normflows' parts, with its inverse at a tolerance of our choice.

    Its `inverse` has the tolerances of `_inverse_fixed_point` as constants, a change of 3e-3 a coordinate.
    """

    def __init__(self, flow: ResidualFlow) -> None:
        from normflows.flows.residual import iResBlock
        from normflows.nets.lipschitz import InducedNormLinear, Swish

        self.flow = flow
        self.blocks: dict[int, nn.Module] = {}
        for index, bijection in enumerate(flow.bijections):
            if not isinstance(bijection, ResidualBlock):
                continue
            parts: list[nn.Module] = []
            for number, layer in enumerate(bijection.net.layers):
                linear = InducedNormLinear(layer.weight.shape[1], layer.weight.shape[0], n_iterations=5)
                linear.coeff = 1.0  # the weights are normalized already
                linear.weight.data.copy_(layer.normalized_weight())
                linear.bias.data.copy_(layer.bias)
                linear.compute_weight(update=True, n_iterations=50)
                if number > 0:
                    swish = Swish()
                    swish.beta.data.copy_(bijection.net.activations[number - 1].raw_beta.reshape(1))
                    parts.append(swish)
                parts.append(linear)
            self.blocks[index] = iResBlock(nn.Sequential(*parts), brute_force=True).eval().requires_grad_(False)

    def evaluations(self, z: Tensor, tolerance: float) -> float:
        """How often the inverse alone evaluates a block's network, the mean over the blocks."""
        calls: list[None] = []
        hooks = [block.nnet.register_forward_hook(lambda *_: calls.append(None)) for block in self.blocks.values()]
        self.inverse(z, tolerance)
        for hook in hooks:
            hook.remove()
        return len(calls) / len(self.blocks) - 1  # the log-determinant's

    def inverse(self, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """As `iResBlock.inverse`, log-determinant and all, block by block."""
        log_det = torch.zeros(len(z))
        for index in reversed(range(len(self.flow.bijections))):
            bijection = self.flow.bijections[index]
            if isinstance(bijection, ActNorm):
                z, term = bijection.inverse(z)
                log_det = log_det + term
            else:
                block = self.blocks[index]
                z = block._inverse_fixed_point(z, atol=tolerance**2, rtol=0.0)  # it compares squares
                log_det = log_det - block._logdetgrad(z)[1].view(-1).detach()
                z = z.detach()
        return z, log_det


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "inverse")
    parser.add_argument("--size", default="16x128", help="blocks x width")
    parser.add_argument("--steps", nargs="+", type=int, default=(300, 4800), help="of training before")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="at 1e-6 normflows may stop unsolved")
    parser.add_argument("--rounds", type=int, default=20, help="inversions timed of each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    blocks, width = (int(number) for number in options.size.split("x"))

    table, results = [], []
    for steps in options.steps:
        flow = trained(blocks, width, steps)
        peer = Normflows(flow)
        for n in POINTS:
            z = flow.sample_base(n, torch.Generator().manual_seed(1))
            set_tolerance(flow, 1e-7)
            exact = flow.preimage(z.double())
            set_tolerance(flow, options.tolerance)
            contestants = {
                "ours": lambda z=z, flow=flow: flow.preimage(z),
                "normflows": lambda z=z, peer=peer: peer.inverse(z, options.tolerance)[0],
            }
            errors = {name: float((invert() - exact).abs().max()) for name, invert in contestants.items()}
            evaluations = peer.evaluations(z, options.tolerance)
            timings = interleaved(contestants, options.rounds)
            row = [steps, n]
            for name, timing in timings.items():
                row += [f"{n / timing.median:,.0f}", f"{errors[name]:.1e}"]
            fast, slow = timings["ours"], timings["normflows"]
            table.append([*row, f"{evaluations:.0f}", "{:.1f}x ({:.1f} to {:.1f})".format(*ratio(slow, fast))])
            results.append(
                {"steps": steps, "points": n, "tolerance": options.tolerance, "errors": errors,
                 "normflows evaluations": evaluations,
                 "seconds": {name: timing.seconds for name, timing in timings.items()}}
            )  # fmt: skip
    header = ["steps", "points", "ours, a second", "its largest error", "normflows, a second", "its largest error"]
    print_table([*header, "its evaluations a block", "ratio (quartiles)"], table)
    write_json(options.json, options.threads, results)


if __name__ == "__main__":
    main()
