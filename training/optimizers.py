"""Optimizers, each built from the flow whose parameters it moves."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from arguments import Range, checked
from flows import Flow
from flows.stacks import stack_parameters
from training.adam import Adam
from training.muon import Muon
from training.optimizer import Together

__all__ = ["adam", "muon"]

Rate = Annotated[float, Range(gt=0, le=1e6)]
Decay = Annotated[float, Range(ge=0, lt=1)]


@checked
def adam(flow: Flow, lr: Rate, beta1: Decay = 0.9, beta2: Decay = 0.99) -> Together:
    """Adam (Kingma and Ba 2015) on all parameters of `flow` that are not frozen.

    Raises:
        ValueError: a parameter is frozen in some blocks alone.
    """
    return Together(Adam(_learning(flow), lr, beta1, beta2))


@checked
def muon(
    flow: Flow,
    lr: Rate,
    momentum: Decay = 0.95,
    weight_decay: Annotated[float, Range(ge=0, le=1e6)] = 0.0,
    adam_lr: Rate = 4e-2,
    beta1: Decay = 0.95,
    beta2: Decay = 0.99,
) -> Together:
    """Muon on the weight matrices of `flow`; Adam on its biases, ActNorm and activations' parameters.

    Muon is compiled where the flow is. What is frozen stays.

    Raises:
        ValueError: a parameter is frozen in some blocks alone.
    """
    stacks = _learning(flow)
    matrices = [stack for stack in stacks if stack.ndim == 3]
    others = [stack for stack in stacks if stack.ndim != 3]
    return Together(Muon(matrices, lr, momentum, weight_decay, flow.compiled), Adam(others, adam_lr, beta1, beta2))


def _learning(flow: Flow) -> list[Tensor]:
    return [stack for stack in stack_parameters(flow) if stack.requires_grad]
