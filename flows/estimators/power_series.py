r"""What the estimators by power series share.

.. math:: \log\det(I + J) = \sum_{k \ge 1} \frac{(-1)^{k+1}}{k}\,\mathrm{tr}(J^k)
          \approx \frac{1}{m}\sum_{v} \sum_{k \ge 1} \frac{(-1)^{k+1}}{k}\, w_k\, v^T J^k v

with m probes v of identity covariance (Hutchinson 1990) and weights :math:`w_k` that cut the series.
"""

from __future__ import annotations

import abc
from typing import Any, Literal

import torch
from torch import Tensor

from flows.differentiation import gradients, once_differentiable
from flows.estimators.estimator import JacobianMode, LogDetEstimator, Noise, ResidualNet
from flows.estimators.jacobian import DenseJacobian, Jacobian
from flows.estimators.series import series

__all__ = ["Gradient", "Memory", "PowerSeries", "Probe"]

Probe = Literal["gaussian", "rademacher"]
Gradient = Literal["series", "neumann"]
Memory = Literal["standard", "saving"]


class PowerSeries(LogDetEstimator):
    """A weighted power series with Hutchinson's trace estimator.

    A subclass says how the series is cut: `weights`, `lengths` and, if at random, `draw_orders`.

    Args:
        n_probes: m, probes v for each sample. The variance that is theirs falls as 1/m; that of a random cut, which
            the probes of a sample share, stays.
        probe: distribution of v. Rademacher has the smaller variance; the authors of iResNet and Residual Flow took
            Gaussian ones.
        gradient: `series` differentiates the sum as it stands; `neumann` replaces its gradient by the Neumann
            series of (I + J)^-1, of which only the last product has a graph (Chen et al. 2019, equation 8).
        memory: `saving` computes the gradient of the estimate in the forward pass and stores it in place of
            its graph (Chen et al. 2019, section 3.2); `standard` leaves all to autograd.
        jacobian: the operator that multiplies by J; `auto` is `dense` in few dimensions, `vjp` in many.
    """

    def __init__(self, n_probes: int, probe: Probe, gradient: Gradient, memory: Memory, jacobian: JacobianMode) -> None:
        super().__init__(jacobian)
        self.n_probes, self.probe, self.gradient, self.memory = n_probes, probe, gradient, memory
        self._kept: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    @abc.abstractmethod
    def weights(self, powers: int) -> tuple[Tensor, Tensor]:
        """Weights w_k, k = 0 to `powers` - 1, of J^k in the series and in the Neumann gradient.

        Both are of shape (powers,), float64 on the host, for a sample that has all these powers (see `lengths`). The
        series has no term k = 0, so its weight for k = 0 is not used.
        """

    @abc.abstractmethod
    def lengths(self, orders: Tensor | None) -> Tensor | int:
        """How many powers of J each sample has, k = 0 among them: shape (batch,) or (1,), int64 on the host.

        A number where all have as many, whatever is drawn.
        """

    def draw_orders(self, batch: int) -> Tensor | None:
        """Draw N of a random cut, on the host: the number of terms steers Python, which must not wait for a device."""
        return None

    def draw_noise(self, x: Tensor) -> Noise:
        shape = (x.shape[0], self.n_probes, x.shape[1])
        if self.probe == "gaussian":
            probes = torch.randn(shape, dtype=x.dtype, device=x.device)
        else:
            probes = torch.randint(0, 2, shape, device=x.device).to(x.dtype) * 2 - 1
        return Noise(probes, self.draw_orders(x.shape[0]))

    def __call__(self, net: ResidualNet, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        if self.memory == "saving" and torch.is_grad_enabled() and not self.is_dense(x.shape[1]):
            return _BackwardInForward.apply(
                self, net, self.draw_noise(x) if noise is None else noise, x, *net.parameters()
            )
        return super().__call__(net, x, noise)

    def from_matrix(self, J: Tensor, noise: Noise | None = None) -> Tensor:
        if self.memory == "saving" and torch.is_grad_enabled():
            return _GradientInForward.apply(self, self.draw_noise(J[:, 0]) if noise is None else noise, J)
        return super().from_matrix(J, noise)

    def log_det(self, jacobian: Jacobian, noise: Noise) -> Tensor:
        if self.gradient == "series" or not torch.is_grad_enabled():
            return self._estimate(jacobian, noise)[0]
        with torch.no_grad():
            estimate, row = self._estimate(jacobian, noise)
        surrogate = (jacobian.vecmat(row.detach()) * noise.probes).sum((1, 2))  # only this product has a graph
        return surrogate + (estimate - surrogate).detach()  # the value of the estimate, the gradient of the surrogate

    def _estimate(self, jacobian: Jacobian, noise: Noise) -> tuple[Tensor, Tensor]:
        r"""The estimate, shape (batch,), and the row vectors of the Neumann gradient, shape (batch, n_probes, d).

        With :math:`y^T = \frac{1}{m} \sum_k (-1)^k w_k v^T J^k` for each probe v, a constant, the gradient of
        log det(I + J) is the mean of :math:`\sum_v y^T (dJ) v`.
        """
        v = noise.probes
        lengths = self.lengths(noise.orders)
        longest = lengths if isinstance(lengths, int) else int(lengths.max() if len(lengths) else 0)  # on the host
        most = max(2, longest)  # k = 1 is always computed, so that the estimate has a graph
        of_terms, of_powers = self._coefficients(most, v)
        if self.compiled and isinstance(jacobian, DenseJacobian) and v.device.type == "cpu":
            return series(jacobian.matrix(), v, lengths, of_terms, of_powers)
        of_terms, of_powers = of_terms[None, :most], of_powers[None, :most]
        if isinstance(lengths, Tensor):
            within = _carried(torch.arange(most, device="cpu") < lengths[:, None], v.device)
            of_terms, of_powers = (torch.where(within, of_each, 0.0) for of_each in (of_terms, of_powers))
        # Term by term, so that memory does not grow with their number.
        power, row, log_det = v, of_powers[:, :1, None] * v, v.new_zeros(len(v))
        for k in range(1, most):
            power = jacobian.vecmat(power)  # v^T J^k
            log_det = log_det + of_terms[:, k] * (power * v).sum((1, 2))
            row = torch.addcmul(row, of_powers[:, k, None, None], power)
        return log_det, row

    def _coefficients(self, powers: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of v^T J^k v in the estimate and of v^T J^k in the gradient, where `like` is.

        For k = 0 to `powers` - 1, or some more. Made once, and kept: a CUDA graph finds them where they were when it
        was captured.
        """
        settings = (value for name, value in vars(self).items() if name != "_kept")
        key = (1 << (powers - 1).bit_length(), like.dtype, like.device, *settings)
        if key not in self._kept:
            with torch.inference_mode(False):  # or no gradient could be taken of what they enter later
                in_series, in_gradient = self.weights(key[0])
                k = torch.arange(key[0], dtype=torch.float64, device="cpu")
                sign = 1 - 2 * (k % 2)
                of_terms = torch.where(k > 0, -sign * in_series / k.clamp(min=1), 0.0) / self.n_probes
                of_powers = sign * in_gradient / self.n_probes
                self._kept[key] = tuple(_carried(each.to(like.dtype), like.device) for each in (of_terms, of_powers))
        return self._kept[key]


def _carried(tensor: Tensor, device: torch.device) -> Tensor:
    """Carry what is on the host to `device`, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _BackwardInForward(torch.autograd.Function):
    """g and the log-det estimate, with the estimate's gradient computed in the forward pass in place of its graph.

    The stored parameter gradient is one sum over the batch, so it is right only where every sample's
    log-determinant has the same weight in the loss, as in a mean NLL. Other weights are refused.
    """

    @staticmethod
    def forward(
        ctx: Any, estimator: PowerSeries, net: ResidualNet, noise: Noise, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            g, log_det = LogDetEstimator.__call__(estimator, net, x, noise)
            found = gradients(log_det.sum(), (x, *parameters), (True, *ctx.needs_input_grad[4:]))
        ctx.net = net
        ctx.save_for_backward(x.detach(), *found, *parameters)  # these, so that a change in between is an error
        return g.detach(), log_det.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_g: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        _require_equal(grad_log_det)
        x, *saved = ctx.saved_tensors
        from_log_det = saved[: 1 + len(ctx.needs_input_grad[4:])]
        with torch.enable_grad():  # g again: cheaper than having kept its graph
            x = x.requires_grad_()
            needed = (True, *ctx.needs_input_grad[4:])
            from_g = gradients(ctx.net(x), (x, *ctx.net.parameters()), needed, grad_g)
        weight = grad_log_det[:1].sum()  # of each sample; there may be none
        both = [
            a if b is None else weight * b if a is None else torch.addcmul(a, weight, b)
            for a, b in zip(from_g, from_log_det, strict=True)
        ]
        return None, None, None, *both


class _GradientInForward(torch.autograd.Function):
    """The estimate where J is at hand: its gradient by J, d x d numbers a sample, is stored in place of its graph."""

    @staticmethod
    def forward(ctx: Any, estimator: PowerSeries, noise: Noise, J: Tensor) -> Tensor:
        if estimator.gradient == "series":
            with torch.enable_grad():
                J = J.detach().requires_grad_()
                log_det, _ = estimator._estimate(DenseJacobian(J), noise)
                by_J = torch.autograd.grad(log_det.sum(), J)[0]
        else:
            log_det, row = estimator._estimate(DenseJacobian(J), noise)
            by_J = torch.bmm(row.mT, noise.probes)  # of sum_v y^T J v
        ctx.save_for_backward(by_J)
        return log_det.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        _require_equal(grad_log_det)
        return None, None, ctx.saved_tensors[0] * grad_log_det[:1].sum()


def _require_equal(weights: Tensor) -> None:
    message = (
        "memory=saving needs the same weight for the log-determinant of every sample, as in a mean NLL; "
        "use memory=standard for any other loss"
    )
    equal = (weights == weights[:1]).all()
    if weights.device.type == "cpu":
        if not equal:
            raise RuntimeError(message)
    else:
        torch._assert_async(equal, message)  # raises when the device gets there: the host does not wait
