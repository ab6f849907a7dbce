"""Optimizers, each built from the flow whose parameters it moves."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from arguments import Range, checked

__all__ = ["adam"]


@checked
def adam(
    flow: nn.Module,
    lr: Annotated[float, Range(gt=0)],
    beta1: Annotated[float, Range(ge=0, lt=1)] = 0.9,
    beta2: Annotated[float, Range(ge=0, lt=1)] = 0.99,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015) on all parameters of `flow`, in one fused kernel where the device has it."""
    parameters = list(flow.parameters())
    fused = parameters[0].device.type in ("cpu", "cuda", "mps")
    return torch.optim.Adam(parameters, lr=lr, betas=(beta1, beta2), fused=fused)
