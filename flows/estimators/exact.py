"""The log-determinant itself: the reference for every estimator, and in 2D the fastest of them."""

from __future__ import annotations

import torch
from torch import Tensor

from arguments import checked
from flows.estimators.estimator import JacobianMode, LogDetEstimator, Noise
from flows.estimators.jacobian import Jacobian

__all__ = ["Exact", "inverse_plus_identity", "log_det_plus_identity"]


class Exact(LogDetEstimator):
    """log det(I + J) without approximation: a closed form in 2D, an LU factorization beyond."""

    is_exact = True

    @checked
    def __init__(self, jacobian: JacobianMode = "auto") -> None:
        super().__init__(jacobian)

    def log_det(self, jacobian: Jacobian, noise: Noise | None) -> Tensor:
        return log_det_plus_identity(jacobian.matrix())


def log_det_plus_identity(J: Tensor) -> Tensor:
    """Return log det(I + J) for `J` of shape (batch, d, d) with a norm below one: shape (batch,).

    No absolute value is needed: the eigenvalues of I + J have positive real parts, so the determinant is positive.
    """
    if J.shape[-1] == 2:
        a, b, c, d = J.flatten(1).unbind(1)
        return torch.log1p(a + d + (a * d - b * c))  # det(I + J) = 1 + tr J + det J
    return torch.linalg.slogdet(J + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)).logabsdet


def inverse_plus_identity(J: Tensor) -> Tensor:
    """(I + J)^-1 of `J`, shape (batch, d, d), with a norm below one; not finite where rounding makes it singular."""
    if J.shape[-1] == 2:
        a, b, c, d = J.flatten(1).unbind(1)
        det = 1 + a + d + (a * d - b * c)
        return (torch.stack([1 + d, -b, -c, 1 + a], dim=1) / det.unsqueeze(1)).view_as(J)
    return torch.linalg.inv_ex(J + torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)).inverse
