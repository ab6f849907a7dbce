"""One contract for every density that `configs/data` offers: a new file there is tested without being named here."""

from __future__ import annotations

import functools
import itertools
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from arguments import ArgumentError
from datasets import TargetDensity, curve
from datasets.checkerboard import Checkerboard
from datasets.curve import CurveDensity
from datasets.diamond import Diamond
from datasets.eight_gaussians import EightGaussians
from datasets.four_circles import FourCircles
from datasets.moons import Moons
from datasets.pinwheel import Pinwheel
from datasets.rings import Rings
from datasets.swiss_roll import SwissRoll
from datasets.two_spirals import TwoSpirals

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "data").glob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.stem != "points"]  # of which no density is known: tests/test_own_data.py
FOLDER = tempfile.TemporaryDirectory()
DRAWS = 400_000
CELLS = 36  # along each side of the window; the checkerboard's edges fall between cells


@functools.cache
def load(path: Path) -> TargetDensity:
    config = OmegaConf.load(path)
    if "path" in config:
        config.path = picture()
    return instantiate(config)


def picture() -> str:
    """A grey ring and a black bar on white, 80 pixels wide, so that the edges of pixels fall between cells."""
    y, x = np.mgrid[-35:35, -40:40] + 0.5
    light = np.where(abs(np.hypot(x, y) - 25) < 9, 120 + x, 255)
    light[-15:-5, 10:70] = 0
    path = Path(FOLDER.name) / "picture.png"
    PIL.Image.fromarray(light.astype(np.uint8)).save(path)
    return str(path)


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def density(request: pytest.FixtureRequest) -> TargetDensity:
    return load(request.param)


def grid(density: TargetDensity, n: int, wider: float = 1.0) -> tuple[torch.Tensor, float]:
    """Midpoints of n x n cells of the window, `wider` times as wide, and the area of a cell."""
    (left, right), (bottom, top) = density.window
    margin = (wider - 1) / 2 * (right - left)
    x = torch.linspace(left - margin, right + margin, 2 * n + 1, dtype=torch.float64)[1::2]
    y = torch.linspace(bottom - margin, top + margin, 2 * n + 1, dtype=torch.float64)[1::2]
    return torch.cartesian_prod(x, y), float(x[1] - x[0]) * float(y[1] - y[0])


@functools.cache
def cell_masses(density: TargetDensity) -> np.ndarray:
    """The mass of each cell of the window, by the midpoints of 10 x 10 parts: shape (CELLS, CELLS)."""
    points, area = grid(density, CELLS * 10)
    return density.log_prob(points).exp().view(CELLS, 10, CELLS, 10).sum((1, 3)).numpy() * area


def chi_square_p_value(density: TargetDensity, samples: torch.Tensor) -> float:
    """The chance of a histogram as far from `log_prob` as that of `samples`, were they drawn from it."""
    mass, ((left, right), (bottom, top)) = cell_masses(density), density.window
    counts, _, _ = np.histogram2d(*samples.double().numpy().T, CELLS, ((left, right), (bottom, top)))
    expected = mass * len(samples)
    many = expected >= 10  # the approximation's own condition; the rest is one cell more
    observed = np.append(counts[many], len(samples) - counts[many].sum())
    wanted = np.append(expected[many], len(samples) - expected[many].sum())
    if wanted[-1] < 10:
        observed, wanted = observed[:-1], wanted[:-1] * (observed[:-1].sum() / wanted[:-1].sum())
    return scipy.stats.chisquare(observed, wanted).pvalue


