"""What a target density must offer."""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from arguments import ArgumentError, Range

__all__ = [
    "Length",
    "Noise",
    "Target",
    "TargetDensity",
    "Window",
    "gauss_legendre",
    "in_float64",
    "midpoints",
    "panels",
    "square",
]

Length = Annotated[float, Range(gt=0, le=1e6)]
"""A setting that is a length in the plane."""

Noise = Annotated[float, Range(gt=0, le=1e6)]
"""A setting that is the standard deviation of a Gaussian noise."""

Window = tuple[tuple[float, float], tuple[float, float]]
"""The rectangle that a density is drawn in: (x_min, x_max), (y_min, y_max)."""


class Target(abc.ABC):
    """What a flow on the plane is trained on."""

    cells: ClassVar[int] = 100
    """Cells along each side of the grid that it is drawn on."""

    in_own_units: ClassVar[bool] = False
    """Whether a flow standardizes its points first, by `mean` and `std`."""

    mean, std = torch.zeros(2), torch.ones(2)
    origin: Mapping[str, str] = {}
    """Settings stored with a run so that it finds the same data again: the path and the digest of a data file."""

    @abc.abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw `n` points, shape (n, 2), float32, on the host. `generator` is one of the host's."""

    @abc.abstractmethod
    def hold_out(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` points, or as many as there are, that are never trained on, shape (n, 2), float32, on the host."""

    @property
    @abc.abstractmethod
    def window(self) -> Window:
        """The rectangle that it is drawn in."""

    @property
    @abc.abstractmethod
    def drawn_as(self) -> str:
        """What `on_grid` returns, in words: the title of its panel."""

    @abc.abstractmethod
    def on_grid(self) -> np.ndarray:
        """The density or histogram to draw, per unit area, shape (cells, cells), the lowest y first."""


class TargetDensity(Target):
    """A density on the plane that can be sampled, independently, and evaluated, both exactly."""

    drawn_as = "target density"
    oversampling: int = 1
    """Points along each side of a cell, whose mean is drawn: more than 1 where the density is finer than a cell."""

    @abc.abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return ln p(x) in nats, shapes (..., 2) to (...), computed in float64, returned in the dtype of `x`.

        Minus infinity where the density is zero.
        """

    @property
    @abc.abstractmethod
    def window(self) -> Window:
        """The square that the density is drawn in. All but one part in ten thousand of its mass is inside."""

    def hold_out(self, n: int, generator: torch.Generator) -> Tensor:
        return self.sample(n, generator)

    def on_grid(self) -> np.ndarray:
        points = midpoints(self.window, self.cells * self.oversampling)
        parts = self.log_prob(points).exp().view(self.cells, self.oversampling, self.cells, self.oversampling)
        return parts.mean((1, 3)).numpy()

    @functools.cached_property
    def entropy(self) -> float:
        r"""The differential entropy :math:`H = -\int p \ln p` in nats, within 1e-6 for a smooth density.

        Raises:
            ArgumentError: the density integrates to something other than 1, because it is too thin or has edges: this
                check prevents a wrong entropy. A subclass whose density has edges overrides this property.
        """
        with _one_thread():
            mass, entropy = self.integrate()
        if not abs(mass - 1) < 1e-5:
            found = f"the integral of the density is {mass:.6g}, not 1"
            if not hasattr(self, "noise"):
                raise ArgumentError("", "a smooth density, or one with an `entropy` of its own", f"another: {found}")
            size = self.window[0][1] - self.window[0][0]
            accepts = f"what makes a density wide enough to integrate, such as {size / 500:.2g} or more"
            raise ArgumentError("noise", accepts, f"less: {found}")
        return entropy

    def integrate(self) -> tuple[float, float]:
        """The integrals of p and of -p ln p over the plane, by adaptive squares, which may miss a very thin density.

        A density with thin parts at known places overrides this. `entropy` accepts only a result whose mass is 1.
        """
        return _integrate(self._mass_and_entropy, self.window)

    def integrate_cartesian(self, x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
        """The same integrals over a rectangle, cut at `x` and `y` finely enough that p is smooth on each panel."""
        return _on_panels(self._mass_and_entropy, x, y)

    def integrate_polar(
        self, center: tuple[float, float], radii: Sequence[float], angles: Sequence[float]
    ) -> tuple[float, float]:
        """The same over a sector about `center`, cut at `radii` and at `angles`."""

        def integrand(polar: Tensor) -> Tensor:
            radius, angle = polar.unbind(-1)
            x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1) + polar.new_tensor(center)
            return self._mass_and_entropy(x) * radius.unsqueeze(-1)

        return _on_panels(integrand, radii, angles)

    @staticmethod
    def check_noise(noise: float, size: float, name: str = "noise") -> None:
        """Refuse noise that points of this `size`, in float32, cannot show: what is learned would be their rounding."""
        if 0 < noise < (least := max(size * 2**-22, 1e-18)):
            raise ArgumentError(name, f"at least {least:.2g}, below which points in float32 show nothing", repr(noise))

    def _mass_and_entropy(self, x: Tensor) -> Tensor:
        """p and -p ln p, shapes (..., 2) to (..., 2)."""
        log_p = self.log_prob(x).clamp(min=-700)
        p = log_p.exp()
        return torch.stack([p, -p * log_p], dim=-1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """While entered, torch computes on one thread.

    An integral takes many small operations. On busy cores, threads that wait for each other after each of these turn
    half a second into half a minute.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def midpoints(window: Window, side: int) -> Tensor:
    """Midpoints of side x side cells of `window`, shape (side^2, 2), float64, row by row, the lowest y first."""
    x, y = (torch.linspace(low, high, 2 * side + 1, dtype=torch.float64)[1::2] for low, high in window)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).view(-1, 2)


def in_float64(x: Tensor) -> Tensor:
    """Convert points, of any shape, to float64, in which log-densities are computed.

    Raises:
        TypeError: `x` has an integer dtype: a log-density is returned in the dtype of `x`, so it would be rounded.
    """
    if not x.is_floating_point():
        raise TypeError(f"points are of floating-point numbers, as x.float() is; got {x.dtype}")
    return x.double()


def square(half: float) -> Window:
    """The window that reaches `half`, rounded up to a half, from the origin to each side."""
    half = math.ceil(2 * half) / 2
    return (-half, half), (-half, half)


def panels(centers: Iterable[float], noise: float, reach: float = 12.0) -> list[float]:
    """Where to cut an axis on which p changes within a few `noise` of the `centers` and nowhere else."""
    steps = np.arange(-reach, reach + 1, 2.0) * noise
    return sorted({center + float(step) for center in centers for step in steps})


@functools.cache
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the rule of `n` nodes on [0, 1], both of shape (n,), float64."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


PANEL_ORDER = 12


def _on_panels(
    integrand: Callable[[Tensor], Tensor], first: Sequence[float], second: Sequence[float]
) -> tuple[float, float]:
    """Integrate over the rectangle cut at `first` along one axis and at `second` along the other, Gauss-Legendre each.

    The integrand: shapes (n, 2) to (n, 2).
    """
    nodes, weights = gauss_legendre(PANEL_ORDER)
    (x, along_x), (y, along_y) = (
        (
            torch.cat([a + (b - a) * nodes for a, b in itertools.pairwise(cuts)]),
            torch.cat([(b - a) * weights for a, b in itertools.pairwise(cuts)]),
        )
        for cuts in (first, second)
    )
    values = torch.cat([integrand(part) for part in torch.cartesian_prod(x, y).split(16384)])
    mass, entropy = (torch.outer(along_x, along_y).flatten() @ values).tolist()
    return mass, entropy


MOST_SQUARES = 90_000  # in all: some seconds of work
TOLERANCE = 1e-7


def _integrate(integrand: Callable[[Tensor], Tensor], window: Window) -> tuple[float, float]:
    """Integrate over the plane by Gauss-Legendre rules on squares, split where two orders of the rule disagree.

    The integrand, shapes (..., 2) to (..., 2), should be smooth, and negligible outside a border of half the window's
    width around it. A part so thin that all nodes of a square miss it is missing from the result, and so are squares
    still to be split at `MOST_SQUARES`: to detect that, integrate a function of known integral along with it.
    """
    (left, right), (bottom, _) = window
    side, cells = 2 * (right - left), 32
    corners = torch.arange(cells, dtype=torch.float64) * (side / cells)
    x, y = torch.meshgrid(corners - side / 4 + left, corners - side / 4 + bottom, indexing="ij")
    squares, side = torch.stack([x.flatten(), y.flatten()], dim=1), side / cells
    total, done = torch.zeros(2, dtype=torch.float64), 0
    while 0 < len(squares) <= MOST_SQUARES - done:
        coarse, fine = (_on_squares(integrand, squares, side, order) for order in (5, 8))
        good = ((fine - coarse).abs() < TOLERANCE / len(squares)).all(dim=1)
        total, done = total + fine[good].sum(dim=0), done + len(squares)
        halves = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64) * (side / 2)
        squares, side = (squares[~good].unsqueeze(1) + halves).reshape(-1, 2), side / 2
    return float(total[0]), float(total[1])


def _on_squares(integrand: Callable[[Tensor], Tensor], squares: Tensor, side: float, order: int) -> Tensor:
    """The integrals over each of the `squares`, given by their lower left corners: (n, 2) to (n, 2)."""
    nodes, weights = gauss_legendre(order)
    offsets = torch.cartesian_prod(nodes, nodes) * side
    products = torch.outer(weights, weights).flatten() * side**2
    return torch.cat([products @ integrand(part.unsqueeze(1) + offsets) for part in squares.split(4096)])
