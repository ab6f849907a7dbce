"""What must hold of every flow, whatever its architecture, dimension and dtype: examples found by hypothesis."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import ResidualFlow
from flows.activations import activation_names
from flows.actnorm import ActNorm
from flows.bijection import InverseError
from flows.estimators import Exact
from flows.lipschitz import LipschitzLinear
from flows.residual_block import ResidualBlock

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def flows(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> ResidualFlow:
    """A flow with large random weights, in evaluation mode: its bounds are active, and it is far from the identity."""
    torch.manual_seed(draw(st.integers(0, 2**16), label="seed"))
    flow = ResidualFlow(
        dimensions=draw(st.sampled_from([1, 2, 3, 5, 18]), label="dimensions"),
        estimator=Exact(),
        blocks=draw(st.integers(1, 4), label="blocks"),
        width=draw(st.integers(1, 24), label="width"),
        depth=draw(st.integers(1, 3), label="depth"),
        activation=draw(st.sampled_from(sorted(activation_names())), label="activation"),
        coeff=draw(st.sampled_from([0.3, 0.9, 0.97, 0.999]), label="coeff"),
        actnorm=draw(st.booleans(), label="actnorm"),
    )
    gain = draw(st.sampled_from([0.3, 2.0, 30.0]), label="gain")
    for module in flow.modules():
        if isinstance(module, LipschitzLinear):
            torch.nn.init.normal_(module.weight, std=gain)
            torch.nn.init.normal_(module.bias)
            module.converge()
        if isinstance(module, ActNorm):
            torch.nn.init.normal_(module.log_scale, std=0.2)
            torch.nn.init.normal_(module.shift)
    return flow.to(draw(st.sampled_from(dtypes), label="dtype")).eval()


def points(flow: ResidualFlow, n: int, size: float) -> torch.Tensor:
    return torch.randn(n, flow.dimensions).to(next(flow.parameters())) * size


@given(flows(), st.sampled_from([1e-3, 1.0, 10.0]))
@EXAMPLES
def test_inverse_undoes_forward(flow: ResidualFlow, size: float) -> None:
    """As closely as z, in its dtype, can hold x: the slope of the inverse is at most the product of 1 / (1 - L)."""
    x = points(flow, 8, size)
    with torch.no_grad():
        z, log_det = flow(x)
        back, back_log_det = flow.inverse(z)
        slope = torch.linalg.matrix_norm(torch.linalg.inv(jacobian(flow.double(), x.double())), ord=2)
    rounding = torch.finfo(x.dtype).eps * z.norm(dim=1).clamp(min=1)
    tolerance = slope * (2 * rounding + 1e-6)
    assert ((back - x).norm(dim=1) <= tolerance + 1e-6).all()
    assert torch.isfinite(log_det).all()
    assert torch.isfinite(back_log_det).all()


@given(flows(dtypes=(torch.float64,)))
@EXAMPLES
def test_log_det_is_that_of_automatic_differentiation(flow: ResidualFlow) -> None:
    x = points(flow, 5, 2.0)
    sign, expected = torch.linalg.slogdet(jacobian(flow, x))
    assert (sign > 0).all()
    for training in (False, True):  # by plain operations, and fused
        torch.testing.assert_close(flow.train(training)(x)[1], expected, rtol=0, atol=1e-9)


@given(flows(), st.sampled_from([1e-4, 1e-2, 1.0, 100.0]))
@EXAMPLES
def test_no_slope_exceeds_the_certificate(flow: ResidualFlow, distance: float) -> None:
    """Finite differences of each block's residual, from points near by to points far apart."""
    flow = flow.double()
    for block in flow.bijections:
        if isinstance(block, ResidualBlock):
            L = block.lipschitz()
            assert L < 1
            x = points(flow, 200, 3.0)
            y = x + torch.nn.functional.normalize(torch.randn_like(x), dim=1) * distance
            with torch.no_grad():
                slopes = (block.net(x) - block.net(y)).norm(dim=1) / (x - y).norm(dim=1)
            assert float(slopes.max()) <= L * (1 + 1e-9)


def jacobian(flow: ResidualFlow, x: torch.Tensor) -> torch.Tensor:
    """dz/dx by automatic differentiation, shape (batch, d, d)."""
    with torch.enable_grad():
        return torch.func.vmap(torch.func.jacrev(lambda point: flow(point.unsqueeze(0))[0].squeeze(0)))(x).detach()


@pytest.mark.parametrize("compiled", [False, True])
def test_whole_numbers_are_refused(compiled: bool) -> None:
    """A density rounded to whole numbers would pass for one."""
    flow = ResidualFlow(2, Exact(), blocks=2, width=4).eval()
    if compiled and (reason := flow.compile_for(torch.device("cpu"))):
        pytest.skip(reason)
    points = torch.arange(6).view(3, 2)
    with torch.no_grad():
        for of in (flow.log_prob, flow.inverse, flow.preimage, flow.inverse_path):
            with pytest.raises(TypeError, match=r"got torch\.int64"):
                of(points)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (2,), (4, 5, 2)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...], compiled: bool) -> None:
    """ActNorm alone would broadcast a column of numbers to points."""
    flow = ResidualFlow(2, Exact(), blocks=2, width=4)
    if compiled and (reason := flow.compile_for(torch.device("cpu"))):
        pytest.skip(reason)
    for training in (True, False):
        flow.train(training)
        for of in (flow.log_prob, flow.inverse, flow.preimage, flow.inverse_path):
            with pytest.raises(ValueError, match=r"points are of shape \(batch, 2\), not"):
                of(torch.zeros(shape))


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_is_evaluated_that_is_no_contraction(compiled: bool) -> None:
    """As after steps without power iterations, by an optimizer that knows nothing of them."""
    flow, x = ResidualFlow(2, Exact(), blocks=2, width=4).eval(), torch.randn(5, 2)
    if compiled and (reason := flow.compile_for(torch.device("cpu"))):
        pytest.skip(reason)
    flow.log_prob(x)
    for layer in flow._nets[0].layers:
        layer.u *= 1e-3
        layer.weight.data *= 3
    for graph in (False, True):
        with torch.set_grad_enabled(graph), pytest.raises(InverseError, match="Lipschitz constant is"):
            flow.log_prob(x)
