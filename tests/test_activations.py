"""Every activation keeps the contract: its constant bounds its slope, and its derivative is its own."""

from __future__ import annotations

import pytest
import torch

from flows.activations import Activation, activation_names, make_activation
from flows.activations.fourier import Fourier
from flows.activations.sincos import SinCos


@pytest.fixture(params=activation_names())
def activation(request: pytest.FixtureRequest) -> Activation:
    return make_activation(request.param).double()


def slopes(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """The Jacobian of the activation at each of the points `x`, by automatic differentiation: (points, expansion)."""
    return torch.func.vmap(torch.func.jacfwd(lambda t: activation(t.view(1))))(x)


def test_the_seven_of_the_design_are_there() -> None:
    assert {"elu", "softplus", "tanh", "lipswish", "clipswish", "sin", "sincos"} <= set(activation_names())


def test_lipschitz_constant_holds_on_a_dense_grid(activation: Activation) -> None:
    x = torch.linspace(-90, 90, 200_001, dtype=torch.float64)
    betas = [None] if not list(activation.parameters()) else [-3.0, 0.5413, 4.0]
    for beta in betas:
        for parameter in activation.parameters():
            torch.nn.init.constant_(parameter, beta)
        steepest = float(torch.linalg.vector_norm(slopes(activation, x).detach(), dim=1).max())
        assert steepest <= activation.lipschitz * (1 + 1e-15)  # a frequency times its inverse is rounded
        assert activation.lipschitz <= 1
        assert steepest > 0.98 * activation.lipschitz  # the bound is the bound, not a loose one


def test_derivative_is_that_of_the_value(activation: Activation) -> None:
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    value, derivative = activation.value_and_derivative(x.unsqueeze(1))
    assert value.shape == derivative.shape == (1000, activation.expansion)
    torch.testing.assert_close(value, activation(x.unsqueeze(1)), rtol=0, atol=1e-14)
    torch.testing.assert_close(derivative, slopes(activation, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["elu", "softplus", "tanh", "lipswish", "clipswish"])
def test_float32_is_close_however_far(name: str) -> None:
    x = 10.0 ** torch.linspace(-3, 7, 4001).unsqueeze(1)
    for points in (x, -x):
        value, derivative = make_activation(name).value_and_derivative(points)
        exact_value, exact = make_activation(name).double().value_and_derivative(points.double())
        torch.testing.assert_close(value.double(), exact_value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(derivative.double(), exact, rtol=0, atol=3e-6)


def test_softplus_is_the_logarithm_of_a_sum() -> None:
    x = torch.linspace(-90, 90, 200_001, dtype=torch.float64)
    expected = torch.logaddexp(x, torch.zeros_like(x))
    torch.testing.assert_close(make_activation("softplus")(x), expected, rtol=1e-14, atol=0)


def test_derivative_that_is_not_written_out_is_found_by_differentiation(activation: Activation) -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = Activation.value_and_derivative(activation, x)
    for expected, actual in zip(activation.value_and_derivative(x), found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", [SinCos(), Fourier()], ids=["sincos", "fourier"])
def test_sine_and_cosine_never_attenuate(pair: Activation) -> None:
    _, derivative = pair.value_and_derivative(torch.linspace(-9, 9, 1001, dtype=torch.float64).unsqueeze(1))
    torch.testing.assert_close(derivative.norm(dim=1), torch.ones(1001, dtype=torch.float64))


def test_the_first_outputs_of_all_units_stand_before_their_second_ones(activation: Activation) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    units = torch.stack([activation(x[:, unit : unit + 1]) for unit in range(3)], dim=2)  # (points, expansion, units)
    torch.testing.assert_close(activation(x), units.flatten(1), rtol=0, atol=1e-14)


class Leaky(Activation):
    """Linear on both sides of zero, so that its derivative depends on nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.1 * x)


def test_a_derivative_may_be_constant_piece_by_piece() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    derivative = torch.where(x > 0, x.new_tensor(1.0), x.new_tensor(0.1))
    by_x, by_parameters = Leaky().pullback(x, derivative, 2 * x, 3 * x)
    torch.testing.assert_close(by_x, 2 * x * derivative, rtol=0, atol=1e-14)
    assert by_parameters == []


class Steep(Activation):
    """Of a slope that is learned, and whose derivative is left to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.raw) * torch.tanh(x)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_parameter_may_be_frozen(frozen: bool) -> None:
    steep = Steep().requires_grad_(not frozen)
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    by_x, (by_raw,) = steep.pullback(x, torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(x))
    torch.testing.assert_close(by_x, (torch.sigmoid(steep.raw) / torch.cosh(x) ** 2).detach())
    assert (by_raw is None) == frozen
