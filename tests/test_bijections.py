"""One contract for every bijection, a flow being one of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig

from flows import Bijection, Flow, ResidualFlow, chain, fixed_point
from flows.activations import activation_names
from flows.activations.sincos import SinCos
from flows.actnorm import ActNorm
from flows.bijection import InverseError
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated
from flows.fixed_point import TRAINING_TOLERANCE, solve_fixed_point, solve_in_training, with_implicit_gradient
from flows.idensenet import IDenseNet, LipschitzDenseNet
from flows.implicit_flow import ImplicitFlow
from flows.lipschitz import LipschitzMLP, LipschitzNet
from flows.residual_block import InverseBlock, ResidualBlock
from flows.residual_flow import FlowOfBlocks
from tests.conftest import composed
from training.configuration import build
from training.defaults import choices_in


def sharpen(bijection: Bijection) -> Bijection:
    """Large random weights, so that every bound is active and the map is far from the identity."""
    for module in bijection.modules():
        if isinstance(module, LipschitzNet):
            if isinstance(module, LipschitzDenseNet):
                torch.nn.init.normal_(module.raw_mix, std=2.0)
            for layer in module.layers:
                torch.nn.init.orthogonal_(layer.weight, gain=2.0)
                torch.nn.init.normal_(layer.bias)
                layer.converge()
        if isinstance(module, ActNorm):
            torch.nn.init.normal_(module.log_scale, std=0.2)
            torch.nn.init.normal_(module.shift)
    return bijection


def residual_block(d: int, activation: str = "lipswish", coeff: float = 0.97) -> Bijection:
    return sharpen(ResidualBlock(LipschitzMLP(d, 16, 2, coeff, activation), RussianRoulette()))


class FlowOfInverseBlocks(FlowOfBlocks):
    """A flow that the package has not: what flows of blocks promise is not of its own ones alone."""

    def __init__(
        self, d: int, estimator: LogDetEstimator, blocks: int, width: int, coeff: float, actnorm: bool
    ) -> None:
        nets = (LipschitzMLP(d, width, 2, coeff, "sincos") for _ in range(blocks))
        super().__init__(([InverseBlock(net, estimator)] for net in nets), d, actnorm)


@functools.cache
def chosen(flow: str) -> DictConfig:
    return composed(f"flow={flow}")


OURS = [name for name in choices_in("flow") if not chosen(name).flow._target_.startswith("flows.neighbours.")]

BIJECTIONS: dict[str, Callable[[int], Bijection]] = {
    "actnorm": lambda d: sharpen(ActNorm(d)),
    **{f"block, {name}": lambda d, name=name: residual_block(d, name) for name in activation_names()},
    "inverse block": lambda d: sharpen(InverseBlock(LipschitzMLP(d, 16, 2, 0.97, "sincos"), RussianRoulette())),
    "flow, exact": lambda d: sharpen(ResidualFlow(d, Exact(), blocks=3, width=16)),
    "flow, truncated": lambda d: sharpen(ResidualFlow(d, Truncated(), blocks=3, width=16, activation="elu")),
    "flow, roulette, no actnorm": lambda d: sharpen(ResidualFlow(d, RussianRoulette(), 3, 16, actnorm=False)),
    "densenet, exact": lambda d: sharpen(IDenseNet(d, Exact(), blocks=2, width=8, coeff=0.9)),
    "densenet, roulette": lambda d: sharpen(IDenseNet(d, RussianRoulette(), 2, 8, coeff=0.9, actnorm=False)),
    "implicit flow, exact": lambda d: sharpen(ImplicitFlow(d, Exact(), blocks=2, width=16, coeff=0.9)),
    "implicit flow, roulette": lambda d: sharpen(ImplicitFlow(d, RussianRoulette(), 2, 16, coeff=0.9, actnorm=False)),
    "inverse blocks, roulette": lambda d: sharpen(FlowOfInverseBlocks(d, RussianRoulette(), 2, 16, 0.9, actnorm=True)),
    **{f"flow={name}": lambda d, name=name: build(chosen(name).flow, dimensions=d) for name in OURS},
}


@pytest.fixture(params=BIJECTIONS.values(), ids=BIJECTIONS)
def make(request: pytest.FixtureRequest) -> Callable[[int], Bijection]:
    torch.manual_seed(0)
    return request.param


def points(n: int, d: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2


@pytest.mark.parametrize("d", [1, 2, 3, 20])
class TestContract:
    def test_shapes(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection = make(d)
        for training in (True, False):
            z, log_det = bijection.train(training)(points(7, d, torch.float32))
            assert z.shape == (7, d)
            assert log_det.shape == (7,)

    def test_inverse_undoes_forward(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection, x = make(d).double().eval(), points(50, d)
        z, log_det = bijection(x)
        back, back_log_det = bijection.inverse(z)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
        torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-4)

    def test_forward_undoes_inverse(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection, z = make(d).double().eval(), points(50, d)
        torch.testing.assert_close(bijection(bijection.inverse(z)[0])[0], z, rtol=0, atol=1e-5)

    def test_log_det_is_that_of_the_jacobian(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection, x = make(d).double().eval(), points(10, d)
        J = torch.autograd.functional.jacobian(lambda points: bijection(points)[0].sum(0), x).transpose(0, 1)
        torch.testing.assert_close(bijection(x)[1], torch.linalg.slogdet(J).logabsdet, rtol=0, atol=1e-10)

    def test_gradient_reaches_every_parameter(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection = make(d).train()
        z, log_det = bijection(points(32, d, torch.float32))
        ((z**2).sum(1) - log_det).mean().backward()
        for name, parameter in bijection.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    def test_a_training_step_runs_where_there_are_no_values(self, make: Callable[[int], Bijection], d: int) -> None:
        bijection = make(d).to("meta").train()
        z, log_det = bijection(torch.empty(8, d, device="meta"))
        ((z**2).sum(1) - log_det).mean().backward()


@pytest.mark.parametrize("activation", activation_names())
def test_a_block_inverts_within_1e_5_in_float32_out_to_six_standard_deviations(activation: str) -> None:
    torch.manual_seed(2)
    block = residual_block(2, activation).eval()
    angle = torch.linspace(0, 6.2832, 500)
    x = torch.cat([r * torch.stack([angle.cos(), angle.sin()], 1) for r in (0.0, 1.0, 3.0, 6.0)])
    assert float((block.inverse(block(x)[0])[0] - x).abs().max()) <= 1e-5


def kepler(d: int, coeff: float) -> LipschitzMLP:
    """x + g(x) is Kepler's equation in each coordinate, of an eccentricity near one: there Newton's steps go astray."""
    net = LipschitzMLP(d, d, 1, coeff, "sin")
    for layer in net.layers:
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layer.converge()
    return net


class TestFixedPoint:
    def test_the_bound_is_a_guarantee(self) -> None:
        """At a loose tolerance the error is no larger, and at a tight one the solution is that of the loose ones."""
        torch.manual_seed(3)
        net = residual_block(2).net.double()
        z = points(500, 2)
        truth = solve_fixed_point(net, z, 1e-13)[0]
        torch.testing.assert_close(truth + net(truth), z, rtol=0, atol=1e-13)
        for tolerance in (1.0, 1e-1, 1e-3, 1e-6, 1e-9):
            x, bound = solve_fixed_point(net, z, tolerance)
            assert (bound <= tolerance).all()
            assert ((x - truth).norm(dim=1) <= bound * z.norm(dim=1).clamp(min=1) + 1e-13).all()

    @pytest.mark.parametrize("d", [2, 20])  # Newton's steps, and plain ones
    def test_each_sample_stops_on_its_own(self, d: int) -> None:
        """Hard samples beside easy ones change nothing for the easy ones.

        Both batches are of one size, on which it depends how a processor rounds in float32.
        """
        torch.manual_seed(4)
        net = residual_block(d).net.double()
        z, others = points(5, d), points(200, d)
        beside_easy, beside_hard = (
            solve_fixed_point(net, torch.cat([z, size * others]), 1e-6)[0][:5] for size in (1, 1e4)
        )
        torch.testing.assert_close(beside_hard, beside_easy, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
    def test_far_points(self, size: float) -> None:
        torch.manual_seed(5)
        block = residual_block(2, coeff=0.999).double().eval()
        x = points(100, 2) * size
        z = block(x)[0]
        assert ((block.inverse(z)[0] - x).norm(dim=1) <= block.tolerance * z.norm(dim=1)).all()

    def test_the_plain_iteration_is_there_when_newton_overshoots(self) -> None:
        """Sines of a short period: Newton's steps from far off lead astray, and are taken back."""
        torch.manual_seed(6)
        net = LipschitzMLP(2, 64, 2, 0.999, "sin").double()
        for layer in net.layers:
            torch.nn.init.normal_(layer.weight, std=10)
            torch.nn.init.normal_(layer.bias, std=3)
            layer.converge()
        x = points(2000, 2) * 3
        solved, _ = solve_fixed_point(net, x + net(x).detach(), 1e-9)
        torch.testing.assert_close(solved, x, rtol=0, atol=1e-8)

    def test_where_newton_goes_astray_a_step_is_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, steps, inverse = kepler(1, 0.99).double(), [], fixed_point.inverse_plus_identity
        monkeypatch.setattr(fixed_point, "inverse_plus_identity", lambda J: steps.append(len(J)) or inverse(J))
        x = 10 * points(2000, 1)
        torch.testing.assert_close(solve_fixed_point(net, x + net(x).detach(), 1e-7)[0], x, rtol=0, atol=1e-6)
        assert len(steps) < 100  # 32, and 215 where none is taken back

    @pytest.mark.parametrize("coeff", [0.8, 0.98, 0.985, 0.99, 0.995])
    def test_steps_without_a_look_are_enough_where_newton_goes_astray(self, coeff: float) -> None:
        net, x = kepler(2, coeff), 10 * points(2000, 2, torch.float32)
        with torch.no_grad():
            found = fixed_point._solve_without_looking(net.normalize(x.dtype), net.bound(), x + net(x))
            assert float((x + net(x) - found - net(found)).norm(dim=1).max()) < 1e-2

    def test_without_a_look_a_step_is_taken_back_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fixed_point, "STEPS_WITHOUT_LOOKING", 40)
        net, x = kepler(2, 0.99).double(), 10 * points(2000, 2)
        with torch.no_grad():
            z = x + net(x)
            found = fixed_point._solve_without_looking(net.normalize(x.dtype), net.bound(), z)
            assert float((z - found - net(found)).norm(dim=1).max()) < 1e-9

    def test_a_broken_bound_is_an_error(self) -> None:
        net = residual_block(2).net
        with torch.no_grad():
            net.layers[1].u.zero_()  # the layer now believes that its weights are small
            for layer in net.layers:
                layer.weight.mul_(2)
        with pytest.raises(InverseError, match="no certified inverse"):
            solve_fixed_point(net, points(3, 2, torch.float32), 1e-6)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_point_that_is_not_finite_is_an_error(self, value: float) -> None:
        with pytest.raises(InverseError, match="not finite"):
            solve_fixed_point(residual_block(2).net, torch.tensor([[0.0, value]]), 1e-6)

    def test_a_tolerance_beyond_the_rounding_is_an_error(self) -> None:
        with pytest.raises(InverseError, match="rounding"):
            solve_fixed_point(residual_block(2).net, points(50, 2), 1e-18)


