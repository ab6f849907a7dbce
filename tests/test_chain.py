"""The compiled chain of blocks is the chain of blocks, to rounding."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flows import ResidualFlow, chain, compiled, fixed_point, residual_flow
from flows.activations import activation_names
from flows.activations.tanh import Tanh
from flows.bijection import Bijection, InverseError
from flows.chain import library_of
from flows.compiled import CompileError
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated, series
from flows.idensenet import IDenseNet
from flows.implicit_flow import ImplicitFlow
from flows.lipschitz import LipschitzLinear, LipschitzMLP, LipschitzNet, NormalizedMLP
from flows.power_iteration import power_iterate
from flows.residual_block import InverseBlock, ResidualBlock
from flows.residual_flow import FlowOfBlocks
from flows.stacks import stack_parameters
from flows.standardize import Standardize
from tests.test_bijections import kepler

CPU = torch.device("cpu")
FLOWS = [ResidualFlow, ImplicitFlow]


@pytest.fixture(autouse=True)
def _solved_to_the_last_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain implicit flow, that the compiled one is held to."""
    monkeypatch.setattr(fixed_point, "TRAINING_TOLERANCE", 1e-12)


def compiled_copy(flow: FlowOfBlocks) -> FlowOfBlocks:
    twin = copy.deepcopy(flow)
    if reason := twin.compile_for(CPU):
        assert "there is no C compiler" in reason or "has no c_source" in reason, reason
        pytest.skip(reason)
    return twin


def make(
    estimator: LogDetEstimator, dimensions: int = 2, kind: type[FlowOfBlocks] = ResidualFlow, **settings: object
) -> tuple[FlowOfBlocks, Tensor]:
    torch.manual_seed(0)
    flow = kind(dimensions, estimator, **{"blocks": 3, "width": 20, "coeff": 0.97, **settings}).double()
    for parameter in flow.parameters():  # away from every value at which something cancels
        parameter.data += 0.1 * torch.randn_like(parameter)
    for module in flow.modules():
        if isinstance(module, LipschitzLinear):
            module.converge()
    x = 1.5 * torch.randn(150, dimensions, dtype=torch.float64)
    for block in flow._blocks:
        block.tolerance = 1e-12
    flow.initialize(x)
    return flow.train(), x


