"""What an activation of a Lipschitz network must offer."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor, nn

from flows.differentiation import gradients

__all__ = ["Activation"]

ZERO = torch.zeros(())


class Activation(nn.Module, abc.ABC):
    r"""An elementwise map :math:`\phi: R \to R^m` with a known Lipschitz constant.

    A subclass writes `forward`, and sets `lipschitz` and `expansion` where they are not 1. The rest is optional and
    saves time: `value_and_derivative`, which a test holds to the derivative that automatic differentiation finds;
    `pullback`, without which nothing is compiled on CUDA; and `c_source`, without which nothing is on a CPU.

    The file is named after its class in lower case; that is the name `flow.activation` accepts.
    """

    lipschitz: ClassVar[float] = 1.0
    """The largest norm of the derivative, :math:`\\sup_x |\\phi'(x)|`, at most 1."""

    expansion: ClassVar[int] = 1
    """m, outputs for each input: the layer that follows is m times as wide."""

    c_source: ClassVar[str | None] = None
    """The activation in C, for `flows/chain.c`, which computes whole blocks at once; None if there is no C version.

    From the input `a` and the parameter `p` (see `c_parameter`), its statements set for each u < m the value `h[u]`,
    its derivative `s[u]` by a, the derivative `c[u]` of `s[u]` by a, and, if there is a parameter, the derivatives
    `h_by_p[u]` and `s_by_p[u]` of `h[u]` and `s[u]` by p. Numbers are of type `real`; the functions `exponential`,
    `sigmoid` and `sine_and_cosine` are available. A test compares the statements with `value_and_derivative`.
    """

    @property
    def own_parameter(self) -> Tensor:
        """Its one parameter, a number; zero where it has none."""
        for parameter in self._parameters.values():  # faster, where it is not in a module within
            return parameter
        return next(self.parameters(), ZERO)

    @classmethod
    def c_parameter(cls, raw: Tensor) -> Tensor:
        """The numbers `p` of `c_source` for many activations, from `own_parameter` of each; any shape."""
        return raw

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map `x`, shape (..., width), to shape (..., expansion * width), component by component.

        The first outputs of all components stand before their second ones, and so on.
        """

    def value_and_derivative(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `forward(x)` and its derivative by the input of the same unit, both of the shape of `forward(x)`."""
        return torch.func.jvp(self.forward, (x,), (torch.ones_like(x),))

    def pullback(
        self, x: Tensor, derivative: Tensor, grad_value: Tensor, grad_derivative: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Differentiate `value_and_derivative(x)`: from the gradients by both, those by `x` and by each parameter.

        Args:
            derivative: as returned by `value_and_derivative(x)`, to be used where it saves work.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            pairs = zip(self.value_and_derivative(x), (grad_value, grad_derivative), strict=True)
            # The derivative of a piecewise linear activation is piecewise constant, so it may have no graph.
            outputs, by_outputs = zip(*((output, by_output) for output, by_output in pairs if output.requires_grad))
            inputs = (x, *self.parameters())
            found = gradients(outputs, inputs, [tensor.requires_grad for tensor in inputs], by_outputs)
        return found[0], found[1:]
