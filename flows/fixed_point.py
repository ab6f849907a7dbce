"""The inverse of a residual block: a fixed point, solved to a guaranteed accuracy or not at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flows.estimators.exact import inverse_plus_identity
from flows.lipschitz import LipschitzMLP, NormalizedMLP
from flows.precision import widened

__all__ = ["InverseError", "solve_fixed_point"]

# A Newton step costs d + 1 forward passes and saves tens of plain ones.
LARGEST_NEWTON_DIMENSION = 16


class InverseError(RuntimeError):
    """The inverse could not be computed to the accuracy asked for."""


@torch.no_grad()
def solve_fixed_point(net: LipschitzMLP, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""Solve x + g(x) = z; return x, shape (batch, d), and a bound on its error, shape (batch,), both float64.

    With :math:`r = z - x - g(x)` and Lip(g) <= L < 1, the distance to the solution is at most
    :math:`\|r\| / (1 - L)`. That, over max(1, |z|), is the bound that is returned, and each sample stops when it is
    below `tolerance`: what is returned is guaranteed, however it was reached. It is reached by two Newton steps
    in float32, and then by steps :math:`x + (I + J)^{-1} r` in float64 with J in float32. One that does not
    shrink the residual by the factor L is taken back for the step of the fixed-point iteration
    (Behrmann et al. 2019, algorithm 1), :math:`x + r`, which always does: so the number of steps is bounded too.

    Raises:
        InverseError: L is not below one, `z` is not finite, or rounding keeps the bound above `tolerance`.
    """
    L = net.lipschitz()
    if not L < 1:
        raise InverseError(f"the residual's Lipschitz constant is {L:.6g}, so that the block has no certified inverse")
    z = widened(z)  # the rounding of r is divided by 1 - L as well
    g_of, coarse_g = net.normalize(z.dtype), net.normalize(torch.float32)
    if not torch.isfinite(z).all():
        raise InverseError("a point to invert is not finite")

    newton = z.shape[1] <= LARGEST_NEWTON_DIMENSION
    x, inverse_J = _coarse_solution(coarse_g, z) if newton else (z, None)
    fallback = z  # the fixed-point step to go back to
    unit = (1 - L) * torch.linalg.vector_norm(z, dim=1).clamp(min=1)
    limit = torch.full_like(unit, math.inf)
    solution, bounds = torch.empty_like(z), torch.empty_like(unit)
    active = torch.arange(z.shape[0], device=z.device)
    steps, most_steps = 0, None
    while active.numel():
        r = z[active] - x - g_of(x)
        norm = torch.linalg.vector_norm(r, dim=1)
        bound = norm / unit[active]
        if most_steps is None:  # at worst every second step is taken back
            longest_way = max(float(bound.max()) / tolerance, 1.0)
            most_steps = 4 + 2 * math.ceil(math.log(longest_way) / -math.log(L)) if L > 0 else 4

        done = bound <= tolerance
        solution[active[done]], bounds[active[done]] = x[done], bound[done]
        keep = ~done
        active, steps = active[keep], steps + 1
        if not active.numel():
            break
        if steps > most_steps:
            raise InverseError(
                f"{active.numel()} of {z.shape[0]} points are not within {tolerance:g} of their inverse after {steps} "
                f"steps (largest bound {float(bound.max()):.3g}): too close for the rounding of {z.dtype}"
            )
        x, r, norm, fallback, limit = x[keep], r[keep], norm[keep], fallback[keep], limit[keep]
        if newton:  # J at the point before is as good for one step
            inverse_J = (
                inverse_J[keep] if steps == 1 else inverse_plus_identity(coarse_g.forward_with_jacobian(x.float())[1])
            )
        accepted = norm <= limit
        step = torch.bmm(inverse_J.to(r.dtype), r.unsqueeze(2)).squeeze(2) if newton else r
        x, fallback = torch.where(accepted.unsqueeze(1), x + step, fallback), x + r
        # After a rejected step comes a fixed-point step, which shrinks the residual by L: no limit is needed.
        limit = torch.where(accepted, L * norm, math.inf)
    return solution, bounds


def _coarse_solution(g_of: NormalizedMLP, z: Tensor) -> tuple[Tensor, Tensor]:
    """Two Newton steps from z in float32; return where they lead, in the dtype of `z`, and the last (I + J)^-1."""
    x, inverse_J = g_of.newton(z.float(), steps=2)
    x = x.to(z.dtype)
    return torch.where(torch.isfinite(x).all(dim=1, keepdim=True), x, z), inverse_J
