"""What is measured of a flow, always with the exact log-determinant."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets import Target, TargetDensity
from flows import Flow
from flows.precision import widened
from training.figures import with_error
from training.passes import in_passes

__all__ = ["Evaluation", "HeldOut", "evaluate", "log_prob", "sample"]

# Points a pass, so that memory does not grow with their number. Plain operations are faster where all stays in a cache.
CHUNK, PLAIN_CHUNK = 16384, 2048


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
        x = target.hold_out(n, generator)
        if not isinstance(target, TargetDensity):
            return cls(x.to(device), None, None)
        log_p = torch.cat([target.log_prob(part.double()) for part in in_passes("scoring", x, CHUNK)])
        return cls(x.to(device), log_p, target.entropy)

    def part(self) -> HeldOut:
        """A tenth of them, for the evaluation after each epoch; of one's own points, which are few, 1000 at least."""
        n = len(self.x) // 10 if self.log_prob is not None else max(len(self.x) // 10, 1000)
        return HeldOut(self.x[:n], None if self.log_prob is None else self.log_prob[:n], self.entropy)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one flow on one held-out set, in nats unless said otherwise.

    Attributes:
        nll: the target's entropy plus `kl`. It estimates the mean of -log q(x) without the sampling noise of
            -log p(x), whose mean, the entropy, is known; so its standard error is that of `kl`.
            Where p is not known, the plain mean of -log q(x).
        kl: KL(target || model), the mean of log p(x) - log q(x); None where p is not known.
        lipschitz: largest certified Lipschitz constant of any block.
        inverse_error: largest distance between x and inverse(forward(x)), in units of the data.
        inverse_bound: certified bound on the error of any single block's inverse, from its residual and Lipschitz
            constant, relative to max(1, |z|); `inverse_error` is what was measured.
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
    def measure(self) -> str:
        """What `merit` is."""
        return "NLL" if self.kl is None else "KL"

    @property
    def headline(self) -> str:
        return f"{self.measure} {with_error(self.merit, self.nll_stderr)} nats"


@torch.no_grad()
def log_prob(flow: Flow, x: Tensor) -> Tensor:
    """The log-density of any number of points, shape (n, d) to (n,), in nats, without a graph.

    Raises:
        InverseError: a block has no certified inverse, or the forward pass of an inverse block is not solved.
    """
    return torch.cat([flow.log_prob(part) for part in in_passes("evaluating", x, _chunk(flow, x))])


@torch.no_grad()
def sample(flow: Flow, n: int, generator: torch.Generator | None = None) -> Tensor:
    """As `Flow.sample`, any number of points.

    Raises:
        InverseError: a block has no certified inverse, or rounding keeps it from its tolerance.
    """
    z = flow.sample_base(n, generator)
    return torch.cat([flow.preimage(part) for part in in_passes("sampling", z, _chunk(flow, z))])


def _chunk(flow: Flow, x: Tensor) -> int:
    return PLAIN_CHUNK if x.device.type == "cpu" and not flow.compiled else CHUNK


@torch.no_grad()
def evaluate(flow: Flow, held_out: HeldOut, seed: int) -> Evaluation:
    """Evaluate `flow`, left in evaluation mode, without moving the random state.

    Args:
        seed: of the estimator's noise, so that the figures are the same whenever they are computed.
    """
    device, parts, bounds = held_out.x.device, [], []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move every device's random state
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        for x in in_passes("evaluating", held_out.x, _chunk(flow, held_out.x)):
            flow.eval()
            z, log_det = flow(widened(x))  # so that rounding is no part of the estimator's error
            surprise = -flow.base_log_prob(z) - log_det
            inverse_error = torch.linalg.vector_norm(flow.preimage(z.to(x.dtype)) - x, dim=1)
            bounds.append(flow.inverse_bound)
            error = torch.zeros_like(log_det)
            if flow.estimates:
                flow.train()  # in smaller parts, since there may be many probes
                error = torch.cat([flow(widened(part))[1] for part in x.split(PLAIN_CHUNK)]) - log_det
            parts.append(torch.stack([surprise, error, inverse_error]).cpu().double())
    flow.eval()
    surprise, error, inverse_error = torch.cat(parts, dim=1)
    known = held_out.log_prob is not None
    difference = held_out.log_prob + surprise if known else surprise
    mean = float(difference.mean())
    stderr = float(difference.std()) / math.sqrt(len(difference))
    return Evaluation(
        nll=held_out.entropy + mean if known else mean,
        nll_stderr=stderr,
        kl=mean if known else None,
        kl_stderr=stderr if known else None,
        lipschitz=flow.lipschitz(),
        inverse_error=float(inverse_error.max()),
        inverse_bound=max((bound for bound in bounds if bound is not None), default=None),
        logdet_bias=float(error.mean()),
        logdet_std=float(error.std()),
    )
