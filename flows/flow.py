"""A flow: a chain of bijections onto a Gaussian base."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flows.bijection import Bijection
from flows.compiled import alone_in_threads
from flows.precision import widened

__all__ = ["Flow"]


class Flow(Bijection):
    """A density on R^d: `bijections` carry data x to base z ~ N(0, I), first to last.

    In evaluation mode, and in the inverse, all is computed in float64 and rounded once, at the end, so that
    `inverse(forward(x))` is x as closely as z can hold it. Training is in the dtype of its input.

    Args:
        bijections: in the order in which data passes them.
        dimensions: d.

    Raises:
        TypeError: in evaluation mode and in the inverse, points of whole numbers, to which the result would be rounded.
        ValueError: points of another shape than (batch, d).
    """

    compiled: bool = False
    """Whether the C library computes it as a whole: see `compile_for`."""

    waits_for_device: bool = False
    """Whether a step of training waits for the device anyway, so that a look at its result costs nothing."""

    def __init__(self, bijections: Iterable[Bijection], dimensions: int) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)
        self.dimensions = dimensions

    def require_points(self, x: Tensor) -> None:
        """
        Raises:
            ValueError: `x` is not of shape (batch, d); some bijections would broadcast it.
        """
        if x.ndim != 2 or x.shape[1] != self.dimensions:
            raise ValueError(f"points are of shape (batch, {self.dimensions}), not {tuple(x.shape)}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.require_points(x)
        z = x if self.training else widened(x)
        terms = []
        for bijection in self.bijections:
            z, term = bijection(z)
            terms.append(term)
        return z.to(x.dtype), torch.stack(terms).sum(dim=0).to(x.dtype)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.require_points(z)
        x = widened(z)
        log_det = x.new_zeros(x.shape[0])
        with self.threads():
            for bijection in reversed(self.bijections):
                x, term = bijection.inverse(x)
                log_det = log_det + term
        return x.to(z.dtype), log_det.to(z.dtype)

    def preimage(self, z: Tensor) -> Tensor:
        self.require_points(z)
        x = widened(z)
        with self.threads():
            for bijection in reversed(self.bijections):
                x = bijection.preimage(x)
        return x.to(z.dtype)

    def threads(self) -> contextlib.AbstractContextManager[None]:
        """To be entered around many small operations: compiled code then has the threads of torch."""
        return alone_in_threads() if self.compiled else contextlib.nullcontext()

    def compile_for(self, device: torch.device) -> str | None:
        """Compute by compiled code from now on where that is faster; return None, or why it cannot be done here."""
        return None

    @property
    def estimates(self) -> bool:
        """Whether its log-determinants are estimates while training."""
        return False

    def why_not_captured(self) -> str | None:
        """Why steps of training cannot be one CUDA graph; None where they can."""
        return "only flows of residual blocks are known to do the same in every step"

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shapes (batch, d) to (batch,): log N(z; 0, I) + log |det dz/dx|."""
        z, log_det = self(x)
        return self.base_log_prob(z) + log_det

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; 0, I) in nats, shape (batch,)."""
        return -0.5 * (z * z).sum(dim=1) - 0.5 * self.dimensions * math.log(2 * math.pi)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points of the model, shape (n, d), without gradient. `generator` is one of the host's."""
        return self.preimage(self.sample_base(n, generator))

    def sample_base(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points of the base, shape (n, d), the same ones on every device."""
        like = next(self.parameters())
        return torch.randn(n, self.dimensions, generator=generator, device="cpu").to(like)

    @torch.no_grad()
    def inverse_path(self, z: Tensor) -> list[Tensor]:
        """Return the points on their way from the base to data: `z`, shape (n, d), then those after each bijection.

        A bijection whose `is_stage` is false, such as ActNorm, makes one step together with the block beside it.
        """
        self.require_points(z)
        x = widened(z)
        path = [x]
        with self.threads():
            for bijection in reversed(self.bijections):
                x = bijection.preimage(x)
                if bijection.is_stage:
                    path.append(x)
                elif len(path) > 1:
                    path[-1] = x
        return [x.to(z.dtype) for x in path]

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        self.require_points(x)
        for bijection in self.bijections:
            x = bijection.initialize(x)
        return x

    @property
    def inverse_bound(self) -> float | None:
        """The largest `inverse_bound` of a single bijection in the last inverse, not a bound for the whole flow."""
        bounds = [bijection.inverse_bound for bijection in self.bijections]
        return max((bound for bound in bounds if bound is not None), default=None)

    def lipschitz_constants(self) -> list[float]:
        """The certified Lipschitz constant of each residual block, in the order of the flow."""
        constants = [bijection.lipschitz() for bijection in self.bijections]
        return [constant for constant in constants if constant is not None]

    def lipschitz(self) -> float | None:
        return max(self.lipschitz_constants(), default=None)
