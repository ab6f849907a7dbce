"""One training step: the flow, its optimizer and its weight average, moved together."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from flows import Flow
from flows.lipschitz import LipschitzLinear
from flows.power_iteration import power_iterate
from flows.stacks import stack_parameters
from training.optimizer import Together

__all__ = ["POWER_ITERATIONS", "Learner"]

POWER_ITERATIONS = 20  # after each step, unless told otherwise: fewer do not keep up with the first hundred steps


class Learner:
    """A flow in training, and the exponential moving average of its weights that is evaluated and kept.

    A step is `backward` then `update`, so that a loss that is not finite can be seen before it reaches the weights.
    Neither waits for the device.

    Args:
        flow: the flow, on its device.
        optimizer: of the flow's stacks of parameters; the learning rates it was built with are the schedule's peak.
        clip_norm: the gradient's norm is cut to this.
        ema_decay: share of the average kept at each step; 0 makes the average the flow itself.
        power_iterations: power iterations after each step, to keep the spectral norms converged.

    Raises:
        ValueError: the optimizer is of other tensors than the flow's, which was moved since.
    """

    def __init__(
        self, flow: Flow, optimizer: Together, clip_norm: float, ema_decay: float, power_iterations: int
    ) -> None:
        self.flow, self.optimizer = flow, optimizer
        self.clip_norm, self.ema_decay, self.power_iterations = clip_norm, ema_decay, power_iterations
        self.average = copy.deepcopy(flow).requires_grad_(False)
        self.steps = 0
        self._peak_rates = [group["lr"] for group in optimizer.param_groups]
        self._parameters = stack_parameters(flow)
        ours = {stack.untyped_storage().data_ptr() for stack in self._parameters}
        moved = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        if any(tensor.untyped_storage().data_ptr() not in ours for tensor in moved):
            raise ValueError("the optimizer is of other tensors than the flow's: build it after moving the flow")
        self._average_parameters = stack_parameters(self.average)
        self._layers = _lipschitz_layers(flow)

    def initialize(self, x: Tensor) -> None:
        """Set what depends on data, such as ActNorm, from a first batch `x`, shape (batch, d)."""
        self.flow.initialize(x)
        self.average.load_state_dict(self.flow.state_dict())

    def backward(self, x: Tensor) -> Tensor:
        """Compute the gradient of the NLL of `x`, shape (batch, d); return the NLL in nats, without graph."""
        with self.flow.threads():
            self.optimizer.zero_grad()
            loss = -self.flow.log_prob(x).mean()
            loss.backward()
            return loss.detach()

    def update(self, rate: float) -> Tensor:
        """Move the weights by the gradient, at `rate` times the optimizer's peak learning rates.

        Returns the gradient's norm before it was cut: not finite where any of it is not.
        """
        self.steps += 1
        # Warm-up: an average over the last tenth of the steps so far forgets the initial weights at once.
        decay = min(self.ema_decay, self.steps / (self.steps + 10))
        self._set_numbers([rate * peak for peak in self._peak_rates], 1 - decay)
        return self._move()

    def _set_numbers(self, rates: list[float], share: float) -> None:
        """Set all that the host gives a step: the learning rates, and the share of the average that is replaced."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._share = share

    def _move(self) -> Tensor:
        with self.flow.threads(), torch.no_grad():
            learning = [parameter for parameter in self._parameters if parameter.requires_grad]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in learning])
            # An infinite norm cuts finite gradients to 0 and leaves the others not finite, so that they can be named.
            size = norm.nan_to_num(nan=math.inf, posinf=math.inf)
            nn.utils.clip_grads_with_norm_(learning, self.clip_norm, size)
            self.optimizer.step()
            power_iterate(self._layers, self.power_iterations, self.flow.compiled)
            self._move_average()
            return norm

    def _move_average(self) -> None:
        torch._foreach_lerp_(self._average_parameters, self._parameters, self._share)

    def converge(self) -> None:
        """Make every spectral norm exact, of the flow and of the average, so that what is evaluated is certified.

        Buffers of the average, such as a running mean, become the flow's.

        Raises:
            ValueError: parameters were moved, frozen, or had their gradients set to None since the optimizer was built,
                so that it moves them no longer.
        """
        if any(now is not then for now, then in zip(stack_parameters(self.flow), self._parameters, strict=True)):
            raise ValueError(
                "the optimizer has lost the flow, which was moved, frozen or set free, or its gradients set to None"
            )
        for ours, theirs in zip(self.average.buffers(), self.flow.buffers(), strict=True):
            ours.copy_(theirs)
        for layer in [*self._layers, *_lipschitz_layers(self.average)]:
            layer.converge()

    def state_dict(self) -> dict[str, Any]:
        return {
            "flow": self.flow.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.flow.load_state_dict(state["flow"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def _lipschitz_layers(flow: nn.Module) -> list[LipschitzLinear]:
    return [module for module in flow.modules() if isinstance(module, LipschitzLinear)]
