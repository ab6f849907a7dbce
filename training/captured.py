"""Training steps on CUDA, captured as graphs and replayed.

A training step in 2D is hundreds of operations, each of which a GPU finishes faster than the host can launch it.
A graph launches them all at once. It replays on the memory that it was captured with, so everything that changes from
step to step is kept in tensors here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from arguments import ArgumentError
from flows import Flow
from training.learner import Learner
from training.optimizer import Together

__all__ = ["CapturedLearner", "CudaGraphs", "require_capturable"]

WARM_UP = 3
"""Ordinary steps before the first capture: what is made only once must not become part of a graph."""

Work = Callable[[], Tensor]


class CudaGraphs:
    """CUDA's graphs, behind two methods that tests replace by recordings, which need no GPU."""

    def warm_up(self, work: Work) -> Tensor:
        """Do `work`, on a stream of its own as a capture will."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = work()
        current.wait_stream(stream)
        return result

    def capture(self, work: Work) -> tuple[Tensor, Callable[[], None]]:
        """Record `work` without doing it; return the tensor that will hold its result, and what to call to do it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.Stream()):  # of this device: torch's own is of the first used
            result = work()
        return result, graph.replay


class CapturedLearner(Learner):
    """A :class:`Learner` whose steps are graphs. Batches are all of one shape.

    Args:
        graphs: what they are captured by.

    The others are those of :class:`Learner`.
    """

    def __init__(
        self,
        flow: Flow,
        optimizer: Together,
        clip_norm: float,
        ema_decay: float,
        power_iterations: int,
        graphs: CudaGraphs | None = None,
    ) -> None:
        super().__init__(flow, optimizer, clip_norm, ema_decay, power_iterations)
        self._graphs = CudaGraphs() if graphs is None else graphs
        self._captured: dict[Hashable, tuple[Tensor, Callable[[], None]]] = {}
        self._taken = 0  # steps
        self._batch: Tensor | None = None
        self._rates = [_number(self._parameters[0]) for _ in self._peak_rates]
        self._share = _number(self._parameters[0])
        self._use_rates()

    def backward(self, x: Tensor) -> Tensor:
        if self._batch is None:
            self._batch = torch.empty_like(x)
        self._batch.copy_(x)
        return self._do("backward", lambda: super(CapturedLearner, self).backward(self._batch))

    def update(self, rate: float) -> Tensor:
        norm = super().update(rate)
        self._taken += 1
        return norm

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._captured.clear()  # an optimizer may have other tensors now
        self._taken = 0
        self._use_rates()

    def _use_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def _set_numbers(self, rates: list[float], share: float) -> None:
        for number, value in zip([*self._rates, self._share], [*rates, share], strict=True):
            number.fill_(value)

    def _move(self) -> Tensor:
        # The number of power iterations may change, which makes another graph.
        return self._do(self.power_iterations, super()._move)

    def _move_average(self) -> None:
        way = torch._foreach_sub(self._parameters, self._average_parameters)
        torch._foreach_mul_(way, self._share)
        torch._foreach_add_(self._average_parameters, way)

    def _do(self, name: Hashable, work: Work) -> Tensor:
        if self._taken < WARM_UP:
            return self._graphs.warm_up(work)
        if name not in self._captured:
            self._captured[name] = self._graphs.capture(work)
        result, replay = self._captured[name]
        replay()
        return result.clone()  # the next replay overwrites it


def require_capturable(flow: Flow) -> None:
    """Refuse `trainer.cuda_graph` where training steps of `flow`, on its device, cannot be captured.

    Raises:
        ArgumentError: they cannot; the message says why.
    """
    on_cuda = next(flow.parameters()).device.type == "cuda"
    if reason := flow.why_not_captured() if on_cuda else "only on CUDA are steps graphs":
        raise ArgumentError("trainer.cuda_graph", f"false here ({reason})", "true")


def _number(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype, device=like.device)