class TestImplicitGradient:
    @pytest.mark.parametrize("d", [2, 20])  # (I + J)^-1 as a matrix, and as a series
    @pytest.mark.parametrize("compiled", [True, False])
    def test_it_is_that_of_an_unrolled_iteration(self, d: int, compiled: bool) -> None:
        torch.manual_seed(10)
        net = sharpen(InverseBlock(LipschitzMLP(d, 12, 2, 0.8, "sincos"), Exact())).net.double()
        chain.library_of(SinCos, torch.float64)
        z, weight = points(6, d).requires_grad_(), points(6, d) ** 2
        x = z
        for _ in range(80):  # 0.8^(3 * 80) is less than rounding
            x = z - net(x)
        unrolled = torch.autograd.grad((x * weight).sum(), [z, *net.parameters()])
        net.compiled = compiled
        solution = solve_fixed_point(net, z.detach(), 1e-13)[0]
        implicit = with_implicit_gradient(net.normalize(z.dtype), net.bound(), solution, z)
        found = torch.autograd.grad((implicit * weight).sum(), [z, *net.parameters()])
        torch.testing.assert_close(found, unrolled, rtol=0, atol=1e-10)

    def test_without_gradient_it_is_the_number(self) -> None:
        x = points(3, 2)
        with torch.no_grad():
            assert with_implicit_gradient(residual_block(2).net.normalize(x.dtype), 0.9, x, x) is x


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("look", [True, False])
def test_a_training_step_solves_as_closely_as_it_says(d: int, look: bool) -> None:
    torch.manual_seed(11)
    net = residual_block(d, coeff=0.95).net
    z = points(300, d, torch.float32) * 3
    solve = solve_in_training if look else fixed_point._solve_without_looking
    with torch.no_grad():
        x = solve(net.normalize(z.dtype), net.bound(), z)
    truth = solve_fixed_point(net, z, 1e-9)[0]
    error = (x - truth).norm(dim=1) / z.norm(dim=1).clamp(min=1)
    assert float(error.max()) <= TRAINING_TOLERANCE * (1 if look else 1 / (1 - net.bound()))
    assert float(error.max()) > 0


