"""The inverse of a residual block: a fixed point, solved to a guaranteed accuracy or not at all.

`solve_fixed_point` computes it without a gradient; `solve_in_training` and `with_implicit_gradient` serve flows whose
forward pass goes through an inverse, and which need the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flows.bijection import InverseError
from flows.differentiation import gradients, once_differentiable
from flows.estimators.exact import inverse_plus_identity
from flows.estimators.jacobian import VjpJacobian
from flows.lipschitz import LipschitzNet, NormalizedNet
from flows.precision import widened

__all__ = [
    "COARSE_RESIDUAL",
    "COARSE_STEPS",
    "LARGEST_NEWTON_DIMENSION",
    "solve_fixed_point",
    "solve_in_training",
    "with_implicit_gradient",
]

# A Newton step costs d + 1 forward passes and saves tens of plain ones.
LARGEST_NEWTON_DIMENSION = 16

COARSE_STEPS = 4
COARSE_RESIDUAL = 1e-5  # one step more, and what is left is rounding

TRAINING_TOLERANCE = 1e-4  # far below the noise of a gradient
# Newton steps where nobody looks at the residual, since the host would wait for the device: 20, or 0.7 / (1 - L) if
# that is more. The worst case known is Kepler's equation, x - L sin(x) = z: every other step overshoots and is taken
# back, and it needs 0.62 / (1 - L).
STEPS_WITHOUT_LOOKING, STEPS_BY_GAP = 20, 0.7


@torch.no_grad()
def solve_fixed_point(net: LipschitzNet, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""Solve x + g(x) = z; return x, shape (batch, d), and a bound on its error, shape (batch,), both float64.

    With :math:`r = z - x - g(x)` and Lip(g) <= L < 1, the distance to the solution is at most
    :math:`\|r\| / (1 - L)`. The returned bound is that limit over max(1, |z|), and each sample stops once its bound
    is below `tolerance`: so the accuracy of x is guaranteed, however x was reached. First come a Newton step and some
    steps of Broyden's method in float32, then steps :math:`x + (I + J)^{-1} r` in float64 with J in float32. A step
    that does not shrink the residual by the factor L is taken back for a step of the fixed-point iteration (Behrmann et
    al. 2019, algorithm 1), :math:`x + r`, which always does: so the number of steps is bounded too. Above
    `LARGEST_NEWTON_DIMENSION` dimensions, all steps are of that iteration. The actual error is mostly some digits below
    the bound.

    Raises:
        InverseError: L is not below one, `z` or g is not finite, or rounding keeps the bound above `tolerance`.
    """
    L = net.lipschitz()
    if not L < 1:
        raise InverseError(f"the residual's Lipschitz constant is {L:.6g}, so that the block has no certified inverse")
    z = widened(z)
    return _solve(net.normalize(z.dtype), L, z, tolerance)