class TestContract:
    def test_integrates_to_one(self, density: TargetDensity) -> None:
        points, area = grid(density, 360, wider=2.0)
        assert float(density.log_prob(points).exp().sum()) * area == pytest.approx(1, abs=1e-4)

    def test_sampler_agrees_with_log_prob(self, density: TargetDensity) -> None:
        samples = density.sample(DRAWS, torch.Generator().manual_seed(0))
        assert chi_square_p_value(density, samples) > 1e-3

    @pytest.mark.parametrize("scale", [0.98, 1.02])
    def test_a_sampler_two_percent_off_would_be_found_out(self, density: TargetDensity, scale: float) -> None:
        samples = density.sample(DRAWS, torch.Generator().manual_seed(0)) * scale
        assert chi_square_p_value(density, samples) < 1e-6

    def test_entropy_is_the_mean_of_minus_log_prob(self, density: TargetDensity) -> None:
        log_p = density.log_prob(density.sample(DRAWS // 4, torch.Generator().manual_seed(1)).double())
        stderr = float(log_p.std()) / math.sqrt(len(log_p))
        assert density.entropy == pytest.approx(-float(log_p.mean()), abs=4 * stderr + 1e-12)

    def test_score_is_the_slope_of_log_prob(self, density: TargetDensity) -> None:
        """At samples, and out to three times the window; where steps of two lengths find the same slope."""
        samples = density.sample(200, torch.Generator().manual_seed(3)).double()
        x = torch.cat([samples, 3 * samples, grid(density, 12, wider=2.0)[0]]).requires_grad_()
        log_p = density.log_prob(x)
        score = torch.zeros_like(x)  # of what is constant piece by piece
        if log_p.requires_grad:
            (score,) = torch.autograd.grad(log_p.sum(), x)
        x, inside = x.detach(), torch.isfinite(log_p)
        found = [
            torch.stack([(density.log_prob(x + step) - density.log_prob(x - step)) / (2 * h)
                         for step in h * torch.eye(2, dtype=torch.float64)], dim=1)
            for h in (1e-6, 2e-6)
        ]  # fmt: skip
        smooth = inside & ((found[0] - found[1]).abs() < 1e-4 * (1 + found[0].abs())).all(dim=1)
        assert float(smooth.sum()) > 0.9 * float(inside.sum())
        assert torch.isfinite(score).all()
        torch.testing.assert_close(score[smooth], found[0][smooth], rtol=1e-3, atol=1e-3)

    def test_whole_numbers_are_refused(self, density: TargetDensity) -> None:
        """A log-density that is rounded to one would pass for one."""
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            density.log_prob(torch.tensor([[1, 1]]))

    def test_sampler_repeats_with_its_generator(self, density: TargetDensity) -> None:
        draws = [density.sample(1000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert draws[0].shape == (1000, 2)
        assert draws[0].dtype == torch.float32

    def test_shapes_and_dtypes(self, density: TargetDensity) -> None:
        x = density.sample(12, torch.Generator().manual_seed(2))
        assert density.log_prob(x).dtype == torch.float32
        assert density.log_prob(x.double().view(3, 4, 2)).shape == (3, 4)
        assert density.log_prob(x.double()).dtype == torch.float64
        torch.testing.assert_close(density.log_prob(x).double(), density.log_prob(x.double()), rtol=1e-6, atol=1e-6)

    def test_window_is_a_square_that_holds_the_mass(self, density: TargetDensity) -> None:
        (left, right), (bottom, top) = density.window
        assert right - left == top - bottom
        x, y = density.sample(200_000, torch.Generator().manual_seed(3)).unbind(1)
        inside = (x > left) & (x < right) & (y > bottom) & (y < top)
        assert float(inside.double().mean()) >= 1 - 1e-4

    def test_far_away_the_log_density_is_a_number_or_minus_infinity(self, density: TargetDensity) -> None:
        log_p = density.log_prob(torch.tensor([[1e3, -1e3], [0.0, 1e4], [0.0, 0.0]], dtype=torch.float64))
        assert not log_p.isnan().any()
        assert (log_p < 10).all()


ENTROPIES = {"moons": 2.395, "rings": 2.623, "checkerboard": math.log(32), "circles": 3.268, "8gaussians": 2.830}


@pytest.mark.parametrize("name", ENTROPIES)
def test_entropies_of_the_design(name: str) -> None:
    density = instantiate(OmegaConf.load(CONFIGS[0].parent / f"{name}.yaml"))
    assert density.entropy == pytest.approx(ENTROPIES[name], abs=0.005)


def two_spirals(chance: np.random.Generator, n: int) -> np.ndarray:
    angle = np.radians(540) * np.sqrt(chance.random(n))
    spiral = angle[:, None] * np.stack([-np.cos(angle), np.sin(angle)], 1) + chance.uniform(0, 0.5, (n, 2))
    return chance.choice([-1, 1], (n, 1)) * spiral / 3 + chance.normal(0, 0.1, (n, 2))


def swiss_roll(chance: np.random.Generator, n: int) -> np.ndarray:
    angle = 1.5 * np.pi * (1 + 2 * chance.random(n))
    return (angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + chance.normal(0, 1, (n, 2))) / 5


def pinwheel(chance: np.random.Generator, n: int) -> np.ndarray:
    along, across = chance.normal(1, 0.3, n), chance.normal(0, 0.1, n)
    angle = 2 * np.pi / 5 * chance.integers(5, size=n) + 0.25 * np.exp(along)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([along * cos + across * sin, across * cos - along * sin], 1)


def four_circles(chance: np.random.Generator, n: int) -> np.ndarray:
    angle = chance.uniform(0, 2 * np.pi, n)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return circle + chance.choice([-1, 1], (n, 2)) + chance.normal(0, 0.1, (n, 2))


def diamond(chance: np.random.Generator, n: int) -> np.ndarray:
    points = np.linspace(-2.5, 2.5, 20)[chance.integers(20, size=(n, 2))] + chance.normal(0, 0.04, (n, 2))
    return points @ np.array([[1, -1], [1, 1]]) / math.sqrt(2)


# The toy data of Grathwohl et al. 2019 and Chen et al. 2019, and of Durkan et al. 2019, as their code draws it.
LITERATURE = {
    "2spirals": two_spirals,
    "swissroll": swiss_roll,
    "pinwheel": pinwheel,
    "4circles": four_circles,
    "diamond": diamond,
}


@pytest.mark.parametrize("name", LITERATURE)
def test_densities_are_those_of_the_literature(name: str) -> None:
    """The mean of -log p of its points is the entropy; of another density's points it is not, but by chance."""
    density = instantiate(OmegaConf.load(CONFIGS[0].parent / f"{name}.yaml"))
    surprise = -density.log_prob(torch.from_numpy(LITERATURE[name](np.random.default_rng(5), DRAWS)))
    stderr = float(surprise.std()) / math.sqrt(DRAWS)
    assert stderr < 0.005
    assert float(surprise.mean()) == pytest.approx(density.entropy, abs=4 * stderr)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_moons_against_adaptive_quadrature(noise: float) -> None:
    s = 2 * noise

    def log_prob_of_arc(x: np.ndarray, arc: Callable[[np.ndarray], np.ndarray]) -> float:
        def exponent(t: np.ndarray) -> np.ndarray:
            return -((x - arc(np.asarray(t)[..., None])) ** 2).sum(-1) / (2 * s**2)

        t = np.linspace(0, np.pi, 20001)
        best, largest = t[exponent(t).argmax()], exponent(t).max()
        width = 20 * s / math.sqrt(max(np.linalg.norm(x), 1.0))
        cuts = sorted({0.0, max(best - width, 0.0), best, min(best + width, np.pi), np.pi})
        integral = sum(
            scipy.integrate.quad(lambda t: np.exp(exponent(t) - largest), a, b, epsabs=0, epsrel=1e-11)[0]
            for a, b in itertools.pairwise(cuts)
        )
        return math.log(integral / np.pi) + largest - math.log(2 * np.pi * s**2)

    def upper(t: np.ndarray) -> np.ndarray:
        return 2 * np.concatenate([np.cos(t), np.sin(t)], -1) + [-1, -0.2]

    def lower(t: np.ndarray) -> np.ndarray:
        return 2 * np.concatenate([1 - np.cos(t), 0.5 - np.sin(t)], -1) + [-1, -0.2]

    points = np.concatenate(
        [
            Moons(noise).sample(20, torch.Generator().manual_seed(4)).double().numpy(),
            np.random.default_rng(5).normal(size=(20, 2)) * 3,
            np.array([[100.0, -40.0], [-1.0, 30.0], [-1.0, -0.2], [-1.0, -2.5], [1.0, 0.8]]),
        ]
    )
    arcs = [[log_prob_of_arc(point, arc) for arc in (upper, lower)] for point in points]
    expected = [np.logaddexp(*pair) - math.log(2) for pair in arcs]
    np.testing.assert_allclose(Moons(noise).log_prob(torch.from_numpy(points)).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_rings_against_an_average_of_gaussians() -> None:
    density, points = Rings(radii=(0.5, 1.0), scale=2.0, noise=0.3), np.random.default_rng(6).normal(size=(30, 2)) * 2
    t = np.arange(4000) * (2 * np.pi / 4000)  # periodic: the trapezoidal rule converges at once
    circles = np.concatenate([R * np.stack([np.cos(t), np.sin(t)], 1) for R in (1.0, 2.0)])
    squares = ((points[:, None] - circles) ** 2).sum(-1)
    expected = np.log(np.exp(-squares / (2 * 0.09)).mean(1) / (2 * np.pi * 0.09))
    np.testing.assert_allclose(density.log_prob(torch.from_numpy(points)).numpy(), expected, rtol=1e-11)


def test_eight_gaussians_against_scipy() -> None:
    points = np.random.default_rng(7).normal(size=(30, 2)) * 3
    angles = np.arange(8) * np.pi / 4
    expected = np.log(
        np.mean(
            [
                scipy.stats.multivariate_normal.pdf(points * 1.414, [4 * np.cos(a), 4 * np.sin(a)], 0.25 * np.eye(2))
                for a in angles
            ],
            axis=0,
        )
        * 1.414**2
    )
    np.testing.assert_allclose(EightGaussians().log_prob(torch.from_numpy(points)).numpy(), expected, rtol=1e-11)


def test_checkerboard_sharp() -> None:
    inside, outside = [[1.0, 1.0], [-3.0, 1.0], [3.0, 3.0], [-1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0], [4.1, 4.1]]
    log_p = Checkerboard().log_prob(torch.tensor(inside + outside, dtype=torch.float64))
    assert log_p.tolist() == [pytest.approx(-math.log(32))] * 4 + [-math.inf] * 3


def test_checkerboard_blurred_against_convolution() -> None:
    density, s = Checkerboard(noise=0.4), 0.4
    points = np.random.default_rng(8).uniform(-6, 6, size=(40, 2))
    squares = [(2 * i, 2 * j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0]

    def share(x: np.ndarray, start: float) -> np.ndarray:
        return scipy.stats.norm.cdf(x, start, s) - scipy.stats.norm.cdf(x, start + 2, s)

    expected = sum(share(points[:, 0], a) * share(points[:, 1], b) for a, b in squares) / 32
    found = density.log_prob(torch.from_numpy(points)).exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_two_spirals_against_a_finer_quadrature(noise: float) -> None:
    points = TwoSpirals(noise).sample(8, torch.Generator().manual_seed(10)).double().numpy()
    points = np.concatenate([points, points + np.random.default_rng(11).normal(size=points.shape) * 3 * noise])

    nodes, weights = np.polynomial.legendre.leggauss(20)
    cuts = np.linspace(0, 3 * np.pi, 121)
    n = (cuts[:-1, None] + np.diff(cuts)[:, None] * (nodes + 1) / 2).ravel()
    weights = (np.diff(cuts)[:, None] * weights / 2).ravel() * 2 * n / (3 * np.pi) ** 2
    corner = np.stack([-n * np.cos(n), n * np.sin(n)], axis=1) / 3  # lower left, of the uniform noise's square

    def share(y: np.ndarray) -> float:
        distance = (y - corner) / noise
        return weights @ np.prod(6 * (scipy.special.ndtr(distance) - scipy.special.ndtr(distance - 0.5 / 3 / noise)), 1)

    expected = [math.log(share(y) / 2 + share(-y) / 2) for y in points]
    np.testing.assert_allclose(TwoSpirals(noise).log_prob(torch.from_numpy(points)).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("noise", [0.25, 1.0, 3.0])
def test_swiss_roll_against_an_average_of_gaussians(noise: float) -> None:
    points = SwissRoll(noise).sample(20, torch.Generator().manual_seed(12)).double().numpy()
    points = np.concatenate([points, points + np.random.default_rng(13).normal(size=points.shape) * noise / 2])
    t = 1.5 * np.pi * (1 + 2 * (np.arange(400_000) + 0.5) / 400_000)
    roll = np.stack([t * np.cos(t), t * np.sin(t)], axis=1)
    expected = [
        math.log(np.exp(-((5 * y - roll) ** 2).sum(1) / (2 * noise**2)).mean() / (2 * np.pi * noise**2) * 25)
        for y in points
    ]
    np.testing.assert_allclose(SwissRoll(noise).log_prob(torch.from_numpy(points)).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("noise", [0.125, 0.2])
def test_one_blade_is_known_where_its_bending_is_steepest(noise: float) -> None:
    """At radius 1 and a tangent of -1, where an angle is at the end of the circle that is searched."""
    density = Pinwheel(blades=1, tangential_noise=noise)
    at = torch.tensor([1.0], dtype=torch.float64)
    near = density.bend(at + torch.tensor([-1e-7, 0.0, 1e-7]), -at, 0)
    torch.testing.assert_close(density.log_prob(near), density.log_prob(near[:1]).expand(3), rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    surprise = -density.log_prob(density.sample(200_000, generator).double())
    assert abs(float(surprise.mean()) - density.entropy) < 4 * float(surprise.std()) / 200_000**0.5


@pytest.mark.parametrize(("blades", "noise"), [(5, 0.1), (3, 0.2), (1, 0.1)])
def test_pinwheel_is_a_sum_over_all_that_is_bent_there(blades: int, noise: float) -> None:
    """Found by a scan of the whole circle, out to where the blades overtake themselves."""
    density, chance = Pinwheel(blades, 0.3, noise), torch.Generator().manual_seed(14)
    r, t = torch.rand(2, 60, generator=chance, dtype=torch.float64) * torch.tensor([[3.2], [1.6]]) - torch.tensor(
        [[0.0], [0.8]]
    )
    points = density.bend(r, t, torch.randint(blades, (60,), generator=chance))
    phi, spacing, most = np.linspace(-np.pi, np.pi, 200_001), 2 * np.pi / blades, 0
    for point, found in zip(points.numpy(), density.log_prob(points).tolist(), strict=True):
        rho, theta = np.linalg.norm(point) / 2, np.arctan2(point[1], point[0])

        def turns(phi: np.ndarray, rho: float = rho, theta: float = theta) -> np.ndarray:
            return (phi - np.exp(rho * np.cos(phi)) / 4 - theta) / spacing

        terms = []
        for i in np.nonzero(np.diff(np.floor(turns(phi))))[0]:
            whole = max(np.floor(turns(phi[i])), np.floor(turns(phi[i + 1])))
            root = scipy.optimize.brentq(lambda at, whole=whole: turns(at) - whole, phi[i], phi[i + 1], xtol=1e-15)
            r, t = rho * np.cos(root), rho * np.sin(root)
            terms.append(-(((r - 1) / 0.3) ** 2) / 2 - (t / noise) ** 2 / 2 - np.log(abs(1 + t * np.exp(r) / 4)))
        expected = np.logaddexp.reduce(terms) - math.log(2 * np.pi * 0.3 * noise * 4 * blades)
        assert found == pytest.approx(expected, abs=1e-8)
        most = max(most, len(terms))
    assert most > blades  # some of the points are where they do


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_four_circles_against_an_average_of_gaussians(noise: float) -> None:
    points = FourCircles(noise).sample(30, torch.Generator().manual_seed(15)).double().numpy()
    t = np.arange(2000) * (2 * np.pi / 2000)
    circle = 2 * np.stack([np.cos(t), np.sin(t)], axis=1)
    circles = np.concatenate([circle + centre for centre in itertools.product((-1, 1), repeat=2)])
    squares = ((points[:, None] - circles) ** 2).sum(-1)
    expected = np.log(np.exp(-squares / (2 * noise**2)).mean(1) / (2 * np.pi * noise**2))
    np.testing.assert_allclose(FourCircles(noise).log_prob(torch.from_numpy(points)).numpy(), expected, rtol=1e-9)


def test_diamond_against_an_average_of_gaussians() -> None:
    points = Diamond().sample(30, torch.Generator().manual_seed(16)).double().numpy()
    means = np.array(list(itertools.product(np.linspace(-2.5, 2.5, 20), repeat=2)))
    means = means @ np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    squares = ((points[:, None] - means) ** 2).sum(-1)
    expected = np.log(np.exp(-squares / (2 * 0.04**2)).mean(1) / (2 * np.pi * 0.04**2))
    np.testing.assert_allclose(Diamond().log_prob(torch.from_numpy(points)).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        Moons,
        TwoSpirals,
        FourCircles,
        lambda noise: Rings(noise=noise),
        Checkerboard,
        lambda noise: EightGaussians(noise=noise),
    ],
)
def test_noise_changes_sampler_log_prob_and_entropy_together(make: Callable[[float], TargetDensity]) -> None:
    small, large = make(0.15), make(0.3)
    assert small.entropy < large.entropy
    for density in (small, large):
        assert chi_square_p_value(density, density.sample(DRAWS, torch.Generator().manual_seed(9))) > 1e-3
    assert chi_square_p_value(small, large.sample(DRAWS, torch.Generator().manual_seed(9))) < 1e-6


@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_entropy_converges_for_small_noise(noise: float) -> None:
    """A thin ring's entropy is that of its circle and its cross section, up to the curvature."""
    density = Rings(radii=(1.0,), scale=3.0, noise=noise)
    expected = math.log(2 * math.pi * 3) + 0.5 * math.log(2 * math.pi * math.e * noise**2)
    assert density.entropy == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("noise", [0.02, 1e-3, 1e-6])
@pytest.mark.parametrize("kind", [Moons, Rings, EightGaussians, Checkerboard])
def test_entropy_of_a_thin_density_is_right(kind: type[TargetDensity], noise: float) -> None:
    density = kind(noise=noise)
    log_p = density.log_prob(density.sample(DRAWS // 4, torch.Generator().manual_seed(2)).double())
    # That the points are rounded to float32 is noise too, up to a tenth of the least that is accepted.
    tolerance = 4 * float(log_p.std()) / math.sqrt(len(log_p)) + (0.01 if noise == 1e-6 else 0)
    assert density.entropy == pytest.approx(-float(log_p.mean()), abs=tolerance)


@pytest.mark.parametrize(
    "density",
    [Rings(noise=0.08), Rings(noise=2.0), Rings(radii=(0.5, 1.0), noise=0.24), Moons(0.015), EightGaussians(noise=0.2),
     Checkerboard(0.05)],
    ids=lambda density: type(density).__name__,
)  # fmt: skip
def test_entropy_by_the_shape_of_a_density_is_that_by_squares(density: TargetDensity) -> None:
    np.testing.assert_allclose(density.integrate(), TargetDensity.integrate(density), rtol=0, atol=1e-9)


def test_what_is_too_thin_for_its_entropy_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^noise accepts .* wide enough to integrate") as refusal:
        EightGaussians(radius=0.0, noise=1e-5).entropy  # noqa: B018
    # And the least that the refusal speaks of is accepted.
    least = float(re.search(r"such as (\S+) or more", str(refusal.value))[1])
    assert math.isfinite(EightGaussians(radius=0.0, noise=least).entropy)


def test_blades_too_thin_where_they_cross_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^tangential_noise accepts what makes blades wide enough to integrate"):
        Pinwheel(radial_noise=0.5, tangential_noise=0.001).entropy  # noqa: B018


@pytest.mark.parametrize("kind", [SwissRoll, TwoSpirals])
def test_a_curve_is_integrated_along_its_turns_however_wide_the_noise(
    kind: type[CurveDensity], monkeypatch: pytest.MonkeyPatch
) -> None:
    angle = torch.linspace(0, 2 * math.pi, 25, dtype=torch.float64)
    x = 30 * torch.cat([r * torch.stack([angle.cos(), angle.sin()], dim=1) for r in (2.0, 8.0)])
    found = kind(noise=30.0).log_prob(x)
    monkeypatch.setattr(curve, "FEWEST_PANELS", 200)
    torch.testing.assert_close(found, kind(noise=30.0).log_prob(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "density", [Diamond(side=2, noise=0.15), Diamond(side=4, noise=2.0), SwissRoll(noise=20.0), Checkerboard(noise=9.0)]
)
def test_a_window_holds_nearly_all_whatever_the_noise(density: TargetDensity) -> None:
    x = density.sample(400_000, torch.Generator().manual_seed(5))
    low, high = torch.tensor(density.window).T
    assert float(((x < low) | (x > high)).any(dim=1).float().mean()) < 1e-4


def test_lengths_that_float32_cannot_square_are_refused() -> None:
    for make in (lambda: EightGaussians(radius=0.0, noise=1e-170), lambda: Rings(scale=1e-50, noise=1e-51)):
        with pytest.raises(ArgumentError, match=r"^noise accepts at least 1e-18"):
            make()


@pytest.mark.parametrize("make", [Moons, Checkerboard, lambda noise: Rings(scale=100.0, noise=noise), EightGaussians])
def test_noise_that_float32_cannot_show_is_refused(make: Callable[..., TargetDensity]) -> None:
    with pytest.raises(ArgumentError, match=r"^noise accepts at least .*e-"):
        make(noise=1e-7)


def test_no_point_of_the_checkerboard_is_rounded_off_it() -> None:
    """Seeds whose points were, among a million each."""
    for seed in (6, 21):
        points = Checkerboard().sample(1_000_000, torch.Generator().manual_seed(seed))
        assert torch.isfinite(Checkerboard().log_prob(points.double())).all()


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: Moons(noise=0), "noise"),
        (lambda: Rings(radii=[]), "radii"),
        (lambda: Rings(radii=[1.0, -1.0]), "radii"),
        (lambda: Rings(scale=-1), "scale"),
        (lambda: Checkerboard(noise=-0.1), "noise"),
        (lambda: EightGaussians(noise="wide"), "noise"),
        (lambda: SwissRoll(noise=0.01), "noise"),
        (lambda: TwoSpirals(noise=0), "noise"),
        (lambda: Pinwheel(blades=0), "blades"),
        (lambda: Diamond(side=1.5), "side"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], TargetDensity], setting: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{setting} accepts"):
        make()
