"""What is measured of a flow, always with the exact log-determinant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Points, Target
from flows import Flow
from flows.precision import widened

__all__ = ["Evaluation", "HeldOut", "evaluate", "log_prob", "sample"]

# Points a pass, so that memory does not grow with their number. Plain operations are faster where all stays in a cache.
CHUNK, PLAIN_CHUNK = 65536, 2048
PATIENCE = 1.0  # seconds without a progress bar


@dataclass(frozen=True)
class HeldOut:
    """Points of the target that are never trained on.

    Attributes:
        x: the points, shape (n, 2), on the flow's device.
        log_prob: the target's log-density there in nats, shape (n,), float64, on the host; None where it is not known.
        entropy: the target's entropy in nats, or None with it.
    """

    x: Tensor
    log_prob: Tensor | None
    entropy: float | None

    @classmethod
    def draw(cls, target: Target, n: int, generator: torch.Generator, device: torch.device) -> HeldOut:
        """`n` fresh points of a density; of one's own points those that are held out, `n` of them at most."""
        if isinstance(target, Points):
            return cls(target.held_out[:n].to(device), None, None)
        x = target.sample(n, generator)
        return cls(x.to(device), target.log_prob(x.double()), target.entropy)

    def part(self) -> HeldOut:
        """A tenth of them, for the evaluation after each epoch; of one's own points, which are few, 1000 at least."""
        n = len(self.x) // 10 if self.log_prob is not None else max(len(self.x) // 10, 1000)
        return HeldOut(self.x[:n], None if self.log_prob is None else self.log_prob[:n], self.entropy)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one flow on one held-out set, in nats unless said otherwise.

    Attributes:
        nll: the target's entropy plus `kl`: the mean of -log q(x), with the sampling noise of -log p(x), whose
            mean is known, taken out. So its standard error is that of `kl`.
            Where p is not known, the mean of -log q(x) as it stands.
        kl: KL(target || model), the mean of log p(x) - log q(x); None where p is not known.
        lipschitz: largest certified Lipschitz constant of any block.
        inverse_error: largest distance between x and inverse(forward(x)), in units of the data.
        inverse_bound: the largest error of any one block's inverse that its residual and Lipschitz constant leave room
            for, relative to max(1, |z|): what is certified, where `inverse_error` is what was seen.
        logdet_bias: mean of the training estimator's log-determinant less the exact one.
        logdet_std: standard deviation of the same difference for one sample.
    """

    nll: float
    nll_stderr: float
    kl: float | None
    kl_stderr: float | None
    lipschitz: float | None
    inverse_error: float
    inverse_bound: float | None
    logdet_bias: float
    logdet_std: float

    @property
    def merit(self) -> float:
        """What is to be made small: the KL, or the NLL where that is not known."""
        return self.nll if self.kl is None else self.kl

    @property
    def headline(self) -> str:
        return f"{'NLL' if self.kl is None else 'KL'} {self.merit:.4f} ± {self.nll_stderr:.4f} nats"


@torch.no_grad()
def log_prob(flow: Flow, x: Tensor) -> Tensor:
    """The log-density of any number of points, shape (n, d) to (n,), in nats, without a graph."""
    return _in_passes("evaluating", flow, flow.log_prob, x)


@torch.no_grad()
def sample(flow: Flow, n: int, generator: torch.Generator | None = None) -> Tensor:
    """As `Flow.sample`, any number of points."""
    return _in_passes("sampling", flow, flow.preimage, flow.sample_base(n, generator))


def _in_passes(what: str, flow: Flow, of: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `of(x)`, a part of the points at a time, between which Ctrl-C is heard and a progress bar moves."""
    size = PLAIN_CHUNK if x.device.type == "cpu" and not flow.compiled else CHUNK
    done = []
    with tqdm(
        total=len(x), desc=what, unit="point", unit_scale=True, delay=PATIENCE, disable=None, dynamic_ncols=True,
        leave=False,
    ) as bar:  # fmt: skip
        for part in x.split(size):
            done.append(of(part))
            bar.update(len(part))
    return torch.cat(done)


@torch.no_grad()
def evaluate(flow: Flow, held_out: HeldOut, seed: int, subset: int = 2048) -> Evaluation:
    """Evaluate `flow`, left in evaluation mode, without moving the random state.

    Args:
        held_out: points for `nll` and `kl`.
        seed: of the estimator's noise, so that the figures are the same whenever they are computed.
        subset: points for `inverse_error`, `logdet_bias` and `logdet_std`.
    """
    flow.eval()
    surprise = -log_prob(flow, held_out.x).cpu().double()
    known = held_out.log_prob is not None
    difference = held_out.log_prob + surprise if known else surprise
    mean = float(difference.mean())
    stderr = float(difference.std()) / math.sqrt(len(difference))

    x = held_out.x[:subset]
    inverse_error = float((flow.preimage(flow(x)[0]) - x).abs().max())
    device, x = x.device, widened(x)  # so that rounding is no part of the difference
    exact = flow(x)[1]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        flow.train()
        estimate = flow(x)[1]
        flow.eval()
    error = (estimate - exact).double()
    return Evaluation(
        nll=held_out.entropy + mean if known else mean,
        nll_stderr=stderr,
        kl=mean if known else None,
        kl_stderr=stderr if known else None,
        lipschitz=flow.lipschitz(),
        inverse_error=inverse_error,
        inverse_bound=flow.bound_inverse(),
        logdet_bias=float(error.mean()),
        logdet_std=float(error.std()),
    )
