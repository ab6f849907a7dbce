"""The training loop."""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from arguments import Range, check_arguments, checked
from atomic import write_atomically
from datasets import Target
from flows import Flow
from flows.bijection import InverseError
from flows.precision import evaluation_device
from training.batches import stratified
from training.captured import CapturedLearner
from training.checkpoint import belonging_together, load_checkpoint, save_checkpoint
from training.density_grid import DensityGrid, save_density, save_target
from training.diagnosis import ContractionError, NonFiniteError, diagnose, first_not_finite
from training.evaluation import Evaluation, HeldOut, evaluate
from training.interruption import Interrupted, Interruption
from training.learner import POWER_ITERATIONS, Learner
from training.optimizer import Together
from training.run_folder import load_summary, resuming
from training.tensorboard import TensorBoard

if TYPE_CHECKING:
    from training.pictures import Pictures

__all__ = ["Trainer"]

# Steps between looks at the loss where the host would have to wait for it. Where it need not, as on a CPU, it looks at
# the loss of every step.
STEPS_BETWEEN_CHECKS = 50

# Steps between checks of the Lipschitz bound in training against exact singular values, which take about as long as
# half a step. If the bound is broken, spectral norms are made exact, and power iterations a step doubled from then on.
STEPS_BETWEEN_CERTIFICATES = 50
MOST_REPAIRS = 6

STEPS_AT_ONCE = 2000  # steps whose points are drawn, and dealt into batches that cover the target evenly, together
POINTS_AT_ONCE = 2**24  # drawn together at most: seconds of work, during which no signal is acted on
FEWEST_DEALT = 10  # batches dealt at least, even if fewer are used: one alone is all its points, no evener than chance

HELD_OUT_STREAM = 0  # training epochs use the streams 1, 2, ...
FEWEST_POINTS_TO_INITIALIZE = 1024


@dataclass
class Progress:
    """Where a run is. Times in seconds, summed over all its sittings."""

    epoch: int = 0  # epochs finished
    step_in_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    plot_seconds: float = 0.0
    loss_sum: float = 0.0  # over the epoch so far
    lipschitz: float | None = None  # largest constant of any block that steps of the epoch were seen to work with
    repairs: int = 0  # times that power iteration was found too slow, and doubled
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.csv


