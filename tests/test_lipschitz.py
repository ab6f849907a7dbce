"""Soft spectral normalization against exact singular values."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

from flows import fused
from flows.activations import Activation, activation_names, make_activation
from flows.compiled import shares
from flows.idensenet import LipschitzDenseNet
from flows.lipschitz import LipschitzLinear, LipschitzMLP, LipschitzNet, normalized_stack
from flows.power_iteration import power_iterate
from flows.stacks import stack_parameters


def exact_sigma(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double())[0])


@pytest.mark.parametrize("shape", [(2, 64), (64, 64), (64, 2), (7, 3), (1, 1)])
@pytest.mark.parametrize("coeff", [0.5, 0.9, 0.999])
def test_bound_holds_from_construction(shape: tuple[int, int], coeff: float) -> None:
    torch.manual_seed(0)
    layer = LipschitzLinear(*shape, coeff)
    torch.nn.init.orthogonal_(layer.weight, gain=3)
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight) * 0.3)
    layer.converge()
    assert exact_sigma(layer.normalized_weight()) == pytest.approx(coeff, rel=1e-6)
    assert layer.singular_value() == pytest.approx(exact_sigma(layer.normalized_weight()), rel=1e-12)


def test_small_weights_are_left_alone() -> None:
    layer = LipschitzLinear(5, 5, 0.9)
    with torch.no_grad():
        layer.weight.mul_(0.5 / exact_sigma(layer.weight))
    layer.converge()
    assert torch.equal(layer.normalized_weight(), layer.weight)


def test_sigma_is_differentiated_through_the_weight() -> None:
    """The gradient of W c / sigma(W) by finite differences of the exact sigma."""
    torch.manual_seed(1)
    layer = LipschitzLinear(4, 3, 0.7).double()
    torch.nn.init.normal_(layer.weight)
    layer.converge()
    readout, direction, h = torch.randn(3, 4).double(), torch.randn(3, 4).double(), 1e-6
    (layer.normalized_weight() * readout).sum().backward()

    def loss(step: float) -> float:
        weight = layer.weight.detach() + step * direction
        return float((weight * 0.7 / exact_sigma(weight) * readout).sum())

    assert float((layer.weight.grad * direction).sum()) == pytest.approx((loss(h) - loss(-h)) / (2 * h), rel=1e-6)


@pytest.fixture(params=[False, True], ids=["plain", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param:
        request.getfixturevalue("compiler")
    return request.param


@pytest.mark.parametrize(("calls", "n"), [(100, 5), (1, 500)])  # one by one, and by squaring
def test_power_iteration_converges_in_batches_of_equal_shape(calls: int, n: int, compiled: bool) -> None:
    torch.manual_seed(2)
    layers = [LipschitzLinear(*shape, 0.9) for shape in [(2, 16), (16, 16), (16, 16), (16, 2)]]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)  # u and v now belong to another matrix
    for _ in range(calls):
        power_iterate(layers, n, compiled)
    for layer in layers:
        torch.testing.assert_close(
            layer.u @ layer.weight @ layer.v, torch.linalg.svdvals(layer.weight)[0], rtol=1e-4, atol=0
        )
        assert exact_sigma(layer.normalized_weight()) == pytest.approx(0.9, rel=1e-4)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("shape", [(1, 1), (2, 48), (96, 48), (48, 2), (33, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_power_iteration_is_power_iteration(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.power_iteration.WORK", 1)  # so that even these are shared by threads
    torch.set_num_threads(3)
    assert len(shares(5, 1, 1)) == 3
    torch.manual_seed(9)
    plain = nn.ModuleList(LipschitzLinear(*shape, 0.9).to(dtype) for _ in range(5))
    for layer in plain:
        torch.nn.init.normal_(layer.weight)  # u and v now belong to another matrix
    compiled = copy.deepcopy(plain)
    stack_parameters(compiled)
    power_iterate(plain, 3)
    power_iterate(compiled, 3, compiled=True)
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours.u, theirs.u, rtol=0, atol=20 * torch.finfo(dtype).eps)
        torch.testing.assert_close(ours.v, theirs.v, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_squaring_is_as_many_power_iterations() -> None:
    torch.manual_seed(7)
    one_by_one = LipschitzLinear(6, 10, 0.9).double()
    torch.nn.init.normal_(one_by_one.weight)  # u and v now belong to another matrix
    squared = copy.deepcopy(one_by_one)
    for _ in range(4):
        power_iterate([one_by_one], 4)
    power_iterate([squared], 16)
    torch.testing.assert_close(squared.v, one_by_one.v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(squared.u, one_by_one.u, rtol=1e-9, atol=1e-12)


def test_an_unconverged_estimate_is_seen_by_the_certificate() -> None:
    torch.manual_seed(3)
    layer = LipschitzLinear(32, 32, 0.9)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.linspace(1, 3, 32)))
        layer.u.copy_(torch.eye(32)[0])
        layer.v.copy_(torch.eye(32)[0])
    assert layer.singular_value() == pytest.approx(2.7)  # the layer believes 0.9
    layer.converge()
    assert layer.singular_value() == pytest.approx(0.9)


@pytest.mark.parametrize("activation", activation_names())
@pytest.mark.parametrize("dimensions", [1, 2, 3, 8])
@pytest.mark.parametrize("family", [LipschitzMLP, LipschitzDenseNet])
def test_network_and_its_jacobian(family: type[LipschitzNet], dimensions: int, activation: str) -> None:
    torch.manual_seed(4)
    net = family(dimensions, 16, 2, 0.97, activation).double()
    x = torch.randn(20, dimensions).double() * 2
    g, J = net.forward_with_jacobian(x)
    torch.testing.assert_close(g, net(x), rtol=0, atol=1e-13)
    expected = torch.func.vmap(torch.func.jacrev(lambda point: net(point)))(x)
    torch.testing.assert_close(J, expected, rtol=0, atol=1e-12)
    assert float(torch.linalg.matrix_norm(J.detach(), ord=2).max()) <= net.lipschitz() <= net.bound() + 1e-9
    slopes = math.prod(activation.lipschitz for activation in net.activations)
    assert net.bound() == pytest.approx(0.97**3 * slopes if family is LipschitzMLP else 0.97)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("family", [LipschitzMLP, LipschitzDenseNet])
def test_slopes_never_exceed_the_certificate(family: type[LipschitzNet], depth: int) -> None:
    torch.manual_seed(5)
    net = family(2, 24, depth, 0.95, "clipswish").double()
    for layer in net.layers:
        torch.nn.init.normal_(layer.weight)
        layer.converge()
    assert len(net.layers) == depth + 1
    a, b = torch.randn(2, 2000, 2).double() * 3
    slope = (net(a) - net(b)).norm(dim=1) / (a - b).norm(dim=1)
    assert float(slope.detach().max()) <= net.lipschitz()
    assert net.lipschitz() == pytest.approx(0.95 ** (depth + 1) if family is LipschitzMLP else 0.95, rel=1e-5)


def test_a_concatenation_is_of_norm_one_and_learned() -> None:
    net = LipschitzDenseNet(3, 4, 1, 0.9, "sin").double()
    for raw in ([0.0, 0.0], [3.0, -2.0], [-4.0, 5.0]):
        with torch.no_grad():
            net.raw_mix.copy_(torch.tensor(raw))
        ((a, b),) = net.mix().tolist()
        assert a**2 + (0.9 * b) ** 2 == pytest.approx(1)
        assert a > 0 < b
        assert (a > b) == (raw[0] > raw[1]) or raw[0] == raw[1]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_certificate_of_a_dense_net_is_of_singular_values(index: int) -> None:
    torch.manual_seed(0)
    net = LipschitzDenseNet(2, 8, 2, 0.9, "sin")
    net.layers[index].weight.data *= 3
    net.layers[index].converge()
    net.layers[index].u *= 0.1  # as if power iteration had lost the singular vectors
    sigmas = [exact_sigma(layer.normalized_weight()) for layer in net.layers]
    expected = sigmas[2] * math.prod(math.hypot(a, b * sigma) for (a, b), sigma in zip(net.mix().tolist(), sigmas))
    assert net.lipschitz() == pytest.approx(expected, rel=1e-6)
    assert net.lipschitz() > 1


def test_a_stack_is_normalized_as_each_layer_is() -> None:
    torch.manual_seed(6)
    layers = [LipschitzLinear(16, 12, c).double() for c in (0.2, 0.5, 0.999)]
    weights, readout = [layer.weight for layer in layers], torch.randn(3, 12, 16).double()
    apart, together = torch.stack([layer.normalized_weight() for layer in layers]), normalized_stack(layers)
    torch.testing.assert_close(together, apart)
    for found, expected in zip(*(torch.autograd.grad((W * readout).sum(), weights) for W in (together, apart))):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("activation", activation_names())
@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_fused_pass_is_the_plain_one(dimensions: int, depth: int, activation: str) -> None:
    """Values and every gradient of the one-node pass, against autograd through plain operations."""
    torch.manual_seed(7)
    net = LipschitzMLP(dimensions, 9, depth, 0.95, activation).double()
    x = (torch.randn(11, dimensions).double() * 2).requires_grad_()
    by_g, by_J = torch.randn(11, dimensions).double(), torch.randn(11, dimensions, dimensions).double()
    found = []
    for training in (True, False):
        g, J = net.train(training).forward_with_jacobian(x)
        loss = (g * by_g).sum() + (J * by_J).sum()
        found.append((g, J, *torch.autograd.grad(loss, [x, *net.parameters()])))
    assert "ValueAndJacobian" in str(net.train().forward_with_jacobian(x)[0].grad_fn)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-11)


def test_a_parameter_that_changes_before_the_backward_pass_is_an_error() -> None:
    """Not a gradient of neither."""
    net, x = LipschitzMLP(2, 9, 2, 0.95, "fourier").train(), torch.randn(11, 2)
    g, J = net.forward_with_jacobian(x)
    (parameter,) = net.activations[0].parameters()
    with torch.no_grad():
        parameter += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (g.sum() + J.sum()).backward()


WRITTEN_OUT = [name for name in activation_names() if type(make_activation(name)).pullback is not Activation.pullback]


@pytest.mark.parametrize("activation", WRITTEN_OUT)
def test_the_passes_are_traced_whole(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `torch.compile` does on CUDA, which goes on from no graph break here; by a backend that compiles nothing."""
    torch.manual_seed(8)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    layers = [tuple(tensor.detach().double() for tensor in (layer.weight, layer.bias))
              for layer in LipschitzMLP(2, 9, 2, 0.95, activation).layers]  # fmt: skip
    activations, x = [make_activation(activation).double() for _ in range(2)], torch.randn(11, 2).double()
    inputs = [x, *(tensor for layer in layers for tensor in layer)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    inputs += [parameter for activation in activations for parameter in activation.parameters()]
    found = []
    fused._compiled_passes.cache_clear()
    try:
        for compiled in (True, False):
            g, J = fused.value_and_jacobian(x, layers, activations, compiled)
            loss = g.square().sum() + J.pow(3).sum()
            found.append((g, J, *torch.autograd.grad(loss, inputs)))
    finally:
        fused._compiled_passes.cache_clear()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-11)


def test_what_was_certified_on_another_device_is_certified_anew() -> None:
    """As of a flow that is built and certified on the host, and then moved: tensors of two devices do not compare."""
    layer = LipschitzLinear(5, 4, 0.9)
    known = layer.singular_value()
    for other in ({"device": "meta"}, {"dtype": torch.float64}):
        layer._certified = torch.empty_like(layer.weight, **other), 0.123
        assert layer.singular_value() == known
