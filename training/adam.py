"""Adam: torch's, by its functional interface."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.adam import adam

from training.optimizer import Optimizer

__all__ = ["Adam"]


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), of parameters that are all on one device.

    Args:
        beta1, beta2: decay of the averages of the gradient and of its square.

    The others are those of :class:`~training.optimizer.Optimizer`.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, beta1: float, beta2: float) -> None:
        super().__init__(parameters, lr)
        self.beta1, self.beta2 = beta1, beta2

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }

    @torch.no_grad()
    def step(self) -> None:
        averages, squares, steps = ([kept[name] for kept in self.state] for name in ("exp_avg", "exp_avg_sq", "step"))
        adam(
            self.parameters,
            [parameter.grad for parameter in self.parameters],
            averages,
            squares,
            [],
            steps,
            fused=True,  # one kernel for all parameters
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=self.param_groups[0]["lr"],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
