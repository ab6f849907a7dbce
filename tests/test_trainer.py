"""The training loop: what it draws for an epoch, what it keeps of it, and what its bar shows."""

from __future__ import annotations

import math
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from datasets.checkerboard import Checkerboard
from flows.bijection import InverseError
from tests.conftest import TINY, Result
from training import trainer
from training.batches import stratified
from training.learner import Learner
from training.trainer import Progress, Trainer

Run = Callable[..., Result]

SHORT = (*TINY, "trainer.plots=false")


def batches(steps: int, size: int, epoch: int = 0, done: int = 0) -> list[Tensor]:
    """Those of an epoch on a checkerboard of which `done` steps are done."""
    run = SimpleNamespace(
        target=Checkerboard(), seed=0, device=torch.device("cpu"), stratified=True, batch_size=size,
        steps_per_epoch=steps, progress=Progress(epoch=epoch, step_in_epoch=done),
    )  # fmt: skip
    return list(Trainer._batches(run))


class TestBatches:
    @pytest.mark.parametrize("size", [64, 5000])
    def test_no_more_points_are_drawn_at_once_than_fit(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        """Or a run with large batches would need gigabytes, and not hear Ctrl-C for long."""
        drawn, sample = [], Checkerboard.sample
        monkeypatch.setattr(trainer, "POINTS_AT_ONCE", 1000)
        monkeypatch.setattr(Checkerboard, "sample", lambda self, n, g: drawn.append(n) or sample(self, n, g))
        whole = batches(40, size)
        assert max(drawn) == max(15 * 64, size)
        assert [batch.shape for batch in whole] == [(size, 2)] * 40
        for resumed, expected in zip(batches(40, size, done=20), whole[20:], strict=True):
            assert torch.equal(resumed, expected)

    def test_of_a_hundred_steps_all_that_is_dealt_is_used(self) -> None:
        generator = trainer._generator(0, 1)
        dealt = stratified(Checkerboard().sample(100 * 32, generator), 32, generator)
        assert torch.equal(torch.stack(batches(100, 32)), dealt)

    @pytest.mark.parametrize(("steps", "done"), [(1, 0), (151, 150)])
    def test_a_step_that_is_drawn_alone_is_even_too(
        self, monkeypatch: pytest.MonkeyPatch, steps: int, done: int
    ) -> None:
        """By the mean of what `tests.test_batches` takes it of, in an epoch of one step, or a last part of one."""
        monkeypatch.setattr(trainer, "STEPS_AT_ONCE", 150)
        epochs, mean, of_squares = 64, (2 / math.pi) ** 2, 1 / 4
        means = torch.tensor(
            [
                float(torch.sin(math.pi / 2 * batch).prod(dim=-1).mean())
                for epoch in range(epochs)
                for batch in batches(steps, 256, epoch, done)
            ]
        )
        independent = math.sqrt((of_squares - mean**2) / 256)
        print(f"standard deviation of a batch's mean: {means.std():.2g}; of independent points {independent:.2g}")
        assert len(means) == epochs
        assert abs(float(means.mean()) - mean) < 4 * float(means.std()) / epochs**0.5
        assert float(means.std()) < 0.7 * independent


def test_what_was_looked_at_is_not_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses and norms of an epoch of a million steps would be a gigabyte."""
    backward, update, losses, norms = Learner.backward, Learner.update, [], []

    def backward_and_note(self: Learner, x: Tensor) -> Tensor:
        assert all(norm() is None for norm in norms)
        loss = backward(self, x)
        losses.append(weakref.ref(loss))
        return loss

    def update_and_note(self: Learner, rate: float) -> Tensor:
        assert all(loss() is None for loss in losses)
        norm = update(self, rate)
        norms.append(weakref.ref(norm))
        return norm

    monkeypatch.setattr(Learner, "backward", backward_and_note)
    monkeypatch.setattr(Learner, "update", update_and_note)
    assert run("train", *SHORT, folder=tmp_path / "run").status == 0
    assert (len(losses), len(norms)) == (10, 10)


class Elsewhere(str):
    """A device by whose name the CPU is not known: one that computes while the host goes on."""

    type = "elsewhere"


class TestElsewhere:
    """Where a look at a loss would wait for the device, it is taken every so many steps."""

    @pytest.fixture(autouse=True)
    def _every_four_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        train_epoch = Trainer._train_epoch

        def train_elsewhere(self: Trainer, *arguments: object) -> None:
            self.device = Elsewhere("cpu")
            train_epoch(self, *arguments)

        monkeypatch.setattr(trainer, "STEPS_BETWEEN_CHECKS", 4)
        monkeypatch.setattr(Trainer, "_train_epoch", train_elsewhere)

    def test_the_mean_loss_is_the_same_wherever_it_stops(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        update, stop_at = Learner.update, []

        def update_and_stop(self: Learner, rate: float) -> Tensor:
            if self.steps + 1 in stop_at:
                signal.raise_signal(signal.SIGTERM)
            return update(self, rate)

        monkeypatch.setattr(Learner, "update", update_and_stop)
        folders = [tmp_path / name for name in ("looked_at_each", "every_four", "stopped")]
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "STEPS_BETWEEN_CHECKS", 1)
            assert run("train", *SHORT, "trainer.steps_per_epoch=11", folder=folders[0]).status == 0
        assert run("train", *SHORT, "trainer.steps_per_epoch=11", folder=folders[1]).status == 0
        stop_at += [6, 19]  # between two looks; at one
        assert run("train", *SHORT, "trainer.steps_per_epoch=11", folder=folders[2]).status == 143
        assert run("train", f"resume={folders[2]}").status == 143
        assert run("train", f"resume={folders[2]}").status == 0
        first, *others = (Result(0, "", "", folder).rows for folder in folders)
        assert others == [first, first]

    def test_one_that_is_not_finite_is_of_the_steps_since_the_last_look(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backward = Learner.backward
        monkeypatch.setattr(
            Learner, "backward", lambda self, x: backward(self, x) * (math.nan if self.steps == 9 else 1)
        )
        result = run("train", *SHORT, "trainer.steps_per_epoch=11", folder=tmp_path / "run")
        assert result.status == 1
        assert "the loss of one of the steps 9 to 11 is not finite" in result.err


def test_a_forward_pass_that_is_not_solved_ends_the_run_and_says_where(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = Learner.backward

    def fail(self: Learner, x: Tensor) -> Tensor:
        if self.steps == 7:
            raise InverseError("a block is not inverted: Lip(g) exceeds its bound")
        return backward(self, x)

    monkeypatch.setattr(Learner, "backward", fail)
    result = run("train", *SHORT, folder=tmp_path / "run")
    assert result.status == 1
    assert "step 8: a block is not inverted: Lip(g) exceeds its bound; a lower optimizer.lr may help" in result.err
    assert f"checkpoint is {tmp_path / 'run' / 'checkpoint.pt'}" in result.err


def test_the_bar_of_a_run_that_time_will_end_ends_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of which every step takes a hundredth of a second."""
    totals = []

    class Bar(trainer.tqdm):
        def update(self, n: float = 1) -> bool:
            totals.append(self.total)
            super().update(n)
            return True  # as if it had been drawn

    monkeypatch.setattr(trainer, "tqdm", Bar)
    monkeypatch.setattr(Trainer, "_seconds", lambda self: self.progress.step / 100)
    settings = ("trainer.epochs=1000", "trainer.steps_per_epoch=5000", "trainer.max_seconds=0.2")
    assert run("train", *SHORT, *settings, folder=tmp_path / "run").status == 0
    assert totals == [5_000_000, *[20] * 19]


def test_what_has_no_lipschitz_constant_has_none_in_training(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("zuko")
    settings = [setting for setting in SHORT if not setting.startswith("flow.")]
    result = run("train", "flow=nice", "flow.width=8", "flow.depth=1", *settings, folder=tmp_path / "run")
    assert result.status == 0, result.err
    assert {row["lipschitz_in_training"] for row in result.rows} == {row["lipschitz"] for row in result.rows} == {""}
    assert result.summary["lipschitz_in_training"] is result.summary["lipschitz"] is None