def _solve(g_of: NormalizedNet, L: float, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """`solve_fixed_point` where Lip(g) is known to be L, of `z` that is widened."""
    coarse_g = g_of.to(torch.float32)
    size = torch.linalg.vector_norm(z, dim=1)
    if not torch.isfinite(size).all():
        raise InverseError("a point to invert is not finite")
    unit = (1 - L) * size.clamp(min=1)
    newton = z.shape[1] <= LARGEST_NEWTON_DIMENSION
    x, inverse_J = _coarse_solution(coarse_g, z) if newton else (z.clone(), None)
    residual = z - x - g_of(x)
    bounds = torch.linalg.vector_norm(residual, dim=1) / unit
    enough = tolerance / 2 if newton else tolerance  # the other half is for a last step
    active = _above(enough, bounds)
    fallback, limit = z.clone(), torch.full_like(unit, math.inf)  # the fixed-point step to go back to, and when
    steps, most_steps = 0, _most_steps(bounds[active], enough, L)
    while active.numel():
        if steps == most_steps:
            raise InverseError(
                f"{active.numel()} of {z.shape[0]} points are not within {tolerance:g} of their inverse after {steps} "
                f"steps (largest bound {float(bounds.max()):.3g}): too close for the rounding of {z.dtype}"
            )
        if newton and steps > 0:  # before that, what the coarse solution has left is as good
            inverse_J[active] = inverse_plus_identity(coarse_g.forward_with_jacobian(x[active].float())[1])
        here, r = x[active], residual[active]
        norm = torch.linalg.vector_norm(r, dim=1)
        accepted = norm <= limit[active]
        step = torch.linalg.vecdot(inverse_J[active].to(r.dtype), r.unsqueeze(1)) if newton else r
        here, fallback[active] = torch.where(accepted.unsqueeze(1), here + step, fallback[active]), here + r
        # After a rejected step comes a fixed-point step, which shrinks the residual by L: no limit is needed.
        limit[active] = torch.where(accepted, L * norm, math.inf)
        x[active], residual[active] = here, z[active] - here - g_of(here)
        bounds[active] = torch.linalg.vector_norm(residual[active], dim=1) / unit[active]
        active, steps = active[_above(enough, bounds[active])], steps + 1
    if not newton:
        return x, bounds
    # One more step, whose residual is not evaluated: the bound grows by the step's length, but x gets some digits
    # closer, which matters where many blocks are inverted one after another and their errors add up.
    step = torch.linalg.vecdot(inverse_J.to(x.dtype), residual.unsqueeze(1))
    with_step = bounds + (1 - L) * torch.linalg.vector_norm(step, dim=1) / unit
    allowed = with_step <= tolerance
    return torch.where(allowed.unsqueeze(1), x + step, x), torch.where(allowed, with_step, bounds)


def _most_steps(bounds: Tensor, enough: float, L: float) -> int:
    """A number of steps that is sure to bring `bounds`, shape (n,), down to `enough`.

    A step shrinks its bound by the factor L at least, or is taken back, as at worst every second one is.

    Raises:
        InverseError: a bound is not finite.
    """
    way = float(bounds.max()) / enough if bounds.numel() else 1.0
    if not math.isfinite(way):
        raise InverseError("the residual is not finite at a point to invert")
    return 4 + 2 * math.ceil(math.log(way) / -math.log(L)) if L > 0 else 4


def _above(limit: float, bounds: Tensor) -> Tensor:
    """Which of `bounds`, shape (n,), are above `limit` or not a number: their indices."""
    return torch.nonzero(~(bounds <= limit)).squeeze(1)


def _coarse_solution(g_of: NormalizedNet, z: Tensor) -> tuple[Tensor, Tensor]:
    """The solution as closely as float32 has it, in the dtype of `z`, and (I + J)^-1 there, roughly."""
    x, inverse_J = g_of.approach(z.float(), COARSE_STEPS, COARSE_RESIDUAL)
    x = x.to(z.dtype)
    return torch.where(torch.isfinite(x).all(dim=1, keepdim=True), x, z), inverse_J


@torch.no_grad()
def solve_in_training(g_of: NormalizedNet, L: float, z: Tensor) -> Tensor:
    """Solve x + g(x) = z, Lip(g) <= L, shape (batch, d), as closely as a training step needs; without graph.

    On the CPU it solves as :func:`solve_fixed_point` does. On other devices it takes a fixed number of steps, because
    the host would have to wait to learn which samples are solved; x is NaN for samples that these steps do not solve.

    Raises:
        InverseError: `z` is not finite, Lip(g) exceeds L, or rounding keeps the bound above the tolerance.
    """
    if z.device.type != "cpu":
        return _solve_without_looking(g_of, L, z)
    wide = widened(z)  # the rounding of r is divided by 1 - L as well
    return _solve(g_of.to(wide.dtype), L, wide, TRAINING_TOLERANCE)[0].to(z.dtype)


def _solve_without_looking(g_of: NormalizedNet, L: float, z: Tensor) -> Tensor:
    """Take the steps of `_solve`, equally many for all samples; return NaN for a sample that they do not solve.

    NaN reaches the loss, whose reader can handle it; a failed assertion would end all work on the device.
    """
    newton = z.shape[1] <= LARGEST_NEWTON_DIMENSION
    x, fallback, limit = z, z, torch.full_like(z[:, 0], math.inf)
    most_steps = max(STEPS_WITHOUT_LOOKING, math.ceil(STEPS_BY_GAP / (1 - L)))
    if not newton:  # from a first residual of up to a thousand
        most_steps = math.ceil(math.log(TRAINING_TOLERANCE / 1e3) / math.log(L))
    for _ in range(most_steps):
        g, J = g_of.forward_with_jacobian(x) if newton else (g_of(x), None)
        r = z - x - g
        norm = torch.linalg.vector_norm(r, dim=1)
        accepted = norm <= limit
        step = torch.linalg.vecdot(inverse_plus_identity(J), r.unsqueeze(1)) if newton else r
        x, fallback = torch.where(accepted.unsqueeze(1), x + step, fallback), x + r
        limit = torch.where(accepted, L * norm, math.inf)
    # The residual, not the bound that it gives: in float32 its rounding over 1 - L may exceed the tolerance.
    size = torch.linalg.vector_norm(z, dim=1).clamp(min=1)
    solved = torch.linalg.vector_norm(z - x - g_of(x), dim=1) <= TRAINING_TOLERANCE * size
    return torch.where(solved.unsqueeze(1), x, math.nan)


def with_implicit_gradient(g_of: NormalizedNet, L: float, x: Tensor, z: Tensor) -> Tensor:
    r"""The solution `x` of x + g(x) = z, (batch, d), as a function of z and of g's parameters, differentiable once.

    By the implicit function theorem :math:`dx = (I + J)^{-1} (dz - dg)`, J at x. So nothing of the way to x is kept.
    With many dimensions :math:`(I + J)^{-1}` is a Neumann series, whose remainder L bounds.
    """
    if not torch.is_grad_enabled():
        return x
    return _ImplicitGradient.apply(g_of, L, x, z, *g_of.parameters())


class _ImplicitGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g_of: NormalizedNet, L: float, x: Tensor, z: Tensor, *parameters: Tensor) -> Tensor:
        ctx.g_of, ctx.L = g_of, L
        ctx.save_for_backward(x, *parameters)  # these, so that a change in between is an error
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x = ctx.saved_tensors[0]
        if x.shape[1] <= LARGEST_NEWTON_DIMENSION:
            inverse = inverse_plus_identity(ctx.g_of.forward_with_jacobian(x)[1])
            by_z = torch.bmm(grad.unsqueeze(1), inverse).squeeze(1)
        else:
            by_z = _neumann(ctx.g_of, ctx.L, x, grad)
        with torch.enable_grad():
            by_parameters = gradients(ctx.g_of(x), ctx.g_of.parameters(), ctx.needs_input_grad[4:], -by_z)
        return None, None, None, by_z, *by_parameters


def _neumann(g_of: NormalizedNet, L: float, x: Tensor, w: Tensor) -> Tensor:
    r""":math:`w^T (I + J)^{-1} = \sum_k (-1)^k w^T J^k`, shapes (batch, d), to the rounding of its numbers."""
    jacobian, power, total = VjpJacobian(g_of, x), w.unsqueeze(1), w
    for _ in range(math.ceil(math.log(torch.finfo(w.dtype).eps * (1 - L)) / math.log(L))):
        power = -jacobian.vecmat(power)
        total = total + power.squeeze(1)
    return total
