"""Batches that cover the target evenly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datasets.checkerboard import Checkerboard
from datasets.moons import Moons
from training.batches import hilbert_index, stratified


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_curve_visits_every_cell_each_next_to_the_one_before(bits: int) -> None:
    cells = torch.cartesian_prod(torch.arange(2**bits), torch.arange(2**bits)).float()
    index = hilbert_index(cells, bits)
    assert sorted(index.tolist()) == list(range(4**bits))
    steps = cells[index.argsort()].diff(dim=0).abs().sum(dim=1)
    assert (steps == 1).all()


def test_the_curve_has_room_for_the_finest_grid_and_for_points_on_a_line() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    assert sorted(hilbert_index(corners).tolist()) == hilbert_index(corners).tolist()  # from corner to corner
    assert int(hilbert_index(corners).max()) == 4**15 - 1
    line = torch.stack([torch.linspace(-3, 3, 50), torch.full((50,), 7.0)], dim=1)
    assert hilbert_index(line).diff().gt(0).all()


def dealt(batches: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = Moons().sample(batches * size, generator)
    return x, stratified(x, size, generator)


def test_every_point_is_dealt_once_and_by_the_generator_alone() -> None:
    x, batches = dealt(40, 32)
    assert batches.shape == (40, 32, 2)
    assert torch.equal(batches.flatten(0, 1).sort(dim=0).values, x.sort(dim=0).values)
    assert torch.equal(batches, dealt(40, 32)[1])
    assert not torch.equal(batches, dealt(40, 32, seed=1)[1])


def test_every_batch_has_one_point_of_each_stratum() -> None:
    x, batches = dealt(40, 32)
    rank = torch.empty(len(x), dtype=torch.long)
    rank[hilbert_index(x).argsort()] = torch.arange(len(x))
    of = {tuple(point): int(place) // 40 for point, place in zip(x.tolist(), rank, strict=True)}
    for batch in batches:
        assert sorted(of[tuple(point)] for point in batch.tolist()) == list(range(32))


def test_one_batch_is_all_points_and_batches_of_one_are_in_random_order() -> None:
    x = Moons().sample(100, torch.Generator().manual_seed(0))
    (whole,) = stratified(x, 100)
    assert torch.equal(whole.sort(dim=0).values, x.sort(dim=0).values)
    ones = stratified(x, 1, torch.Generator().manual_seed(0))[:, 0]
    assert hilbert_index(ones).float().diff().sign().unique().tolist() == [-1, 1]


def test_batch_means_are_unbiased_and_of_less_variance_than_independent_ones() -> None:
    """Of a function with half a period of a sine, of one sign, along each side of each square of the board."""
    draws, batches, size = 128, 64, 256
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(draws):  # of one batch of each: all of them together are the points they were dealt from
        x = Checkerboard().sample(batches * size, generator)
        both = x[:size], stratified(x, size, generator)[0]
        means.append([float(torch.sin(math.pi / 2 * points).prod(dim=-1).mean()) for points in both])
    independent, of_strata = torch.tensor(means).T
    print(f"standard deviation of a batch's mean: {of_strata.std():.2g}; of independent points {independent.std():.2g}")
    assert abs(float(of_strata.mean()) - (2 / math.pi) ** 2) < 4 * float(of_strata.std()) / draws**0.5
    assert of_strata.std() < independent.std() / 2
