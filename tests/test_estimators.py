"""One contract for every estimator, against `torch.func.jacrev` and `slogdet`, in float64.

Random estimators are tested as random: their means over many draws lie within four standard errors.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from flows.activations import make_activation
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated
from flows.estimators.estimator import Noise
from flows.lipschitz import LipschitzMLP, NormalizedMLP
from tests.conftest import composed
from training.configuration import build
from training.defaults import choices_in

DIMENSIONS = [2, 3, 8]
DRAWS = 20_000


def make_net(dimensions: int, coeff: float = 0.8, activation: str = "lipswish") -> LipschitzMLP:
    """A random network whose every layer's bound is active."""
    torch.manual_seed(dimensions)
    net = LipschitzMLP(dimensions, 12, 2, coeff, activation).double()
    for layer in net.layers:
        nn.init.orthogonal_(layer.weight, gain=1.5)
        nn.init.normal_(layer.bias)
        layer.converge()
    return net


def points(n: int, dimensions: int) -> Tensor:
    return torch.randn(n, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def exact_log_det(net: nn.Module, x: Tensor) -> Tensor:
    J = torch.func.vmap(torch.func.jacrev(lambda point: net(point)))(x)
    return torch.linalg.slogdet(torch.eye(x.shape[1], dtype=x.dtype) + J).logabsdet


def gradients(log_det: Tensor, net: nn.Module, x: Tensor | None = None) -> Tensor:
    """The gradient of the sum of `log_det` by the network's parameters (and x) as one vector."""
    inputs = [*net.parameters()] + ([] if x is None else [x])
    found = torch.autograd.grad(log_det.sum(), inputs, allow_unused=True)
    return torch.cat([torch.zeros_like(i).flatten() if g is None else g.flatten() for i, g in zip(inputs, found)])


def configurations() -> list[LogDetEstimator]:
    """Every estimator with every combination of its choices."""
    series = [
        {"gradient": gradient, "memory": memory, "jacobian": jacobian, "probe": probe, "n_probes": n}
        for gradient, memory, jacobian, (probe, n) in itertools.product(
            ["series", "neumann"], ["standard", "saving"], ["dense", "vjp"], [("gaussian", 1), ("rademacher", 3)]
        )
    ]
    return [
        *(Exact(jacobian) for jacobian in ("auto", "dense", "vjp")),
        *(Truncated(4, **choice) for choice in series),
        *(
            RussianRoulette(distribution=distribution, share=share, **choice)
            for choice in series
            for distribution, share in [("geometric", "sample"), ("poisson", "batch")]
        ),
        *(build(composed(f"estimator={name}").estimator) for name in choices_in("estimator")),
    ]


def name(estimator: LogDetEstimator) -> str:
    return "-".join([type(estimator).__name__, *(str(value) for value in vars(estimator).values())])


@pytest.fixture(params=configurations(), ids=name)
def estimator(request: pytest.FixtureRequest) -> LogDetEstimator:
    return request.param


class TestContract:
    """What holds for every estimator in every configuration."""

    def test_shapes_and_value_of_g(self, estimator: LogDetEstimator) -> None:
        net, x = make_net(3), points(5, 3)
        g, log_det = estimator(net.normalize(x.dtype), x)
        assert g.shape == (5, 3)
        assert log_det.shape == (5,)
        torch.testing.assert_close(g, net(x), rtol=0, atol=1e-13)

    def test_value_is_the_same_without_a_graph(self, estimator: LogDetEstimator) -> None:
        net, x = make_net(2), points(6, 2)
        noise = estimator.draw_noise(x)
        expected = estimator(net.normalize(x.dtype), x, noise)[1]
        with torch.no_grad():
            g, log_det = estimator(net.normalize(x.dtype), x, noise)
        assert not g.requires_grad
        assert not log_det.requires_grad
        torch.testing.assert_close(log_det, expected.detach(), rtol=0, atol=1e-13)

    def test_gradient_reaches_every_parameter_and_the_input(self, estimator: LogDetEstimator) -> None:
        net, x = make_net(2), points(6, 2).requires_grad_()
        g, log_det = estimator(net.normalize(x.dtype), x)
        (log_det.mean() + (g * g).mean()).backward()
        for parameter in [*net.parameters(), x]:
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()
            assert (parameter.grad != 0).any()

    def test_a_batch_may_be_empty(self, estimator: LogDetEstimator) -> None:
        net, x = make_net(2), points(0, 2).requires_grad_()
        g, log_det = estimator(net.normalize(x.dtype), x)
        (log_det.sum() + g.sum()).backward()
        assert (log_det.shape, x.grad.shape) == ((0,), (0, 2))

    def test_runs_where_there_are_no_values(self, estimator: LogDetEstimator) -> None:
        """On the meta device a wait for a value, or a tensor made elsewhere, is an error."""
        net, x = make_net(2).to("meta"), torch.empty(6, 2, dtype=torch.float64, device="meta", requires_grad=True)
        g, log_det = estimator(net.normalize(x.dtype), x)
        (log_det.mean() + g.sum()).backward()
        assert x.grad.device.type == "meta"


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("jacobian", ["dense", "vjp"])
def test_exact_agrees_with_slogdet_of_jacrev(dimensions: int, jacobian: str) -> None:
    net, x = make_net(dimensions, 0.97), points(30, dimensions).requires_grad_()
    expected = exact_log_det(net, x)
    _, log_det = Exact(jacobian)(net.normalize(x.dtype), x)
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradients(log_det, net, x), gradients(expected, net, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("jacobian", ["dense", "vjp"])
def test_layers_may_have_different_activations(jacobian: str, with_graph: bool) -> None:
    net, x = make_net(2), points(30, 2)
    net.activations[1] = make_activation("tanh")
    expected = exact_log_det(net, x)
    with torch.set_grad_enabled(with_graph):
        torch.testing.assert_close(Exact(jacobian)(net.normalize(x.dtype), x)[1], expected, rtol=0, atol=1e-10)


class OnlyValues:
    """A network that can do no more than an estimator must ask of it."""

    def __init__(self, net: NormalizedMLP) -> None:
        self.net, self.parameters = net, net.parameters

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_dense_and_vjp_agree_for_the_same_noise(estimator: LogDetEstimator, dimensions: int) -> None:
    """The products of vjp written out, and by automatic differentiation."""
    net, x = make_net(dimensions), points(10, dimensions).requires_grad_()
    noise = estimator.draw_noise(x)
    found = []
    for jacobian, view in (("dense", lambda net: net), ("vjp", lambda net: net), ("vjp", OnlyValues)):
        twin = type(estimator).__new__(type(estimator))
        vars(twin).update({**vars(estimator), "jacobian": jacobian})
        log_det = twin(view(net.normalize(x.dtype)), x, noise)[1]
        found.append((log_det, gradients(log_det, net, x)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("gradient", ["series", "neumann"])
@pytest.mark.parametrize("kind", [Truncated, RussianRoulette])
def test_saving_memory_changes_no_gradient(dimensions: int, gradient: str, kind: type) -> None:
    net, x = make_net(dimensions), points(10, dimensions).requires_grad_()
    upstream = points(10, dimensions).flip(0)
    found = []
    for memory in ("standard", "saving"):
        estimator = kind(gradient=gradient, memory=memory)
        noise = found[0][0] if found else estimator.draw_noise(x)
        g, log_det = estimator(net.normalize(x.dtype), x, noise)
        found.append((noise, gradients(-0.1 * log_det + (upstream * g).sum(1), net, x)))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [Truncated, RussianRoulette])
def test_saving_memory_refuses_unequal_weights(kind: type) -> None:
    net, x = make_net(2), points(6, 2)
    _, log_det = kind(memory="saving")(net.normalize(x.dtype), x)
    with pytest.raises(RuntimeError, match="memory=saving needs the same weight"):
        (log_det * torch.linspace(1, 2, 6, dtype=torch.float64)).sum().backward()


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("n_terms", [1, 2, 5, 10])
def test_truncation_error_obeys_its_bound(dimensions: int, n_terms: int) -> None:
    """With the identity's columns as probes Hutchinson's estimate is the trace, and only truncation is left."""
    net, x = make_net(dimensions, 0.9), points(50, dimensions)
    estimator = Truncated(n_terms, n_probes=dimensions)
    noise = estimator.draw_noise(x)
    basis = torch.eye(dimensions, dtype=torch.float64).expand_as(noise.probes) * math.sqrt(dimensions)
    _, log_det = estimator(net.normalize(x.dtype), x, noise._replace(probes=basis))
    error = float((log_det - exact_log_det(net, x)).detach().abs().max())
    tail = sum(net.lipschitz() ** k / k for k in range(n_terms + 1, 5000))
    assert 0 < error <= dimensions * tail
    J, series = net.forward_with_jacobian(x)[1].detach(), torch.zeros(50, dtype=torch.float64)
    for k in range(1, n_terms + 1):
        series += (-1) ** (k + 1) / k * torch.linalg.matrix_power(J, k).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(log_det.detach(), series, rtol=0, atol=1e-10)


def assert_mean(draws: Tensor, expected: Tensor, label: str) -> None:
    """The mean of `draws`, along their first dimension, is `expected` within four standard errors, each component."""
    error = (draws.mean(0) - expected).abs()
    stderr = draws.std(0) / math.sqrt(len(draws))
    worst = float((error / stderr.clamp(min=1e-12)).max())
    print(f"{label}: {worst:.2f} standard errors; standard deviation of one draw {float(draws.std(0).mean()):.3f}")
    assert worst < 4


ROULETTES = {
    "geometric": {"distribution": "geometric", "p": 0.4},
    "geometric, no exact terms": {"distribution": "geometric", "p": 0.3, "n_exact_terms": 0},
    "poisson": {"distribution": "poisson", "rate": 3.0},
    "poisson, no exact terms": {"distribution": "poisson", "rate": 3.0, "n_exact_terms": 0},
    "rademacher": {"probe": "rademacher"},
    "two probes": {"n_probes": 2},
}


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("choice", ROULETTES.values(), ids=ROULETTES)
def test_russian_roulette_is_unbiased(dimensions: int, choice: dict) -> None:
    net, x = make_net(dimensions, 0.75), points(2, dimensions)
    expected = exact_log_det(net, x).detach()
    torch.manual_seed(1)
    with torch.no_grad():
        repeated = x.repeat_interleave(DRAWS, dim=0)
        draws = RussianRoulette(**choice)(net.normalize(x.dtype), repeated)[1].view(2, DRAWS).T
    assert_mean(draws, expected, f"{choice}, d = {dimensions}")


@pytest.mark.parametrize("distribution", ["geometric", "poisson"])
def test_russian_roulette_is_unbiased_with_one_order_for_the_batch(distribution: str) -> None:
    net, x = make_net(2, 0.75), points(3, 2)
    estimator = RussianRoulette(distribution=distribution, share="batch")
    torch.manual_seed(2)
    with torch.no_grad():
        draws = torch.stack([estimator(net.normalize(x.dtype), x)[1] for _ in range(DRAWS // 10)])
    assert_mean(draws, exact_log_det(net, x).detach(), f"{distribution}, one N a batch")


def per_sample_gradients(estimator: LogDetEstimator, net: nn.Module, x: Tensor) -> Tensor:
    """The gradient of each sample's estimate by one hidden weight matrix: (batch, entries).

    Every sample has its own copy of the matrix, and so its own draw.
    """
    weights = net.normalize(x.dtype).weights
    batch = x.shape[0]

    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(weights[1][0].detach().expand(batch, -1, -1).clone())

        def forward_with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h, slope = net.activations[0].value_and_derivative(x @ weights[0][0].T + weights[0][1])
            tangents = slope * weights[0][0].T.unsqueeze(1)
            h = torch.einsum("bi,boi->bo", h, self.own) + weights[1][1]
            tangents = torch.einsum("dbi,boi->dbo", tangents, self.own)
            h, slope = net.activations[1].value_and_derivative(h)
            g = h @ weights[2][0].T + weights[2][1]
            return g, ((slope * tangents) @ weights[2][0].T).permute(1, 2, 0)

    copied = Copied()
    _, log_det = estimator(copied, x)
    return torch.autograd.grad(log_det.sum(), copied.own)[0].flatten(1)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("distribution", ["geometric", "poisson"])
@pytest.mark.parametrize("gradient", ["series", "neumann"])
def test_gradient_is_unbiased(dimensions: int, distribution: str, gradient: str) -> None:
    net, x = make_net(dimensions, 0.7), points(1, dimensions)
    expected = per_sample_gradients(Exact("dense"), net, x)[0]
    estimator = RussianRoulette(
        distribution=distribution, gradient=gradient, memory="standard", jacobian="dense", n_probes=2
    )
    torch.manual_seed(3)
    draws = torch.cat([per_sample_gradients(estimator, net, x.expand(4000, -1)) for _ in range(DRAWS // 4000)])
    # 144 components at once: compare along random directions, where four standard errors are four.
    directions = torch.randn(draws.shape[1], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    assert_mean(draws @ directions, expected @ directions, f"{gradient}, {distribution}, d = {dimensions}")


def test_neumann_gradient_of_the_truncated_series_is_its_gradient_on_average() -> None:
    net, x = make_net(3, 0.8), points(1, 3)
    means = {}
    for gradient in ("series", "neumann"):
        torch.manual_seed(5)
        estimator = Truncated(3, gradient=gradient, jacobian="dense", probe="rademacher")
        draws = torch.cat([per_sample_gradients(estimator, net, x.expand(4000, -1)) for _ in range(10)])
        directions = torch.randn(draws.shape[1], 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        projected = draws @ directions
        means[gradient] = projected.mean(0), projected.var(0) / len(projected)
    difference = (means["series"][0] - means["neumann"][0]).abs()
    assert (difference < 4 * (means["series"][1] + means["neumann"][1]).sqrt()).all()


def test_the_neumann_surrogate_is_never_the_value() -> None:
    """With the same noise the value is the series' own, to the bit of rounding, whatever supplies the gradient."""
    net, x = make_net(2), points(8, 2)
    noise = RussianRoulette().draw_noise(x)
    values = [
        RussianRoulette(gradient=gradient, memory=memory)(net.normalize(x.dtype), x, noise)[1]
        for gradient in ("series", "neumann")
        for memory in ("standard", "saving")
    ]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("distribution", "start"), [("geometric", 1), ("poisson", 0)])
def test_survival_is_that_of_the_draws(distribution: str, start: int) -> None:
    estimator = RussianRoulette(distribution=distribution, p=0.35, rate=2.5)
    torch.manual_seed(6)
    orders = estimator.draw_orders(200_000)
    assert float(orders.min()) == start
    for k in range(8):
        expected = float(estimator.survival(torch.tensor([float(k)], dtype=torch.float64)))
        if distribution == "geometric":
            assert expected == pytest.approx((1 - 0.35) ** max(k - 1, 0), rel=1e-12)
        else:
            below = sum(math.exp(-2.5) * 2.5**i / math.factorial(i) for i in range(k))
            assert expected == pytest.approx(1 - below, rel=1e-9)
        stderr = math.sqrt(max(expected * (1 - expected), 1e-12) / len(orders))
        assert float((orders >= k).double().mean()) == pytest.approx(expected, abs=4 * stderr + 1e-12)


def test_poisson_survival_keeps_its_digits_far_out() -> None:
    estimator = RussianRoulette(distribution="poisson", rate=1.0)
    k = 30
    tail = sum(math.exp(-1 - math.lgamma(i + 1)) for i in range(k, k + 40))
    assert float(estimator.survival(torch.tensor([float(k)], dtype=torch.float64))) == pytest.approx(tail, rel=1e-9)


def batch_mean_variance(estimator: RussianRoulette, repeats: int = 1000) -> float:
    """Variance of the batch mean where many terms of the series count: J is close to 0.73 I everywhere."""
    net, x = make_net(2, 0.9, "elu"), points(32, 2)
    first, second, last = net.layers
    with torch.no_grad():
        second.weight.copy_(torch.eye(12) * 1.5)
        last.weight.copy_(first.weight.T)
        first.bias.fill_(4.0)
    for layer in net.layers:
        layer.converge()
    torch.manual_seed(8)
    normalized = net.normalize(x.dtype)
    with torch.no_grad():
        if estimator.share == "batch":
            estimates = torch.stack([estimator(normalized, x)[1] for _ in range(repeats)])
        else:  # all batches at once, since no sample knows of another
            estimates = estimator(normalized, x.repeat(repeats, 1))[1].view(repeats, -1)
        return float(estimates.mean(dim=1).var())


def test_settings_of_the_probes_change_the_variance() -> None:
    base = batch_mean_variance(RussianRoulette())
    assert batch_mean_variance(RussianRoulette(n_probes=8)) < 0.5 * base
    assert batch_mean_variance(RussianRoulette(probe="rademacher")) < 0.8 * base


def test_settings_of_the_roulette_change_the_variance() -> None:
    """With the probes' noise small, so that the noise of the cut is seen."""
    roulette = {"n_exact_terms": 0, "n_probes": 16, "probe": "rademacher"}
    base = batch_mean_variance(RussianRoulette(**roulette))
    # One N for the batch ties its errors together: they no longer average out over 32 samples.
    assert batch_mean_variance(RussianRoulette(share="batch", **roulette)) > 4 * base
    assert batch_mean_variance(RussianRoulette(**{**roulette, "n_exact_terms": 8})) < 0.5 * base
    assert batch_mean_variance(RussianRoulette(**roulette, p=0.2)) < 0.5 * base
    slow = batch_mean_variance(RussianRoulette(**roulette, distribution="poisson", rate=3.0))
    assert batch_mean_variance(RussianRoulette(**roulette, distribution="poisson", rate=8.0)) < 0.5 * slow


@pytest.mark.parametrize("compiled", [False, True])
def test_a_long_roulette_is_its_sum_and_keeps_little(compiled: bool, request: pytest.FixtureRequest) -> None:
    """Of orders in the thousands, each sample's own terms, weighted by the chance that there are so many."""
    if compiled:
        request.getfixturevalue("compiler")
    p, orders = 0.002, torch.tensor([3, 900, 2500, 0, 900])
    estimator = RussianRoulette(n_exact_terms=2, p=p, memory="standard")
    estimator.compiled = compiled
    J = 0.99 * torch.linalg.qr(torch.randn(5, 2, 2, dtype=torch.float64))[0]
    v = torch.randn(5, 1, 2, dtype=torch.float64)
    found = estimator.from_matrix(J, Noise(v, orders))
    for i, order in enumerate(orders.tolist()):
        expected, power = 0.0, v[i, 0]
        for k in range(1, 2 + order + 1):
            power = power @ J[i]
            expected += (-1) ** (k + 1) / k * (1 - p) ** -max(k - 2 - 1, 0) * float(power @ v[i, 0])
        assert float(found[i]) == pytest.approx(expected, rel=1e-9)
    for largest in range(300):
        estimator.from_matrix(J, Noise(v, torch.tensor([largest])))
    assert sum(kept.numel() for pair in estimator._kept.values() for kept in pair) < 20_000


@pytest.mark.parametrize("setting", [("n_probes", 3), ("n_exact_terms", 9), ("p", 0.9), ("distribution", "poisson")])
def test_settings_changed_between_estimates_are_heeded(setting: tuple[str, object]) -> None:
    J, (name, value) = torch.full((4, 2, 2), 0.2, dtype=torch.float64), setting
    estimator = RussianRoulette()
    estimator.from_matrix(J)
    setattr(estimator, name, value)
    other = RussianRoulette(**{name: value})
    noise = other.draw_noise(J[:, 0])
    assert torch.equal(estimator.from_matrix(J, noise), other.from_matrix(J, noise))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("jacobian", ["dense", "vjp"])
@pytest.mark.parametrize("memory", ["standard", "saving"])
@pytest.mark.parametrize("gradient", ["series", "neumann"])
def test_where_no_term_is_drawn(
    gradient: str, memory: str, jacobian: str, compiled: bool, request: pytest.FixtureRequest
) -> None:
    """The estimate is zero; its gradient too, but Neumann's, whose first power, k = 0, is always there."""
    if compiled:
        request.getfixturevalue("compiler")
    settings = {"gradient": gradient, "memory": memory, "jacobian": jacobian}
    estimator = RussianRoulette(n_exact_terms=0, distribution="poisson", **settings)
    estimator.compiled = compiled
    net, x = make_net(2), points(6, 2)
    noise = Noise(torch.ones(6, 1, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.int64))
    _, log_det = estimator(net.normalize(x.dtype), x, noise)
    assert torch.equal(log_det, torch.zeros(6, dtype=torch.float64))
    assert bool(gradients(log_det, net).any()) == (gradient == "neumann")