def test_steps_without_a_look_that_lead_nowhere_are_not_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_point, "STEPS_WITHOUT_LOOKING", 1)
    net, z = residual_block(2).net, 5 * points(100, 2, torch.float32)
    z[:10] = 0  # from where a step is enough
    with torch.no_grad():
        g_of = net.normalize(z.dtype)
        x = fixed_point._solve_without_looking(g_of, 0.1, z)
        residual = torch.linalg.vector_norm(z - x - g_of(x), dim=1)
    solved = residual <= 1e-4 * torch.linalg.vector_norm(z, dim=1).clamp(min=1)
    assert 0 < int(solved.sum()) < len(z)
    assert torch.equal(solved, torch.isfinite(x).all(dim=1))


def test_an_implicit_block_is_one_equation() -> None:
    """z + g_z(z) = x + g_x(x), from its networks alone."""
    torch.manual_seed(12)
    flow = sharpen(ImplicitFlow(2, Exact(), blocks=1, width=16, actnorm=False)).double().eval()
    by_x, by_z = (block.net for block in flow.bijections)
    x = points(50, 2)
    z = flow(x)[0]
    torch.testing.assert_close(z + by_z(z), x + by_x(x), rtol=0, atol=1e-6)


def test_actnorm_starts_with_mean_zero_and_deviation_one() -> None:
    actnorm, x = ActNorm(3).double(), points(1000, 3) * torch.tensor([1.0, 5.0, 0.1]) + 4
    z = actnorm.initialize(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double())
    torch.testing.assert_close(actnorm(x)[0], z)


