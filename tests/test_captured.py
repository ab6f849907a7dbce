"""Steps captured as graphs are the steps that they were captured from.

CUDA's graphs repeat the operations of one step on the same memory, whatever Python would have done meanwhile. So does
what stands for them here, on any device: a number that changes from step to step, and is not in a tensor, shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datasets.moons import Moons
from flows import ResidualFlow, fixed_point
from flows.estimators import Exact, LogDetEstimator, RussianRoulette, Truncated, power_series
from flows.fixed_point import _solve_without_looking
from flows.idensenet import IDenseNet
from flows.implicit_flow import ImplicitFlow
from flows.residual_flow import FlowOfBlocks
from training.captured import CapturedLearner, CudaGraphs
from training.learner import Learner
from training.optimizers import adam, muon

HOST_READS = {torch.ops.aten._local_scalar_dense.default}


class Recorder(TorchDispatchMode):
    """Records every operation below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Callable[..., Any], tuple, dict, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert function not in HOST_READS, "the host waits for a number"
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch._C._AutoDispatchBelowAutograd():
            for function, args, kwargs, before in self.done:
                for old, new in zip(tree_leaves(before), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorded(CudaGraphs):
    """A graph of what a recorder saw. Recording does the work, so the first replay has nothing left to do."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def capture(self, work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        with Recorder() as recorder:
            result = work()
        replays = iter([lambda: None])
        return result, lambda: next(replays, recorder.replay)()


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at a number where that costs nothing goes the way that it goes elsewhere."""
    monkeypatch.setattr(
        power_series, "_require_equal", lambda weights: torch._assert_async((weights == weights[:1]).all())
    )
    monkeypatch.setattr(
        "flows.residual_block.solve_in_training", lambda net, L, z: torch.no_grad()(_solve_without_looking)(net, L, z)
    )
    monkeypatch.setattr(fixed_point, "TRAINING_TOLERANCE", 1e-12)


def losses_and_weights(learner: Learner, steps: int) -> list[Tensor]:
    torch.manual_seed(1)
    data = Moons().sample(64 * steps, torch.Generator().manual_seed(0)).double().view(steps, 64, 2)
    learner.initialize(data[0])
    learner.flow.train()
    seen = []
    for step, x in enumerate(data):
        if step == steps // 2:
            learner.power_iterations = 3  # as where a Lipschitz bound had to be repaired
        seen.append(learner.backward(x))
        seen.append(learner.update(1 - step / steps))
    return [*seen, *learner.flow.parameters(), *learner.average.parameters(), *learner.flow.buffers()]


ESTIMATORS = [Exact(), Exact("vjp"), Truncated(4), Truncated(4, gradient="neumann", memory="saving")]


@pytest.mark.parametrize(
    ("family", "optimizer"), [(ResidualFlow, adam), (ResidualFlow, muon), (IDenseNet, muon), (ImplicitFlow, muon)]
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_replayed_steps_are_the_steps(
    family: type[FlowOfBlocks], estimator: LogDetEstimator, optimizer: Callable[..., Any]
) -> None:
    found = []
    for kind, more in ((CapturedLearner, [Recorded()]), (Learner, [])):
        torch.manual_seed(0)
        flow = family(2, estimator, blocks=2, width=6, depth=2).double()
        assert flow.why_not_captured() is None
        learner = kind(flow, optimizer(flow, lr=1e-2), 1.0, 0.9, 1, *more)
        found.append(losses_and_weights(learner, 12))
    for captured, plain in zip(*found, strict=True):
        torch.testing.assert_close(captured, plain, rtol=1e-9, atol=1e-11)


def test_it_goes_on_from_a_checkpoint() -> None:
    def learner(seed: int) -> CapturedLearner:
        torch.manual_seed(seed)
        flow = ResidualFlow(2, Exact(), blocks=2, width=6).double()
        return CapturedLearner(flow, muon(flow, lr=1e-2), 1.0, 0.9, 1, Recorded())

    data = Moons().sample(20 * 64, torch.Generator().manual_seed(0)).double().view(20, 64, 2)
    first, second = learner(0), learner(1)
    first.initialize(data[0])
    first.flow.train()
    second.flow.train()
    for x in data[:8]:
        for each, rate in ((first, 0.5), (second, 0.9)):  # the second is one that has captured steps of its own
            each.backward(x)
            each.update(rate)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x in data[8:]:
        for each in (first, second):
            each.backward(x)
            each.update(0.3)
    for one, other in zip(first.average.parameters(), second.average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_step_whose_length_the_host_draws_is_no_graph() -> None:
    flow = ResidualFlow(2, RussianRoulette(), blocks=1, width=3)
    assert "RussianRoulette draws the number of terms on the host" in flow.why_not_captured()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("estimator", [Exact(), Truncated(4, gradient="neumann", memory="saving")])
@pytest.mark.parametrize("family", [ResidualFlow, IDenseNet, ImplicitFlow])
def test_graphs_on_cuda(family: type[FlowOfBlocks], estimator: LogDetEstimator) -> None:
    found = []
    for kind in (CapturedLearner, Learner):
        torch.manual_seed(0)
        flow = family(2, estimator, blocks=2, width=6, depth=2).cuda()
        learner = kind(flow, muon(flow, lr=1e-2), 1.0, 0.9, 1)
        data = Moons().sample(64 * 20, torch.Generator().manual_seed(0)).cuda().view(20, 64, 2)
        learner.initialize(data[0])
        learner.flow.train()
        torch.manual_seed(1)
        found.append([part for x in data for part in (learner.backward(x), learner.update(0.5))])
    for captured, plain in zip(*found, strict=True):
        torch.testing.assert_close(captured, plain, rtol=1e-3, atol=1e-4)
