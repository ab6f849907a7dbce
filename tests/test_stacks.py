"""Stacks of parameters: the same numbers and gradients as the modules' own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from flows import ResidualFlow
from flows.estimators import Exact
from flows.stacks import stack_parameters, stacked
from training.learner import Learner
from training.optimizer import Together
from training.optimizers import adam, muon


def flow_of_seed(seed: int) -> ResidualFlow:
    torch.manual_seed(seed)
    return ResidualFlow(2, Exact(), blocks=3, width=8, depth=3, activation="lipswish").train()


def test_a_stack_and_its_parts_are_one() -> None:
    flow = flow_of_seed(0)
    before = {name: parameter.clone() for name, parameter in flow.named_parameters()}
    stacks = stack_parameters(flow)
    assert sum(stack.numel() for stack in stacks) == sum(parameter.numel() for parameter in flow.parameters())
    assert {stack.ndim for stack in stacks} == {1, 3}
    for name, parameter in flow.named_parameters():
        assert torch.equal(parameter, before[name])
    with torch.no_grad():
        for stack in stacks:
            stack += 1
    for name, parameter in flow.named_parameters():
        assert torch.equal(parameter, before[name] + 1)


def test_gradients_are_those_of_the_modules() -> None:
    x = torch.randn(20, 2)
    alone, together = flow_of_seed(1), flow_of_seed(1)
    stacks = stack_parameters(together)
    for step in range(2):
        for flow in (alone, together):
            flow.log_prob(x).sum().backward()
        for (name, expected), found in zip(alone.named_parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=f"{name}, step {step}")
    assert all(bool(stack.grad.any()) for stack in stacks)


def test_stacking_again_changes_nothing() -> None:
    flow = flow_of_seed(2)
    assert [id(stack) for stack in stack_parameters(flow)] == [id(stack) for stack in stack_parameters(flow)]


def test_only_a_whole_stack_is_taken_without_a_copy() -> None:
    flow = flow_of_seed(3)
    stack_parameters(flow)
    biases = [net.layers[0].bias for net in flow._nets]
    for some in (biases, biases[:2], biases[1:], biases[::-1]):
        assert torch.equal(stacked(some), torch.stack(some))
    assert stacked(biases).data_ptr() == biases[0].data_ptr()
    assert stacked(biases[:2]).data_ptr() != biases[0].data_ptr()
    biases[1].data = biases[1] + 1  # elsewhere, between two that are where they were
    assert torch.equal(stacked(biases), torch.stack(biases))


def test_copies_and_other_dtypes_go_their_own_way() -> None:
    flow = flow_of_seed(4)
    stack_parameters(flow)
    for other in (copy.deepcopy(flow), copy.deepcopy(flow).double()):
        biases = [net.layers[0].bias for net in other._nets]
        before = flow._nets[0].layers[0].bias.clone()
        with torch.no_grad():
            biases[0] += 1
        assert torch.equal(stacked(biases), torch.stack(biases))
        assert torch.equal(flow._nets[0].layers[0].bias, before)


@pytest.mark.parametrize("optimizer", [adam, muon])
def test_what_is_frozen_stays_and_the_rest_learns(optimizer: Callable[..., Together]) -> None:
    x, flow = torch.randn(20, 2), flow_of_seed(5)
    frozen = [name for name, _ in flow.named_parameters() if name.endswith(("layers.1.weight", "shift"))]
    for name in frozen:
        flow.get_parameter(name).requires_grad_(False)
    learner = Learner(flow, optimizer(flow, lr=1e-2), 1.0, 0.9, 1)
    before = {name: parameter.clone() for name, parameter in flow.named_parameters()}
    learner.backward(x)
    learner.update(1.0)
    for name, parameter in flow.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_what_is_frozen_in_some_blocks_alone_is_refused() -> None:
    flow = flow_of_seed(5)
    flow.bijections[1].net.layers[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"bijections\.\*\.net\.layers\.0\.bias of some blocks is frozen"):
        stack_parameters(flow)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_optimizer_of_the_single_tensors_moves_them_all(compiled: bool) -> None:
    """Which sets their gradients to None."""
    x, flow = torch.randn(20, 2), flow_of_seed(6)
    if compiled and (reason := flow.compile_for(torch.device("cpu"))):
        pytest.skip(reason)
    stack_parameters(flow)
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    for _ in range(2):
        before = [parameter.clone() for parameter in flow.parameters()]
        optimizer.zero_grad()
        flow.log_prob(x).sum().backward()
        optimizer.step()
        for (name, parameter), old in zip(flow.named_parameters(), before, strict=True):
            assert not torch.equal(parameter, old), name


def test_an_optimizer_of_some_of_the_single_tensors_moves_those() -> None:
    """It sets their gradients alone to None."""
    x, flow = torch.randn(20, 2), flow_of_seed(7)
    stack_parameters(flow)
    first = [*flow.bijections[1].parameters()]
    others = [parameter for parameter in flow.parameters() if all(parameter is not one for one in first)]
    optimizer = torch.optim.SGD(others, lr=1e-3)
    for _ in range(2):
        before = [parameter.clone() for parameter in others]
        optimizer.zero_grad()
        flow.log_prob(x).sum().backward()
        once = [parameter.grad.clone() for parameter in others]
        flow.log_prob(x).sum().backward()
        for parameter, gradient in zip(others, once, strict=True):
            torch.testing.assert_close(parameter.grad, 2 * gradient)
        optimizer.step()
        assert not any(torch.equal(parameter, old) for parameter, old in zip(others, before, strict=True))


def test_what_is_set_free_in_a_frozen_stack_learns() -> None:
    flow = flow_of_seed(8).requires_grad_(False)
    stack_parameters(flow)
    weight = flow.bijections[3].net.layers[0].weight.requires_grad_(True)
    flow.log_prob(torch.randn(20, 2)).sum().backward()
    assert weight.grad.abs().max() > 0