def test_actnorm_answers_in_the_dtype_of_its_points() -> None:
    actnorm, x = sharpen(ActNorm(2)).double(), points(3, 2, torch.float32)
    for found in (*actnorm(x), *actnorm.inverse(x)):
        assert found.dtype == torch.float32


def test_actnorm_of_a_single_point_is_finite() -> None:
    actnorm = ActNorm(2)
    torch.testing.assert_close(actnorm.initialize(torch.tensor([[3.0, -1.0]])), torch.zeros(1, 2))


def test_a_flow_initializes_each_bijection_from_what_reaches_it() -> None:
    torch.manual_seed(7)
    flow, x = ResidualFlow(2, Exact(), blocks=3, width=8).double(), points(500, 2) * 3 + 1
    z = flow.initialize(x)
    torch.testing.assert_close(flow(x)[0], z)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2).double())


def test_settings_of_the_flow() -> None:
    flow = ResidualFlow(2, Exact(), blocks=5, width=7, depth=3, activation="clipswish", coeff=0.6)
    blocks = [bijection for bijection in flow.bijections if isinstance(bijection, ResidualBlock)]
    assert len(blocks) == 5
    assert [tuple(layer.weight.shape) for layer in blocks[0].net.layers] == [(7, 2), (7, 14), (7, 14), (2, 14)]
    assert sum(isinstance(bijection, ActNorm) for bijection in flow.bijections) == 6
    assert max(flow.lipschitz_constants()) <= 0.6**4 + 1e-6
    assert len(flow.lipschitz_constants()) == 5
    assert not any(isinstance(m, ActNorm) for m in ResidualFlow(2, Exact(), actnorm=False).modules())


