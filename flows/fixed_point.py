"""The inverse of a residual block: a fixed point, solved to a guaranteed accuracy or not at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flows.estimators.exact import log_det_plus_identity
from flows.lipschitz import LipschitzMLP
from flows.precision import widened

__all__ = ["InverseError", "solve_fixed_point"]

# A Newton step costs d + 1 forward passes and saves tens of plain ones.
LARGEST_NEWTON_DIMENSION = 16


class InverseError(RuntimeError):
    """The inverse could not be computed to the accuracy asked for."""


@torch.no_grad()
def solve_fixed_point(net: LipschitzMLP, z: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    r"""Solve x + g(x) = z, and return x with log det(I + J(x)): shapes (batch, d) and (batch,), in float64.

    With :math:`r = z - x - g(x)` and Lip(g) <= L < 1, the distance to the solution is at most
    :math:`\|r\| / (1 - L)`. Each sample stops when that bound is below `tolerance` times max(1, |z|), so what is
    returned is guaranteed, however it was reached. It is reached by Newton steps :math:`x + (I + J)^{-1} r`. One
    that does not shrink the residual by the factor L is taken back for the step of the fixed-point iteration
    (Behrmann et al. 2019, algorithm 1), :math:`x + r`, which always does: so the number of steps is bounded too.

    Raises:
        InverseError: L is not below one, `z` is not finite, or rounding keeps the bound above `tolerance`.
    """
    L = net.lipschitz()
    if not L < 1:
        raise InverseError(f"the residual's Lipschitz constant is {L:.6g}, so that the block has no certified inverse")
    z = widened(z)  # the rounding of r is divided by 1 - L as well
    g_of = net.normalize(z.dtype)
    if not torch.isfinite(z).all():
        raise InverseError("a point to invert is not finite")

    newton = z.shape[1] <= LARGEST_NEWTON_DIMENSION
    solution, log_det = torch.empty_like(z), torch.empty_like(z[:, 0])
    active = torch.arange(z.shape[0], device=z.device)
    x, fallback = z.clone(), z.clone()  # what is tried next, and the fixed-point step to go back to
    enough = tolerance * (1 - L) * torch.linalg.vector_norm(z, dim=1).clamp(min=1)
    limit = torch.full_like(enough, math.inf)
    steps, most_steps = 0, None
    while active.numel():
        g, J = g_of.forward_with_jacobian(x) if newton else (g_of(x), None)
        r = z[active] - x - g
        norm = torch.linalg.vector_norm(r, dim=1)
        if most_steps is None:  # at worst every second step is taken back
            longest_way = max(float((norm / enough).max()), 1.0)
            most_steps = 4 + 2 * math.ceil(math.log(longest_way) / -math.log(L)) if L > 0 else 4

        done = norm <= enough[active]
        if done.any():
            finished = active[done]
            solution[finished] = x[done]
            log_det[finished] = log_det_plus_identity(g_of.forward_with_jacobian(x[done])[1] if J is None else J[done])
        keep = ~done
        active, steps = active[keep], steps + 1
        if steps > most_steps and active.numel():
            raise InverseError(
                f"{active.numel()} of {z.shape[0]} points are not within {tolerance:g} of their inverse after {steps} "
                f"steps (largest bound {float(norm.max()) / (1 - L):.3g}): too close for the rounding of {z.dtype}"
            )
        x, r, norm, fallback, limit = x[keep], r[keep], norm[keep], fallback[keep], limit[keep]
        accepted = (norm <= limit).unsqueeze(1)
        step = torch.linalg.solve(J[keep] + torch.eye(z.shape[1], dtype=z.dtype, device=z.device), r) if newton else r
        x, fallback = torch.where(accepted, x + step, fallback), x + r
        # After a rejected step comes a fixed-point step, which shrinks the residual by L: no limit is needed.
        limit = torch.where(accepted.squeeze(1), L * norm, math.inf)
    return solution, log_det
