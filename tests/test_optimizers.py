"""Muon against exact singular values and its formula, Adam against torch's own, and what both are as optimizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flows import ResidualFlow
from flows.estimators import Exact
from training.adam import Adam
from training.muon import Muon, orthogonalize
from training.optimizers import adam, muon

SHAPES = [(4, 48, 48), (3, 48, 2), (3, 2, 96), (1, 5, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalized_singular_values_are_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 100
    sigma = torch.linalg.svdvals(orthogonalize(matrices))
    # The smallest values of a square random matrix may not have risen yet: most have.
    assert float(sigma.max()) < 1.25
    assert float((sigma > 0.6).float().mean()) > 0.9


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("shape", [*SHAPES, (5, 130, 65), (2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_it_is_the_same(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.muon.WORK", 1)  # so that even these are shared by threads
    torch.set_num_threads(3)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=dtype) * 100
    for these in (matrices, matrices.mT, torch.zeros_like(matrices)):
        torch.testing.assert_close(
            orthogonalize(these, compiled=True), orthogonalize(these), rtol=0, atol=200 * torch.finfo(dtype).eps
        )


def test_orthogonalizing_keeps_the_singular_vectors() -> None:
    U, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    V, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))
    found = U.T @ orthogonalize((U @ torch.diag(torch.linspace(1, 2, 6)) @ V.T).unsqueeze(0))[0] @ V
    torch.testing.assert_close(found - torch.diag(found.diag()), torch.zeros(6, 6), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 8, 3)])
def test_a_step_is_that_of_the_formula(shape: tuple[int, int, int]) -> None:
    weight = torch.zeros(shape, requires_grad=True)
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    momentum = torch.zeros(shape)
    expected = torch.zeros(shape)
    for seed in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize(0.1 * gradient + 0.9 * momentum)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * 0.2 * 8**0.5 * update
    torch.testing.assert_close(weight.detach(), expected)


def test_adam_is_that_of_torch_and_goes_on_from_its_state() -> None:
    ours, theirs = (
        [torch.ones(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 2, 4), (5,))] for _ in range(2)
    )
    torchs = torch.optim.Adam(theirs, lr=0.1, betas=(0.8, 0.95), fused=True)
    adams = [Adam(ours, 0.1, 0.8, 0.95)]
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64)
        if seed == 3:  # as a checkpoint written with torch's
            adams.append(Adam(ours, 0.1, 0.8, 0.95))
            adams[-1].load_state_dict(torchs.state_dict())
        adams[-1].param_groups[0]["lr"] = torchs.param_groups[0]["lr"] = 0.1 / (1 + seed)
        adams[-1].step()
        torchs.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_state_of_other_parameters_is_refused() -> None:
    state = Adam([torch.ones(3, 2, 4)], 0.1, 0.9, 0.9).state_dict()
    with pytest.raises(ValueError, match="exp_avg of parameter 0 is of shape"):
        Adam([torch.ones(1, 2, 4)], 0.1, 0.9, 0.9).load_state_dict(state)
    with pytest.raises(KeyError):
        Adam([torch.ones(3, 2, 4), torch.ones(2)], 0.1, 0.9, 0.9).load_state_dict(state)
    with pytest.raises(KeyError):
        Muon([torch.ones(3, 2, 4)], 0.1, 0.9, 0.0).load_state_dict(state)


def test_settings_reach_the_optimizers() -> None:
    flow = ResidualFlow(2, Exact(), blocks=2, width=8)
    (alone,) = adam(flow, 0.1, beta1=0.2, beta2=0.3).optimizers
    assert (alone.param_groups[0]["lr"], alone.beta1, alone.beta2) == (0.1, 0.2, 0.3)
    matrices, others = muon(flow, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6).optimizers
    assert (matrices.param_groups[0]["lr"], matrices.momentum, matrices.weight_decay) == (0.1, 0.2, 0.3)
    assert (others.param_groups[0]["lr"], others.beta1, others.beta2) == (0.4, 0.5, 0.6)


def test_every_parameter_has_its_optimizer() -> None:
    flow = ResidualFlow(2, Exact(), blocks=2, width=8, activation="lipswish")
    for build in (adam, muon):
        groups = build(flow, lr=1e-2).param_groups
        moved = [parameter for group in groups for parameter in group["params"]]
        assert len(moved) == len({id(stack) for stack in moved})
        assert sum(stack.numel() for stack in moved) == sum(parameter.numel() for parameter in flow.parameters())
        with torch.no_grad():
            for stack in moved:
                stack.fill_(7)
        assert all(bool((parameter == 7).all()) for parameter in flow.parameters())


def test_state_goes_on_where_it_stopped() -> None:
    def train(flow: ResidualFlow, optimizer: object, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (-flow.log_prob(x).mean()).backward()
            optimizer.step()

    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(3))
    results = []
    for interrupted in (False, True):
        torch.manual_seed(4)
        flow = ResidualFlow(2, Exact(), blocks=2, width=8)
        optimizer = muon(flow, lr=1e-2)
        train(flow, optimizer, 3)
        if interrupted:
            state = optimizer.state_dict()
            optimizer = muon(flow, lr=1e-2)
            optimizer.load_state_dict(state)
        train(flow, optimizer, 3)
        results.append([parameter.detach().clone() for parameter in flow.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", [muon, adam])
def test_all_of_a_kind_may_be_frozen(kind: Callable) -> None:
    flow = ResidualFlow(2, Exact(), blocks=2, width=8)
    for name, parameter in flow.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    before = [parameter.clone() for parameter in flow.parameters()]
    optimizer = kind(flow, lr=1e-2)
    flow.train().log_prob(torch.randn(16, 2)).mean().backward()
    optimizer.step()
    for old, parameter in zip(before, flow.parameters(), strict=True):
        assert torch.equal(old, parameter) != parameter.requires_grad