@pytest.mark.parametrize("actnorm", [True, False])
@pytest.mark.parametrize("family", [ResidualFlow, ImplicitFlow, IDenseNet, FlowOfInverseBlocks])
@pytest.mark.parametrize(
    "estimator",
    [Exact(), Truncated(), RussianRoulette(), RussianRoulette(share="batch", memory="standard", probe="rademacher"),
     RussianRoulette(jacobian="vjp")],
    ids=["exact", "truncated", "roulette", "roulette, one N a batch", "roulette, by products"],
)  # fmt: skip
def test_blocks_estimated_together_are_those_estimated_one_by_one(
    estimator: LogDetEstimator, family: type[FlowOfBlocks], actnorm: bool
) -> None:
    flow = sharpen(family(3, estimator, blocks=4, width=8, actnorm=actnorm, coeff=0.9).double()).train()
    x = points(7, 3).requires_grad_()
    found = []
    for forward in (flow.forward, super(FlowOfBlocks, flow).forward):
        torch.manual_seed(1)
        z, log_det = forward(x)
        assert log_det.shape == (7,)
        found.append((z, log_det, *torch.autograd.grad(log_det.mean() + z.square().sum(), [x, *flow.parameters()])))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-11)


class TestFlow:
    def test_log_prob_is_the_change_of_variables(self) -> None:
        flow = BIJECTIONS["flow, exact"](2).double().eval()
        x = points(20, 2)
        z, log_det = flow(x)
        base = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
        torch.testing.assert_close(flow.log_prob(x), base.log_prob(z) + log_det)

    def test_density_integrates_to_one(self) -> None:
        torch.manual_seed(8)
        flow = BIJECTIONS["flow, exact"](2).double().eval()
        flow.compile_for(torch.device("cpu"))
        axis = torch.linspace(-60, 60, 1201, dtype=torch.float64)
        x = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            total = sum(float(flow.log_prob(part).exp().sum()) for part in x.split(100_000)) * 0.1**2
        assert total == pytest.approx(1, abs=1e-4)

    def test_samples_repeat_with_the_generator(self) -> None:
        flow: Flow = BIJECTIONS["flow, exact"](2).eval()
        draws = [flow.sample(10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert not draws[0].requires_grad

    def test_inverse_path_leads_from_base_to_samples(self) -> None:
        flow: Flow = BIJECTIONS["flow, exact"](2).eval()
        z = flow.sample_base(10, torch.Generator().manual_seed(0))
        with torch.no_grad():
            path = flow.inverse_path(z)
            assert len(path) == len(flow.lipschitz_constants()) + 1
            assert torch.equal(path[0], z)
            torch.testing.assert_close(path[-1], flow.inverse(z)[0])

    def test_training_mode_estimates_and_evaluation_mode_is_exact(self) -> None:
        torch.manual_seed(9)
        flow, x = BIJECTIONS["flow, roulette, no actnorm"](2), points(5, 2, torch.float32)
        assert not torch.equal(flow.train().log_prob(x), flow.train().log_prob(x))
        assert torch.equal(flow.eval().log_prob(x), flow.eval().log_prob(x))
