"""What an optimizer of stacked parameters must offer, and several behind the interface of one."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Optimizer", "Together"]


class Optimizer(abc.ABC):
    """Moves parameters by their gradients, at one learning rate.

    It offers what the learner uses of `torch.optim.Optimizer`, so one of torch's optimizers serves as well. It is not
    derived from that class, whose first use imports torch's compiler: a quarter of the program's start-up time.

    Args:
        parameters: on their device.
        lr: learning rate, which may be set in `param_groups` from step to step, to a tensor too.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        self.parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [{"params": self.parameters, "lr": lr}]
        self.state = [self.initial_state(parameter) for parameter in self.parameters]

    @abc.abstractmethod
    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What is kept of a parameter from step to step, as it is before the first, by name."""

    @abc.abstractmethod
    def step(self) -> None:
        """Move every parameter."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept of each parameter; and the learning rate, for people to read: every step is given its own."""
        return {"state": dict(enumerate(self.state)), "param_groups": [{"lr": self.param_groups[0]["lr"]}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, of the same parameters.

        Raises:
            KeyError, ValueError: it is of others.
        """
        for number, kept in enumerate(self.state):
            for name, tensor in kept.items():
                saved = state["state"][number][name]
                if saved.shape != tensor.shape:
                    raise ValueError(f"{name} of parameter {number} is of shape {tuple(saved.shape)}")
                tensor.copy_(saved)


class Together:
    """One or more optimizers, each of stacked parameters of its own, behind the interface of one."""

    def __init__(self, *optimizers: Optimizer | torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Set the gradients to zero in place: see :func:`~flows.stacks.stack_parameters`."""
        torch._foreach_zero_([parameter.grad for group in self.param_groups for parameter in group["params"]])

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for optimizer, part in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(part)