class Trainer:
    """Trains a flow by maximum likelihood on samples of a target, fresh ones of a density, and keeps a run folder.

    Args:
        flow: the flow, on its device.
        target: a density, or points of one's own.
        optimizer: of the flow's parameters.
        folder: the run folder.
        seed: of the training data and the held-out set.
        title: of the pictures.
        about: what `summary.json` says of the run beside its figures.
        epochs: an evaluation, a picture and a checkpoint follow each.
        steps_per_epoch: optimizer steps in an epoch.
        batch_size: points of the target in each step.
        stratified: whether each batch covers the target evenly, see `training.batches`, or is of independent points.
        max_seconds: end the run, as if its epochs were done, after this many seconds; None for no limit.
        schedule: of the learning rate: `cosine` falls to zero at the end of the run, `constant` does not.
        warmup: share of the run over which the learning rate rises from zero to its peak.
        clip_norm: the gradient's norm is cut to this.
        ema_decay: decay of the weight average that is evaluated, plotted and sampled; 0 for the last weights.
        power_iterations: power iterations after each step; doubled where they are seen not to hold the bound.
        held_out: points of the final evaluation, or fewer of one's own; the one after each epoch uses a tenth of them.
        cuda_graph: whether steps on CUDA are captured as graphs and replayed: see `training.captured`.
        plots: whether to draw.
        logger: what else writes down each epoch; None for nothing.
    """

    @checked
    def __init__(
        self,
        flow: Flow,
        target: Target,
        optimizer: Together,
        folder: Path,
        seed: int,
        title: str,
        about: dict[str, Any],
        epochs: Annotated[int, Range(ge=1)],
        steps_per_epoch: Annotated[int, Range(ge=1, le=10**9)],
        batch_size: Annotated[int, Range(ge=1, le=10**9)],
        stratified: bool = True,
        max_seconds: Annotated[float, Range(gt=0)] | None = None,
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup: Annotated[float, Range(ge=0, lt=1)] = 0.02,
        clip_norm: Annotated[float, Range(gt=0)] = 1.0,
        ema_decay: Annotated[float, Range(ge=0, lt=1)] = 0.99,
        power_iterations: Annotated[int, Range(ge=1)] = POWER_ITERATIONS,
        held_out: Annotated[int, Range(ge=100)] = 100_000,
        cuda_graph: bool = False,
        plots: bool = True,
        logger: TensorBoard | None = None,
    ) -> None:
        self.target, self.folder, self.seed, self.about, self.logger = target, folder, seed, about, logger
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.stratified = stratified
        self.max_seconds, self.schedule, self.warmup = max_seconds, schedule, warmup
        self.device = next(flow.parameters()).device
        self.power_iterations = power_iterations
        kind = CapturedLearner if cuda_graph else Learner
        self.learner = kind(flow, optimizer, clip_norm, ema_decay, power_iterations)
        self.evaluation_device = evaluation_device(self.device)
        self.held_out = HeldOut.draw(target, held_out, _generator(seed, HELD_OUT_STREAM), self.evaluation_device)
        self.progress = Progress()
        self._restored = False
        self.grid = DensityGrid(target, self.evaluation_device)
        self.plots, self.title = plots, title

    def restore(self) -> None:
        """Go back to the checkpoint in the folder: from there, `fit` goes on exactly as if training had never stopped.

        A run that was stopped before its first checkpoint begins again: it is the same run.

        Raises:
            ArgumentError: the folder's files are not of one run, or cannot be read.
        """
        if not any((self.folder / name).exists() for name in ("checkpoint.pt", "metrics.csv")):
            return
        state = load_checkpoint(self.folder, "resume")
        with belonging_together(self.folder, "resume"):
            self.learner.load_state_dict(state["learner"])
            if name := first_not_finite(self.learner.flow.named_parameters()):
                raise ValueError(f"{name} is not finite")
            check_arguments(Progress, {key: value for key, value in state["progress"].items() if key != "rows"})
            self.progress = Progress(**state["progress"])
            _set_random_state(self.device, state["random_state"])
            self.learner.power_iterations = self.power_iterations << self.progress.repairs
            # Files may be an epoch ahead of the checkpoint, if the run was killed between the two.
            if self.plots and self.pictures.gif_length:  # a GIF that was removed begins anew
                self.pictures.rewind(state["density_gif"])
            if self.progress.rows:
                self._write_metrics()
        self._restored = True

    @property
    def limit(self) -> str:
        """The setting that ends the run, or has ended it."""
        if self.progress.epoch >= self.epochs or self.max_seconds is None:
            return f"trainer.epochs={max(self.epochs, self.progress.epoch)}"
        return f"trainer.max_seconds={self.max_seconds:g}"

    def finished(self) -> Evaluation | None:
        """The evaluation of a restored run that has nothing left to do; None for any other.

        Raises:
            ArgumentError: summary.json is not of this run, or cannot be read.
        """
        path = self.folder / "summary.json"
        ended = self.progress.epoch >= self.epochs or self._out_of_time(self.progress.seconds)
        if not ended or not path.exists():
            return None
        with belonging_together(self.folder, "resume"):
            summary = load_summary(self.folder)
            if summary["steps"] != self.progress.step:
                return None
            figures = {known.name: summary[known.name] for known in fields(Evaluation)}
            check_arguments(Evaluation, figures)
            return Evaluation(**figures)

    def fit(self) -> Evaluation:
        """Train, from the start or from where `restore` went, and return the evaluation of the result.

        Raises:
            NonFiniteError: a number is not finite; the folder's checkpoint is the last good one.
            ContractionError: a Lipschitz bound cannot be held, or the forward pass of a step is not solved.
            InverseError: in an evaluation, a block is not inverted to its tolerance.
            OSError: a file of the folder cannot be written.
            Interrupted: a signal came; the folder's checkpoint is of the step that it met.
        """
        progress, total = self.progress, self.epochs * self.steps_per_epoch
        with Interruption() as interruption:
            save_target(self.folder, self.grid)
            if not self._restored:
                first = self.target.sample(max(self.batch_size, FEWEST_POINTS_TO_INITIALIZE), _generator(self.seed, 1))
                self.learner.initialize(first.to(self.device))
                self._save()
            self._use_all_once()
            self._started = time.perf_counter() - progress.seconds
            with tqdm(
                total=total, initial=progress.step, unit="step", disable=None, dynamic_ncols=True, leave=False
            ) as bar:
                while progress.epoch < self.epochs and not self._out_of_time(self._seconds()):
                    self._train_epoch(bar, interruption)
                    self._say(bar, self._end_epoch())
                    self._stop_if(interruption)
            if progress.step_in_epoch:  # resumed in the middle of an epoch, with the limit already reached
                self._end_epoch()
            if self._out_of_time(self._seconds()) and not self._out_of_time(progress.seconds):
                progress.seconds = self._seconds()  # the limit passed after the last save, and `finished` must know it
                self._save()
            evaluation = self._finish()
            self._stop_if(interruption)
        return evaluation

    def _say(self, bar: tqdm, evaluation: Evaluation) -> None:
        """Show the figures of the epoch that has ended, in a line that stays above the bar."""
        row = self.progress.rows[-1]
        nll = "" if evaluation.kl is None else f"   NLL {evaluation.nll:.4f}"
        bar.write(
            f"epoch {row['epoch']:>3}/{self.epochs}   loss {row['loss']:.3f}{nll}   "
            f"{evaluation.headline}   {row['seconds']:.0f} s"
        )

    def _use_all_once(self) -> None:
        """Take a gradient that is not used, so that what is made at first use is not counted as training."""
        before = _random_state(self.device)
        batch = self.target.sample(self.batch_size, _generator(self.seed, 1)).to(self.device)
        flow = self.learner.flow.train()
        with flow.threads():
            flow.log_prob(batch).mean().backward()
        self.learner.optimizer.zero_grad()
        _set_random_state(self.device, before)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _train_epoch(self, bar: tqdm, interruption: Interruption) -> None:
        """Take the steps that are left of the epoch; fewer, if time runs out or a signal comes."""
        progress, at_once = self.progress, self.device.type == "cpu" or self.learner.flow.waits_for_device
        every = 1 if at_once else STEPS_BETWEEN_CHECKS
        began, losses, norms = time.perf_counter(), [], []
        self.learner.flow.train()
        for batch in self._batches():
            try:
                losses.append(self.learner.backward(batch))
            except InverseError as error:  # of a flow whose forward pass is solved for
                where = f"the last good checkpoint is {self.folder / 'checkpoint.pt'}"
                raise ContractionError(
                    f"step {progress.step + 1}: {error}; a lower optimizer.lr may help; {where}"
                ) from error
            progress.step += 1
            progress.step_in_epoch += 1
            look = progress.step_in_epoch % every == 0 or progress.step_in_epoch == self.steps_per_epoch
            if look:
                self._take_losses(losses, batch)
            norms.append(self.learner.update(self._rate(progress.step)))
            if look:
                self._check_gradients(norms)
                norms.clear()
            if progress.step_in_epoch % STEPS_BETWEEN_CERTIFICATES == 0:
                self._hold_contraction()
            if bar.update() and self.max_seconds is not None:  # it was drawn; next time with what there is time for
                in_time = round(progress.step * max(1.0, self.max_seconds / self._seconds()))
                bar.total = min(self.epochs * self.steps_per_epoch, in_time)
            if interruption.number is not None or self._out_of_time(self._seconds()):
                break
        if losses:  # stopped between two looks
            self._take_losses(losses, batch)
        progress.train_seconds += time.perf_counter() - began
        progress.seconds = self._seconds()
        self._check_weights()
        if interruption.number is not None and progress.step_in_epoch < self.steps_per_epoch:
            self._save()
            self._stop_if(interruption)

    def _batches(self) -> Iterator[Tensor]:
        """The batches left in the epoch, from the seed and the epoch alone, so that a resumed epoch has the same ones.

        Points are drawn for `STEPS_AT_ONCE` steps at a time, or fewer if batches are large. The time that drawing takes
        is not counted as training.
        """
        done = self.progress.step_in_epoch
        at_once = min(STEPS_AT_ONCE, max(1, POINTS_AT_ONCE // self.batch_size))
        # No more of one's own points than are used, so that each comes once before any comes again.
        fewest = min(FEWEST_DEALT, at_once) if self.stratified and not self.target.in_own_units else 1
        for begin in range(0, self.steps_per_epoch, at_once):
            steps = min(at_once, self.steps_per_epoch - begin)
            if begin + steps <= done:
                continue
            began = time.perf_counter()
            generator = _generator(self.seed, self.progress.epoch + 1, *([begin] if begin else []))
            points = self.target.sample(max(steps, fewest) * self.batch_size, generator)
            if self.stratified:
                points = stratified(points, self.batch_size, generator)[:steps]
            data = points.view(steps, self.batch_size, -1).to(self.device)
            self.progress.train_seconds -= time.perf_counter() - began
            yield from data[max(done - begin, 0) :]

    def _end_epoch(self) -> Evaluation:
        """Evaluate, write the metrics, draw, and last of all save: a checkpoint vouches for the files before it."""
        progress = self.progress
        self._hold_contraction()
        evaluation = self._evaluate(self.held_out.part())
        progress.epoch += 1
        progress.seconds = self._seconds()
        figures = asdict(evaluation) | {"lipschitz_in_training": progress.lipschitz}
        figures["nll_stderr"] = figures.pop("nll_stderr")  # last: scripts may know columns by their place
        loss = progress.loss_sum / progress.step_in_epoch
        progress.rows.append(
            {"epoch": progress.epoch, "step": progress.step, "seconds": progress.seconds, "loss": loss, **figures}
        )
        self._write_metrics()
        self._draw(evaluation)
        if self.logger is not None:
            self.logger.write_epoch(self.folder, progress.rows[-1])
        progress.plot_seconds += self._seconds() - progress.seconds
        progress.step_in_epoch, progress.loss_sum, progress.lipschitz = 0, 0.0, None
        progress.seconds = self._seconds()
        self._save()
        return evaluation

    def _finish(self) -> Evaluation:
        """Evaluate on the whole held-out set, and write the summary."""
        evaluation = self._evaluate(self.held_out)
        seen = [row["lipschitz_in_training"] for row in self.progress.rows]
        summary = {
            **self.about,
            "parameters": sum(parameter.numel() for parameter in self.learner.flow.parameters()),
            "epochs": self.progress.epoch,
            "steps": self.progress.step,
            "seconds": self._seconds(),
            "train_seconds": self.progress.train_seconds,
            "plot_seconds": self.progress.plot_seconds,
            "entropy": self.held_out.entropy,
            **asdict(evaluation),
            "lipschitz_in_training": max((constant for constant in seen if constant is not None), default=None),
            "power_iterations": self.learner.power_iterations,
        }
        write_atomically(self.folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        return evaluation

    def _rate(self, step: int) -> float:
        """The learning rate of step number `step`, from 1, as a share of its peak."""
        total = self.epochs * self.steps_per_epoch
        by_time = 0.0 if self.max_seconds is None else min(self._seconds() / self.max_seconds, 1.0)
        done = max((step - 1) / total, by_time)
        rise = min(1.0, max(step / total, by_time) / max(self.warmup, 1 / total))
        return rise * (0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0)

    def _take_losses(self, losses: list[Tensor], batch: Tensor) -> None:
        """Look at them, add them to the epoch's sum and clear the list: those of a long epoch would fill the memory."""
        found = torch.stack(losses).tolist()
        if not all(map(math.isfinite, found)):
            self._stop_not_finite(f"the loss of {self._when(losses)}", diagnose(self.learner.flow, batch))
        for loss in found:  # one by one: the same sum wherever the epoch was stopped
            self.progress.loss_sum += loss
        losses.clear()

    def _check_gradients(self, norms: list[Tensor]) -> None:
        """A loss may be finite where its gradient is not."""
        if not torch.isfinite(torch.stack(norms)).all():
            named = ((name, parameter.grad) for name, parameter in self.learner.flow.named_parameters())
            name = first_not_finite(named)
            cause = f"that of {name}" if name else "its norm leaves the range of numbers"
            self._stop_not_finite(f"the gradient of {self._when(norms)}", cause)

    def _check_weights(self) -> None:
        named = [*self.learner.flow.named_parameters(), *self.learner.average.named_parameters()]
        if name := first_not_finite(named):
            cause = f"{name} left the range of numbers: a lower optimizer.lr may help"
            self._stop_not_finite(f"a weight after step {self.progress.step}", cause)

    def _when(self, looked_at: list[Tensor]) -> str:
        step = self.progress.step
        return f"step {step}" if len(looked_at) == 1 else f"one of the steps {step - len(looked_at) + 1} to {step}"

    def _stop_not_finite(self, what: str, cause: str) -> NoReturn:
        last = f"the last good checkpoint is {self.folder / 'checkpoint.pt'}, from which resume= would end here again"
        raise NonFiniteError(f"{what} is not finite: {cause}; {last}")

    def _hold_contraction(self) -> None:
        """See how far power iteration let the Lipschitz bound slip in training; where it broke, repair it."""
        progress, learner = self.progress, self.learner
        found = learner.flow.lipschitz()  # with the estimated spectral norms that a step divides by
        if found is None:
            return
        progress.lipschitz = max(progress.lipschitz or 0.0, found)
        if found < 1:
            return
        if progress.repairs == MOST_REPAIRS:
            raise ContractionError(
                f"a block's Lipschitz constant is {found:.4g} at step {progress.step}, and {learner.power_iterations} "
                f"power iterations a step do not hold it below 1: a lower optimizer.lr may; "
                f"the last good checkpoint is {self.folder / 'checkpoint.pt'}"
            )
        progress.repairs += 1
        learner.power_iterations = self.power_iterations << progress.repairs
        learner.converge()
        tqdm.write(
            f"step {progress.step}: a block's Lipschitz constant had slipped to {found:.4g} in training; its spectral "
            f"norms are exact again, and power iterations a step doubled to {learner.power_iterations}",
            file=sys.stderr,
        )

    def _evaluate(self, held_out: HeldOut) -> Evaluation:
        """Evaluate the averaged weights, certified: with exact spectral norms, and never without a bound below 1."""
        self.learner.converge()
        evaluation = evaluate(self._flow_to_evaluate(), held_out, self.seed)
        for name, figure in asdict(evaluation).items():
            if figure is not None and not math.isfinite(figure):
                self._stop_not_finite(f"{name} after step {self.progress.step}", "the flow leaves the range of numbers")
        return evaluation

    def _draw(self, evaluation: Evaluation) -> None:
        flow, progress = self._flow_to_evaluate(), self.progress
        learned = self.grid.density_of(flow)
        save_density(self.folder, progress.epoch, learned)
        if self.plots:
            self.pictures.draw(flow, learned, progress.epoch, evaluation, progress.seconds)

    @functools.cached_property
    def pictures(self) -> Pictures:
        """Made when first needed, like the import of matplotlib: a second sooner at the first step."""
        from training.pictures import Pictures

        return Pictures(self.folder, self.target, self.title, self.grid)

    def _flow_to_evaluate(self) -> Flow:
        """The flow with the averaged weights, in evaluation mode, on a device that has float64."""
        average = self.learner.average.eval()
        if self.evaluation_device == self.device:
            return average
        return copy.deepcopy(average).to(self.evaluation_device)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _out_of_time(self, seconds: float) -> bool:
        return self.max_seconds is not None and seconds >= self.max_seconds

    def _stop_if(self, interruption: Interruption) -> None:
        if interruption.number is not None:
            interruption.hand_on()
            raise Interrupted(
                interruption.number,
                f"stopped at step {self.progress.step}, saved in {self.folder}; "
                f"go on with: python train.py {resuming(self.folder)}",
            )

    def _write_metrics(self) -> None:
        table = io.StringIO()
        columns = dict.fromkeys(key for row in self.progress.rows for key in row)  # an earlier version may lack some
        writer = csv.DictWriter(table, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.progress.rows)
        write_atomically(self.folder / "metrics.csv", table.getvalue().encode())

    def _save(self) -> None:
        state = {
            "learner": self.learner.state_dict(),
            "progress": dict(vars(self.progress)),
            "random_state": _random_state(self.device),
            "density_gif": self.pictures.gif_length if self.plots and self.progress.epoch > 0 else 0,
        }
        save_checkpoint(self.folder / "checkpoint.pt", state)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """That of the host, and of `device` where it has one of its own."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Go back to what `_random_state` returned, maybe of a run on another device."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _generator(seed: int, *stream: int) -> torch.Generator:
    """A host generator for one stream of one seed, independent of all others."""
    state = int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator().manual_seed(state)