def value_and_gradients(flow: FlowOfBlocks, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    log_prob = flow.log_prob(x)
    return [log_prob, *torch.autograd.grad(log_prob.square().mean(), [x, *flow.parameters()])]


@pytest.mark.parametrize(("depth", "threads"), [(1, 3), (2, 1), (4, 3)])
@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("activation", activation_names())
@pytest.mark.parametrize("kind", FLOWS)
def test_value_and_every_gradient(
    kind: type[FlowOfBlocks], activation: str, dimensions: int, depth: int, threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    flow, x = make(Exact(), dimensions, kind, depth=depth, activation=activation)
    torch.set_num_threads(threads)
    monkeypatch.setattr(chain, "WORK", 1)  # so that even these small blocks are shared
    for found, plain in zip(value_and_gradients(compiled_copy(flow), x), value_and_gradients(flow, x), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("width", [1, 8, 33])
@pytest.mark.parametrize("batch", [1, 7, 64, 65])
@pytest.mark.parametrize("kind", FLOWS)
def test_any_width_and_batch(kind: type[FlowOfBlocks], width: int, batch: int) -> None:
    flow, x = make(Exact(), kind=kind, width=width, actnorm=False, activation="sincos")
    twin, x = compiled_copy(flow), x[:batch]
    for found, plain in zip(value_and_gradients(twin, x), value_and_gradients(flow, x), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-11, atol=1e-12)


ESTIMATORS = [
    Truncated(3),
    Truncated(6, n_probes=2),
    Truncated(6, gradient="neumann", n_probes=3),
    RussianRoulette(memory="standard"),
    RussianRoulette(gradient="series", memory="standard", n_probes=2),
    RussianRoulette(gradient="series"),
    RussianRoulette(share="batch", probe="rademacher"),
    RussianRoulette(n_exact_terms=0, n_probes=2, distribution="poisson"),
    RussianRoulette(jacobian="vjp", n_probes=2),
    Truncated(4, jacobian="vjp"),
]


@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", FLOWS)
def test_the_same_noise_gives_the_same_estimate(
    kind: type[FlowOfBlocks], estimator: LogDetEstimator, dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "LEAST", 1)  # so that even these few are shared by threads
    torch.set_num_threads(3 if dimensions == 2 else 1)
    flow, x = make(estimator, dimensions, kind)
    twin, weight = compiled_copy(flow), torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    if estimator.memory == "standard":
        weight *= torch.linspace(1, 2, len(x), dtype=torch.float64)
    found = []
    for each in (twin, flow):
        torch.manual_seed(2)
        log_prob = each.log_prob(x)
        found.append([log_prob, *torch.autograd.grad(log_prob, each.parameters(), weight)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", activation_names())
def test_an_activation_alone(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, _ = make(Exact(), activation=name)
    compiled_copy(flow)  # or there is no compiler
    torch.set_num_threads(threads)
    monkeypatch.setattr(chain, "NUMBERS", 1)  # so that even these few are shared
    activation = flow._nets[0].activations[0]
    a = (3 * torch.randn(40, 7, dtype=torch.float64)).requires_grad_()
    found = []
    for pair in (chain.activate(activation, a), activation.value_and_derivative(a)):
        weights = [torch.linspace(-1, 2, 40 * pair[0].shape[1], dtype=torch.float64).cos().view_as(pair[0])] * 2
        inputs = [a, *activation.parameters()]
        by_value = torch.autograd.grad(pair, inputs, [weights[0], torch.zeros_like(weights[0])], retain_graph=True)
        found.append([*pair, *by_value, *torch.autograd.grad(pair, inputs, weights)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", activation_names())
def test_float32_is_as_close_as_plain_operations_are(activation: str) -> None:
    flow, x = make(Exact(), activation=activation, width=64)
    exact = value_and_gradients(flow, x)
    plain, compiled = (value_and_gradients(each, x.float()) for each in (flow.float(), compiled_copy(flow)))
    for a, b, truth in zip(compiled, plain, exact, strict=True):
        rounding = float((b.double() - truth).detach().norm()) + 1e-6 * float(truth.detach().norm())
        assert float((a.double() - truth).detach().norm()) < 3 * rounding


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_values_and_the_approach_to_a_solution(dimensions: int) -> None:
    flow, x = make(Exact(), dimensions, activation="sincos")
    net, twin = (each._nets[1].eval() for each in (flow, compiled_copy(flow)))
    with torch.no_grad():
        plain, found = net.normalize(x.dtype), twin.normalize(x.dtype)
        torch.testing.assert_close(found(x), plain(x), rtol=1e-12, atol=1e-12)
        for steps in (0, 1, 3):
            for ours, expected in zip(found.approach(x, steps, 1e-3), plain.approach(x, steps, 1e-3), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)
        columns = x.t().contiguous().t()  # the same points, another way in memory
        assert torch.equal(found.approach(columns, 3, 1e-3)[0], found.approach(x, 3, 1e-3)[0])
        solved = found.approach(x, 40, 1e-9)[0]
        torch.testing.assert_close(solved + plain(solved), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [0, 4])  # without any step in float32 most points are left to the last resort
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dimensions", [1, 2, 5, 17])  # the last is too many for Newton steps
@pytest.mark.parametrize("actnorm", [True, False])
@pytest.mark.parametrize("kind", FLOWS)
def test_the_inverse_is_the_same(
    kind: type[FlowOfBlocks], actnorm: bool, dimensions: int, threads: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual_flow, "COARSE_STEPS", steps)
    monkeypatch.setattr(chain, "WORK", 1)
    torch.set_num_threads(threads)
    flow, x = make(Exact(), dimensions, kind, actnorm=actnorm)
    flow.bijections.insert(0, Standardize(dimensions).double())
    flow.bijections[0].std.fill_(3.0)
    twin = compiled_copy(flow).eval()
    flow.eval()
    with torch.no_grad():
        z, log_det = flow(x)
        for found, plain in zip(twin.inverse(z), flow.inverse(z), strict=True):
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)
        torch.testing.assert_close(twin.preimage(z), x, rtol=0, atol=1e-9)
        torch.testing.assert_close(twin.inverse(z)[1], -log_det, rtol=0, atol=1e-9)
        for found, plain in zip(twin.inverse_path(z), flow.inverse_path(z), strict=True):
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)
        assert twin.preimage(z[:0]).shape == (0, dimensions)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-9])
@pytest.mark.parametrize("coeff", [0.97, 0.999])
@pytest.mark.parametrize("kind", FLOWS)
def test_the_bound_on_an_inverse_holds(kind: type[FlowOfBlocks], coeff: float, tolerance: float) -> None:
    """Of networks as steep as they may be, wherever the points are, and of every block that is solved for."""
    torch.manual_seed(0)
    flow = kind(2, Exact(), blocks=1, width=16, coeff=coeff, actnorm=False, activation="sin")
    for layer in (layer for net in flow._nets for layer in net.layers):
        layer.weight.data *= 10
        layer.converge()
    block = next(block for block in flow._blocks if not isinstance(block, InverseBlock))
    z = (10 ** torch.linspace(-3, 3, 2000, dtype=torch.float64)).unsqueeze(1) * torch.randn(2000, 2)
    block.tolerance = tolerance
    twin = compiled_copy(flow).eval()
    found = twin.preimage(z)
    y = z if kind is ResidualFlow else flow.eval()._blocks[1].inverse(z)[0]  # what that block's inverse begins with
    block.tolerance = 1e-12
    size = torch.linalg.vector_norm(y, dim=1).clamp(min=1)
    error = torch.linalg.vector_norm(found - block.preimage(y), dim=1) / size
    assert float(error.max()) <= twin.inverse_bound + 1e-12
    assert 0 < twin.inverse_bound <= tolerance


def test_the_bound_is_that_of_the_residual_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With leave to be as far off as it likes, it takes one step from the point itself and says how far that may be."""
    monkeypatch.setattr(residual_flow, "COARSE_STEPS", 0)
    flow, z = make(Exact(), blocks=1, actnorm=False)
    twin, z, block = compiled_copy(flow).eval(), z.float().double(), flow.eval()._blocks[0]
    twin._blocks[0].tolerance = 1e3
    with torch.no_grad():
        g, J = block.net.forward_with_jacobian(z)
        step = torch.linalg.solve(torch.eye(2) + J, -g)
        torch.testing.assert_close(twin.preimage(z), z + step, rtol=0, atol=1e-5)  # of a Jacobian in float32
    lengths = torch.linalg.vector_norm(g, dim=1) / (1 - block.lipschitz()) + torch.linalg.vector_norm(step, dim=1)
    bound = float((lengths / torch.linalg.vector_norm(z, dim=1).clamp(min=1)).max())
    assert twin.inverse_bound == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("kind", FLOWS)
def test_each_block_has_its_own_constant_and_tolerance(
    kind: type[FlowOfBlocks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step from the point itself, as above, block after block: each with the bound that is its own."""
    monkeypatch.setattr(residual_flow, "COARSE_STEPS", 0)
    flow, z = make(Exact(), kind=kind, actnorm=False)
    for scale, layer in zip(torch.linspace(0.2, 0.8, len(flow._blocks)), flow._layers[0], strict=True):
        layer.weight.data *= scale
        layer.converge()
    twin = compiled_copy(flow).eval()
    solved = [block for block in twin._blocks if not isinstance(block, InverseBlock)]
    for tolerance, block in zip((1e2, 1e-6, 1e3), solved, strict=True):
        block.tolerance = tolerance
    with torch.no_grad():
        path = twin.inverse_path(z)
        for block, y, x in zip(twin._blocks[::-1], path, path[1:], strict=False):
            if isinstance(block, InverseBlock):
                assert block.inverse_bound is None
                continue
            g, J = block.net.forward_with_jacobian(y)
            size = torch.linalg.vector_norm(y, dim=1).clamp(min=1)
            if block.tolerance > 1:
                step = torch.linalg.solve(torch.eye(2) + J, -g)
                r, step = torch.linalg.vector_norm(g, dim=1), torch.linalg.vector_norm(step, dim=1)
                bound = float(((r / (1 - block.lipschitz()) + step) / size).max())
                assert block.inverse_bound == pytest.approx(bound, rel=1e-4)
            else:
                assert 0 < block.inverse_bound <= block.tolerance
                torch.testing.assert_close(x + block.net(x), y, rtol=0, atol=1e-6)


def test_a_mixture_of_a_dense_net_is_part_of_its_certificate() -> None:
    flow = IDenseNet(2, Exact(), blocks=2, width=4, depth=2)
    for net in flow._nets:
        net.raw_mix.data.uniform_(-2, 2)
        assert flow._certificate()[1] == [block.lipschitz() for block in flow._blocks]


def test_where_newton_goes_astray_a_step_is_taken_back() -> None:
    """Of an implicit block of two networks that are one, which undo each other."""
    flow = ImplicitFlow(2, Exact(), blocks=1, width=2, depth=1, coeff=0.999, activation="sin", actnorm=False)
    for net in flow._nets:
        net.load_state_dict(kepler(2, 0.999).state_dict())
    twin, x = compiled_copy(flow.double()).train(), 10 * torch.randn(2000, 2, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(twin(x)[0], x, rtol=0, atol=1e-7)


def test_the_bound_is_of_the_residual_where_nothing_more_is_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of points one by one: the largest that a residual leaves room for is the bound that is told."""
    monkeypatch.setattr(residual_flow, "COARSE_STEPS", 0)
    torch.manual_seed(0)
    flow = ResidualFlow(2, Exact(), blocks=1, width=16, coeff=0.97, actnorm=False, activation="sin").double()
    for layer in flow._nets[0].layers:
        layer.weight.data *= 10
        layer.converge()
    twin = compiled_copy(flow).eval()
    block, ratios = twin._blocks[0], []
    for tolerance in (1e-1, 1e-3, 1e-5):
        block.tolerance = tolerance
        for z in (3 * torch.randn(1000, 1, 2, dtype=torch.float64)).unbind():
            with torch.no_grad():
                x = twin.preimage(z)
                r = float((z - x - block.net(x)).norm() / z.norm().clamp(min=1))
            if block.inverse_bound > 1e-12:
                ratios.append(r / (1 - block.lipschitz()) / block.inverse_bound)
    assert 0.99 < max(ratios) < 1.01


@pytest.mark.timeout(120, method="thread")  # no signal ends a loop in C
@pytest.mark.parametrize("activation", ["lipswish", "sin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_whose_squares_overflow_end_in_an_error(activation: str, dtype: torch.dtype) -> None:
    flow, x = make(Exact(), kind=ImplicitFlow, activation=activation)
    twin = compiled_copy(flow).to(dtype).train()
    for bias in (1e30 if dtype == torch.float32 else 1e200, math.nan):
        for block in twin._blocks:
            if isinstance(block, InverseBlock):
                block.net.layers[-1].bias.data[:] = bias
        with pytest.raises(InverseError):
            twin(x.to(dtype))


def test_an_inverse_is_of_the_weights_as_they_are() -> None:
    """Its certificate outlives no change of them, in whatever way they change."""
    flow, x = make(Exact())
    twin = compiled_copy(flow).eval()

    def is_inverse() -> None:
        with torch.no_grad():
            torch.testing.assert_close(twin.preimage(twin(x)[0]), x, rtol=0, atol=1e-9)

    is_inverse()
    twin._layers[1][2].weight.data *= 0.9
    is_inverse()
    twin._layers[1][1].u *= 0.9
    is_inverse()
    twin._layers[1][0].v *= 0.9
    is_inverse()
    twin._layers[0][0].coeff = 0.5
    is_inverse()
    stack_parameters(twin)
    is_inverse()
    twin._layers[1][2].weight.stack.data *= 0.9
    is_inverse()
    twin._layers[0][1].bias.data += 0.1
    twin._norms[1].shift.data += 0.1
    twin._nets[0].activations[0].raw_beta.data += 0.1
    is_inverse()
    twin.load_state_dict(flow.state_dict())
    is_inverse()
    x = x.float()
    z = twin.float()(x)[0].detach()
    torch.testing.assert_close(twin.preimage(z), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", FLOWS)
def test_what_cannot_be_certified_is_an_error(kind: type[FlowOfBlocks]) -> None:
    flow, x = make(Exact(), kind=kind)
    twin = compiled_copy(flow).eval()
    with pytest.raises(InverseError, match="a point to invert is not finite"):
        twin.preimage(torch.full_like(x, torch.inf))
    one = x.clone()
    one[3, 1] = torch.nan
    with pytest.raises(InverseError, match="a point to invert is not finite"):
        twin.preimage(one)
    with pytest.raises(InverseError, match="not within its tolerance"):
        twin.preimage(torch.where(one.isnan(), 1e160, one))  # finite, but not its square
    tolerances = [block.tolerance for block in twin._blocks]
    for block in twin._blocks:
        block.tolerance = 1e-18
    with pytest.raises(InverseError, match="not within its tolerance"):
        twin.preimage(x)
    for block, tolerance in zip(twin._blocks, tolerances, strict=True):
        block.tolerance = tolerance
    twin.preimage(x)
    twin._layers[0][0].bias.data[0] = torch.nan
    with pytest.raises(InverseError, match="not within its tolerance"):
        twin.preimage(x)
    for layers in twin._layers:
        layers[0].u *= 1e-3  # as if power iteration had lost the singular vectors, and the weights had grown
        layers[0].weight.data *= 3
    with pytest.raises(InverseError, match="Lipschitz constant is"):
        twin.preimage(x)


@pytest.mark.parametrize("weights", ["without a graph", "with a graph", "frozen"])
@pytest.mark.parametrize("activation", ["lipswish", "clipswish", "fourier"])  # those with a parameter
@pytest.mark.parametrize("kind", FLOWS)
def test_both_directions_are_of_one_function(kind: type[FlowOfBlocks], activation: str, weights: str) -> None:
    """To the last digits of float64: a float32 number that they make in different ways would be off by 1e-7."""
    flow, x = make(Exact(), kind=kind, activation=activation, blocks=12, depth=4)
    twin = compiled_copy(flow.float()).eval().requires_grad_(weights != "frozen")
    with torch.set_grad_enabled(weights != "without a graph"):
        z = twin(x)[0].detach()
    torch.testing.assert_close(twin.inverse(z)[0], x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kind", "close"), [(ResidualFlow, 1e-12), (ImplicitFlow, 1e-11)])  # solved to 1e-12
def test_evaluation_is_exact_and_differentiable_as_ever(kind: type[FlowOfBlocks], close: float) -> None:
    flow, x = make(RussianRoulette(), kind=kind)
    twin = compiled_copy(flow).eval()
    flow.eval()
    with torch.no_grad():
        torch.testing.assert_close(twin.log_prob(x), flow.log_prob(x), rtol=close, atol=close)
    x.requires_grad_()
    if kind is ImplicitFlow:  # whose gradient is written by hand
        with pytest.raises(RuntimeError, match="differentiated only once"):
            torch.autograd.grad(twin.log_prob(x).sum(), x, create_graph=True)
        return
    (score,) = torch.autograd.grad(twin.log_prob(x).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(score[:, 0].sum(), x)  # twice, which the compiled chain is not
    ahead, behind = (torch.autograd.grad(twin.log_prob(x + h).sum(), x)[0] for h in (1e-5, -1e-5))
    torch.testing.assert_close(found.sum(1), (ahead - behind)[:, 0] / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize(
    "estimator", [Exact(), Truncated(4, memory="saving"), Truncated(4, jacobian="vjp", memory="saving")]
)
def test_a_second_derivative_is_refused_where_it_would_be_wrong(
    kind: type[FlowOfBlocks], estimator: LogDetEstimator
) -> None:
    flow, x = make(estimator, kind=kind)
    x.requires_grad_()
    for each in (flow, compiled_copy(flow)):
        with pytest.raises(RuntimeError, match="differentiated only once"):
            torch.autograd.grad(each.train().log_prob(x).mean(), x, create_graph=True)


@pytest.mark.parametrize("kind", FLOWS)
def test_what_is_frozen_has_a_score(kind: type[FlowOfBlocks]) -> None:
    """As a flow that was loaded; and one of whose parameters some are frozen learns by the others as ever."""
    flow, x = make(Exact(), kind=kind)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(flow.eval().log_prob(x).sum(), x)
    names = [name for name, _ in flow.named_parameters()]
    by_all = torch.autograd.grad(flow.log_prob(x).sum(), list(flow.parameters()))
    for number, parameter in enumerate(flow.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    learning = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    by_some = torch.autograd.grad(flow.log_prob(x).sum(), learning)
    for name, found, plain in zip(names[::3], by_some, by_all[::3], strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-11, msg=name)
    flow.requires_grad_(False)
    for each in (flow, compiled_copy(flow)):
        (found,) = torch.autograd.grad(each.eval().log_prob(x).sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_frozen_flow_is_evaluated_by_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, x = make(Exact())
    twin, passes = compiled_copy(flow).eval().requires_grad_(False), []
    evaluate = FlowOfBlocks._evaluate
    monkeypatch.setattr(FlowOfBlocks, "_evaluate", lambda self, x: passes.append(len(x)) or evaluate(self, x))
    torch.testing.assert_close(twin.log_prob(x), flow.eval().log_prob(x), rtol=1e-9, atol=1e-9)
    assert passes == [len(x)]


def test_a_parameter_that_is_replaced_is_seen() -> None:
    flow, x = make(Exact(), activation="lipswish")
    twin, other = compiled_copy(flow).eval(), copy.deepcopy(flow).eval()
    with torch.no_grad():
        twin.log_prob(x)
        for net in other._nets:
            net.activations[0].raw_beta += 0.5
        twin.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(twin.log_prob(x), other.log_prob(x), rtol=1e-9, atol=1e-9)


class Turn(Bijection):
    """A rotation of the plane by an angle that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.angle = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self._matrix(x).T, x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ self._matrix(z), z.new_zeros(len(z))

    def _matrix(self, like: Tensor) -> Tensor:
        sine, cosine = self.angle.sin(), self.angle.cos()
        return torch.stack([cosine, -sine, sine, cosine]).view(2, 2).to(like.dtype)


def block(activation: str = "sincos", kind: type[LipschitzNet] = LipschitzMLP) -> ResidualBlock:
    return ResidualBlock(kind(2, 6, 2, 0.9, activation), Exact())


class Halved(LipschitzMLP):
    """Half of what the layers are by themselves."""

    def with_weights(self, weights: list[tuple[Tensor, Tensor]]) -> NormalizedMLP:
        weights[-1] = weights[-1][0] / 2, weights[-1][1]
        return super().with_weights(weights)


OTHERS = {
    "a bijection between": lambda: [(Turn(), block()), (Turn(), block())],
    "a second Standardize": lambda: [(block(),), (Standardize(2), block())],
    "another network": lambda: [(block(kind=Halved),), (block(kind=Halved),)],
    "two activations": lambda: [(block("tanh"),), (block("sin"),)],
    "blocks of one and of two": lambda: [(block(),), (block(), block())],
}


@pytest.mark.parametrize("actnorm", [True, False])
@pytest.mark.parametrize("blocks", OTHERS.values(), ids=OTHERS)
def test_what_the_c_library_does_not_know_is_not_left_to_it(blocks: Callable[[], list], actnorm: bool) -> None:
    torch.manual_seed(0)
    flow = FlowOfBlocks(blocks(), 2, actnorm).double()
    x = torch.randn(40, 2, dtype=torch.float64)
    flow.initialize(x)
    twin = compiled_copy(flow)
    for training in (True, False):
        expected = value_and_gradients(flow.train(training), x)
        torch.testing.assert_close(value_and_gradients(twin.train(training), x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(twin.log_prob(x), expected[0].detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(twin.preimage(twin(x)[0]), x, rtol=0, atol=1e-5)


def test_a_frozen_flow_has_a_jacobian_by_either_mode() -> None:
    flow, x = make(Exact())
    frozen = compiled_copy(flow).eval().requires_grad_(False)
    expected = torch.autograd.functional.jacobian(lambda x: flow.eval()(x)[0].sum(0), x[:20]).transpose(0, 1)

    def one(point: Tensor) -> Tensor:
        return frozen(point.unsqueeze(0))[0].squeeze(0)

    for mode in (torch.func.jacrev, torch.func.jacfwd):
        for graph in (True, False):
            with torch.set_grad_enabled(graph):
                found = torch.func.vmap(mode(one))(x[:20])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", FLOWS)
def test_a_batch_may_be_empty(kind: type[FlowOfBlocks], estimator: LogDetEstimator) -> None:
    flow, x = make(estimator, kind=kind)
    for each in (compiled_copy(flow), flow):
        for training in (True, False):
            log_prob = each.train(training).log_prob(x[:0])
            assert log_prob.shape == (0,)
            log_prob.sum().backward()


def test_a_series_refuses_probes_of_another_dtype() -> None:
    """As of noise that was drawn for points of float32, used again in float64."""
    estimator = RussianRoulette()
    flow, x = make(estimator)
    compiled_copy(flow)  # or there is no compiler
    noise = estimator.draw_noise(x.float())
    estimator.compiled = True
    with pytest.raises(ValueError, match=r"one dtype and batch, not torch\.float64 .* and torch\.float32"):
        estimator.from_matrix(torch.zeros(len(x), 2, 2, dtype=torch.float64), noise)


def test_no_solution_is_asked_for_that_no_number_is() -> None:
    flow, x = make(Exact())
    twin = compiled_copy(flow).eval()
    for block in twin._blocks:
        block.tolerance = 0.0
    with pytest.raises(ValueError, match="tolerances are above zero"):
        twin.preimage(x)


def test_compiled_code_refuses_other_numbers() -> None:
    flow, x = make(Exact())
    twin = compiled_copy(flow)
    with pytest.raises(CompileError, match=r"not in torch\.bfloat16"):
        twin.bfloat16()(x.bfloat16())


def test_compiled_code_refuses_what_is_elsewhere() -> None:
    """It would read memory that is not there."""
    flow, x = make(Exact())
    twin = compiled_copy(flow).to("meta")
    with pytest.raises(ValueError, match=r"of one dtype and device, not torch\.float64 on cpu and torch\.float64 on"):
        twin(x)
    power_iterate([layer for layers in twin._layers for layer in layers], 5, compiled=True)  # by torch, where it is


@pytest.mark.parametrize("kind", FLOWS)
def test_points_are_evaluated_some_at_a_time(monkeypatch: pytest.MonkeyPatch, kind: type[FlowOfBlocks]) -> None:
    flow, x = make(Exact(), kind=kind)
    twin = compiled_copy(flow).eval().requires_grad_(False)
    whole = [*twin(x), *twin.inverse(x)]
    monkeypatch.setattr(residual_flow, "NUMBERS", 4 * len(twin._nets) * 60)
    for expected, found in zip(whole, [*twin(x), *twin.inverse(x)], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_an_exception_waits_for_the_other_threads() -> None:
    """What they work on is freed by it."""
    ended = []

    def work(begin: int, end: int, number: int) -> int:
        if number == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        ended.append(number)
        return 1

    with pytest.raises(KeyboardInterrupt):
        compiled.in_threads([(0, 1), (1, 2)], work)
    assert ended == [1]


def test_sines_of_far_points_are_sines() -> None:
    """Up to one, so that what is certified of a slope holds there too."""
    flow = ResidualFlow(2, Exact(), blocks=1, width=8, depth=1, coeff=0.9, activation="sin", actnorm=False).double()
    twin, x = compiled_copy(flow).eval(), 10.0 ** torch.arange(10, 30, dtype=torch.float64)[:, None].expand(-1, 2)
    with torch.no_grad():
        _, log_det = twin(x)
    L = twin.lipschitz()
    assert (log_det.abs() <= -2 * math.log(1 - L)).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    parts = [(0, 1), (1, 2), (2, 3)]
    assert compiled.in_threads(parts, lambda *_: 1) == [1, 1, 1]
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not that of a test's time limit
        signal.alarm(10)  # or it would wait for ever
        try:
            os._exit(compiled.in_threads(parts, lambda *_: 1) != [1, 1, 1])
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("actnorm", [False, True])
@pytest.mark.parametrize("jacobian", ["dense", "vjp"])
@pytest.mark.parametrize("kind", FLOWS)
def test_a_standardize_before_all_is_counted(kind: type[FlowOfBlocks], actnorm: bool, jacobian: str) -> None:
    """Compiled or not, in training and in evaluation, the flow is that of its bijections one after another."""
    flow, x = make(Exact(jacobian=jacobian), kind=kind, actnorm=actnorm)
    standardize = Standardize(2).double()
    standardize.load_state_dict({"mean": torch.tensor([50.0, -3000.0]), "std": torch.tensor([2.0, 200.0])})
    with torch.no_grad():
        expected = flow.log_prob(x) - math.log(2.0 * 200.0)
    y = standardize.inverse(x)[0]
    flow.bijections.insert(0, standardize)
    for each in (flow, compiled_copy(flow)):
        with torch.no_grad():
            torch.testing.assert_close(each.train().log_prob(y), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(each.eval().log_prob(y), expected, rtol=1e-9, atol=1e-9)
    flow.train()
    for found, plain in zip(value_and_gradients(compiled_copy(flow), y), value_and_gradients(flow, y), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", FLOWS)
def test_it_is_differentiated_only_once(kind: type[FlowOfBlocks]) -> None:
    flow, x = make(Exact(), kind=kind)
    loss = compiled_copy(flow).log_prob(x).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


@pytest.mark.parametrize("coeff", [0.97, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverted_blocks_are_solved(dtype: torch.dtype, coeff: float) -> None:
    """Wherever the points are, of networks as steep as they may be, what is undone by x + g(x) is the point again."""
    torch.manual_seed(0)
    flow = ImplicitFlow(2, Exact(), blocks=1, width=16, coeff=coeff, actnorm=False, activation="sin").double()
    for layer in (layer for net in flow._nets for layer in net.layers):
        layer.weight.data *= 10
        layer.converge()
    twin = compiled_copy(flow.to(dtype)).train()
    x = (10 ** torch.linspace(-3, 3, 2000, dtype=torch.float64)).unsqueeze(1) * torch.randn(2000, 2)
    x = x.to(dtype)
    z = twin(x)[0].detach().double()
    before, after = (block.double() for block in flow._blocks)
    with torch.no_grad():
        residual = before(x.double())[0] - after.inverse(z)[0]
    size = torch.linalg.vector_norm(x.double(), dim=1).clamp(min=1)
    assert float((torch.linalg.vector_norm(residual, dim=1) / size).max()) < {4: 2e-5, 8: 2e-12}[dtype.itemsize]


def test_what_cannot_be_inverted_is_an_error() -> None:
    flow, x = make(Exact(), kind=ImplicitFlow)
    twin = compiled_copy(flow)
    for layer in twin._nets[1].layers:
        layer.u *= 1e-3  # as if power iteration had lost the singular vectors, and the weights had grown
        layer.weight.data *= 3
    with pytest.raises(InverseError, match="not inverted"):
        twin.log_prob(x)
    twin.eval()
    with torch.no_grad(), pytest.raises(InverseError, match="Lipschitz constant is"):
        twin.log_prob(x)


@pytest.mark.parametrize("way", ["inverse", "preimage", "inverse_path"])
@pytest.mark.parametrize("training", [True, False])
def test_no_way_back_is_uncertified(way: str, training: bool) -> None:
    """Nor that of an inverse block, which is there without a solution: where Lip(g) > 1, z + g(z) is no bijection."""
    flow, x = make(Exact(), kind=ImplicitFlow)
    flow.train(training)
    getattr(flow, way)(x)
    for layer in flow._nets[1].layers:
        layer.u *= 1e-3
        layer.weight.data *= 3
    assert isinstance(flow._blocks[1], InverseBlock)
    with pytest.raises(InverseError, match="Lipschitz constant is"):
        getattr(flow, way)(x)


@pytest.mark.parametrize("kind", FLOWS)
def test_not_finite_stays_not_finite(kind: type[FlowOfBlocks]) -> None:
    flow, x = make(Exact(), kind=kind, activation="lipswish")
    twin = compiled_copy(flow)
    x[3, 0] = torch.nan
    assert torch.isfinite(twin.log_prob(x)).logical_not().nonzero().flatten().tolist() == [3]


class Fails(Tanh):
    c_source = "this is no C"


class Without(Tanh):
    c_source = None


def test_where_nothing_can_be_compiled_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="Without has no c_source"):
        library_of(Without, torch.float32)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(CompileError, match="false fails: exit status 1"):
        library_of(Fails, torch.float32)
    monkeypatch.setenv("CC", "/there/is/none")
    with pytest.raises(CompileError, match="there is no C compiler"):
        library_of(Fails, torch.float32)

    with monkeypatch.context() as patch:

        def full(**_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setenv("CC", "false")  # it is not come to
        patch.setattr(compiled.tempfile, "TemporaryDirectory", full)
        with pytest.raises(CompileError, match=r"kept or loaded: .* No space left"):
            library_of(Fails, torch.float32)
    flow = ResidualFlow(2, Exact(), blocks=1, width=3, activation="softplus")
    library_of.cache_clear()
    assert "there is no C compiler" in flow.compile_for(CPU)
    assert not flow.compiled


def test_what_has_nothing_to_compile_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise CompileError("there is no C compiler")

    monkeypatch.setattr(series, "library_of", none)
    assert IDenseNet(2, Exact(), blocks=1, width=3).compile_for(CPU) is None
    assert IDenseNet(2, Truncated(jacobian="vjp"), blocks=1, width=3).compile_for(CPU) is None
    assert IDenseNet(2, Truncated(), blocks=1, width=3).compile_for(CPU) == "there is no C compiler"


def test_several_may_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first jobs of a sweep, started together, find an empty cache."""
    compiled_copy(make(Exact())[0])  # skips where there is no compiler
    monkeypatch.setattr(compiled, "_cache", lambda: tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: compiled.library(series.SOURCE, torch.float32), range(4)))
    assert all(hasattr(library, "series") for library in found)
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


def test_where_the_cache_may_not_be_executed_from_another_folder_is_used(
    compiler: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, refused = ctypes.CDLL, []

    def refuse(path: str) -> ctypes.CDLL:
        if path.startswith(str(tmp_path)):
            refused.append(path)
            raise OSError("failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(compiled, "_cache", lambda: tmp_path)
    monkeypatch.setattr(compiled.ctypes, "CDLL", refuse)
    assert hasattr(compiled.library(series.SOURCE, torch.float32), "series")
    assert len(refused) == 1
