"""train.py as people use it: its contract, its settings, and that nothing is lost."""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import pickle
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from PIL import Image

from arguments import ArgumentError
from datasets.moons import Moons
from flows import Flow
from flows.estimators import Exact
from flows.precision import evaluation_device
from tests import kills
from tests.conftest import PROJECT, TINY, Result, composed, same_weights, start
from training import configuration
from training.configuration import build_flow, check_config, choose_device
from training.defaults import choices_in
from training.evaluation import Evaluation, evaluate
from training.learner import Learner
from training.run_folder import load_run, open_folder, resuming
from training.sweep import combinations
from training.trainer import Trainer

Run = Callable[..., Result]

COLUMNS = [
    "epoch", "step", "loss", "nll", "kl", "kl_stderr", "lipschitz", "inverse_error", "inverse_bound",
    "logdet_bias", "logdet_std", "lipschitz_in_training", "nll_stderr",
]  # fmt: skip
KEYS = [
    "flow", "data", "estimator", "seed", "device", "parameters", "steps", "train_seconds", "plot_seconds",
    "nll", "nll_stderr", "entropy", "kl", "kl_stderr", "lipschitz", "inverse_error",
]  # fmt: skip
NO_PLOTS = "trainer.plots=false"
FOLDER = tempfile.TemporaryDirectory()
FLOWS, ESTIMATORS = ("iresnet", "resflow", "idensenet", "implicit"), ("exact", "truncated", "russian_roulette")
DENSITIES = sorted({path.stem for path in (PROJECT / "configs" / "data").glob("*.yaml")} - {"points", "image"})


def test_a_start_waits_for_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    settings = (*TINY, NO_PLOTS, "trainer.steps_per_epoch=1")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), *settings],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "torch" in imported
    assert imported.isdisjoint({"torch._dynamo", "sympy", "scipy", "zuko"})


class TestRunFolder:
    def test_holds_what_the_contract_says(self, tmp_path: Path) -> None:
        process = start("train", "flow=resflow", "data=moons", "threads=1", *TINY, cwd=tmp_path)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        (folder,) = (tmp_path / "outputs" / "resflow-moons").iterdir()
        assert f"in outputs/resflow-moons/{folder.name}" in out
        result = Result(0, out, err, folder)
        assert [row["epoch"] for row in result.rows] == ["1", "2"]
        assert list(result.rows[0]) == COLUMNS
        assert (folder / "metrics.csv").read_text().startswith("epoch,step,seconds,")
        assert set(KEYS) <= set(result.summary)
        assert result.summary["kl"] == pytest.approx(result.summary["nll"] - result.summary["entropy"])
        assert (result.summary["flow"], result.summary["data"]) == ("resflow", "moons")
        assert sorted(path.name for path in (folder / "plots").iterdir()) == ["epoch_0001.png", "epoch_0002.png"]
        assert Image.open(folder / "density.gif").n_frames == 2
        assert Image.open(folder / "transport.gif").n_frames > 20
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [
                "checkpoint.pt",
                "config.yaml",
                "densities",
                "density.gif",
                "metrics.csv",
                "plots",
                "report.html",
                "summary.json",
                "transport.gif",
            ]
        )

    @pytest.mark.parametrize(
        ("flow", "estimator", "data"),
        [(*pair, data) for pair, data in zip(itertools.product(FLOWS, ESTIMATORS), itertools.cycle(DENSITIES))],
    )
    def test_every_combination_trains(self, run: Run, tmp_path: Path, flow: str, data: str, estimator: str) -> None:
        """On densities in turn, of which a flow and an estimator know nothing."""
        choices = (f"flow={flow}", f"data={data}", f"estimator={estimator}")
        result = run("train", *choices, *TINY, NO_PLOTS, folder=tmp_path / "run")
        assert result.status == 0, result.err
        assert result.summary["estimator"] == estimator
        assert result.summary["lipschitz"] < 1
        assert result.summary["inverse_error"] < 1e-4
        assert (float(result.rows[-1]["logdet_std"]) < 1e-12) == (estimator == "exact")

    def test_evaluation_may_be_on_another_device(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where the device of training has no float64; cpu:0 is the CPU by another name."""
        assert evaluation_device(torch.device("mps")) == torch.device("cpu")
        here = run("train", *TINY, folder=tmp_path / "here")
        evaluated = []

        def evaluate_and_note(flow: Flow, *arguments: object) -> Evaluation:
            evaluated.append(flow)
            return evaluate(flow, *arguments)

        monkeypatch.setattr("training.trainer.evaluate", evaluate_and_note)
        monkeypatch.setattr("training.trainer.evaluation_device", lambda device: torch.device("cpu:0"))
        there = run("train", *TINY, folder=tmp_path / "there")
        assert there.status == 0, there.err
        assert there.rows == here.rows
        assert len({id(flow) for flow in evaluated}) == len(evaluated) == 3  # each time a copy, carried there

    @pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs MPS")
    def test_apples_accelerator(self, run: Run, tmp_path: Path) -> None:
        result = run("train", *TINY, "device=mps", folder=tmp_path / "run")
        assert result.status == 0, result.err
        assert run("sample", f"run={tmp_path}/run", "n=50", "device=mps").status == 0

    @pytest.mark.parametrize(
        ("paper", "activation", "estimator"),
        [("iresnet", "elu", "exact"), ("resflow", "lipswish", "russian_roulette")],
    )
    def test_the_papers_own_recipes_run(
        self, run: Run, tmp_path: Path, paper: str, activation: str, estimator: str
    ) -> None:
        result = run("train", f"experiment=paper/{paper}", *TINY, NO_PLOTS, folder=tmp_path / "run")
        assert result.status == 0, result.err
        chosen = tuple(result.summary[group] for group in ("flow", "estimator", "optimizer"))
        assert chosen == (paper, estimator, "adam")
        assert f"activation: {activation}" in (tmp_path / "run" / "config.yaml").read_text()

    @pytest.mark.parametrize("recipe", sorted(path.stem for path in (PROJECT / "configs/experiment").glob("*.yaml")))
    def test_recipes_are_of_what_there_is(self, recipe: str) -> None:
        config = composed(f"experiment={recipe}")
        check_config(config)
        flow, (data, _, kind) = build_flow(config), recipe.rpartition("_")
        if kind in ("best", "fast"):
            assert flow.estimator.__class__ is Exact
            assert config.choices.data == data

    def test_a_recipe_runs(self, run: Run, tmp_path: Path) -> None:
        result = run("train", "experiment=checkerboard_best", *TINY, NO_PLOTS, folder=tmp_path / "run")
        assert result.status == 0, result.err
        assert (result.summary["flow"], result.summary["data"]) == ("implicit", "checkerboard")

    @pytest.mark.parametrize(("flow", "estimator"), [("iresnet", "truncated"), ("resflow", "russian_roulette")])
    def test_each_flow_brings_its_papers_estimator(self, run: Run, tmp_path: Path, flow: str, estimator: str) -> None:
        result = run("train", f"flow={flow}", *TINY, NO_PLOTS, folder=tmp_path / "run")
        assert result.summary["estimator"] == estimator


ROWS: dict[tuple[str, ...], list[dict[str, str]]] = {}  # of runs, by what was typed, which many compare themselves with


class TestSettings:
    """Each setting changes what it should: here, that it reaches training at all."""

    @pytest.fixture
    def base(self, run: Run, tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
        def rows(*overrides: str) -> list[dict[str, str]]:
            if overrides not in ROWS:
                folder = tmp_path / str(len(list(tmp_path.iterdir())))
                result = run("train", *TINY, NO_PLOTS, "trainer.epochs=1", *overrides, folder=folder)
                assert result.status == 0, result.err
                ROWS[overrides] = result.rows
            return ROWS[overrides]

        return rows

    @pytest.mark.parametrize(
        ("base_overrides", "override"),
        [
            ("", "flow.blocks=3"),
            ("", "flow.width=9"),
            ("", "flow.depth=1"),
            ("", "flow.coeff=0.5"),
            ("", "flow.actnorm=false"),
            ("", "flow.activation=elu"),
            ("", "data.noise=0.3"),
            ("", "optimizer.lr=1e-2"),
            ("", "optimizer.adam_lr=1e-3"),
            ("", "optimizer.momentum=0.5"),
            ("", "optimizer=adam"),
            ("", "optimizer.beta1=0.5"),
            ("", "optimizer.beta2=0.5"),
            ("", "seed=1"),
            ("", "trainer.batch_size=33"),
            ("", "trainer.stratified=false"),
            ("", "trainer.steps_per_epoch=6"),
            ("", "trainer.schedule=constant"),
            ("", "trainer.warmup=0.9"),
            ("", "trainer.clip_norm=1e-4"),
            ("", "trainer.ema_decay=0"),
            ("", "trainer.held_out=600"),
            ("optimizer.lr=0.5", "trainer.power_iterations=9"),
            ("estimator=truncated", "estimator.n_terms=2"),
            ("estimator=truncated", "estimator.n_probes=2"),
            ("estimator=truncated", "estimator.probe=rademacher"),
            ("estimator=truncated", "estimator.gradient=neumann"),
            ("", "estimator.n_exact_terms=5"),
            ("", "estimator.distribution=poisson"),
            ("estimator.n_exact_terms=2", "estimator.p=0.9"),
            ("estimator.distribution=poisson", "estimator.rate=9"),
            ("", "estimator.share=batch"),
            ("", "estimator.n_probes=2"),
            ("", "estimator.probe=gaussian"),
            ("", "estimator.gradient=series"),
        ],
    )
    def test_changes_the_figures(self, base: Callable, base_overrides: str, override: str) -> None:
        assert base(*base_overrides.split()) != base(*base_overrides.split(), override)

    @pytest.mark.parametrize("override", ["estimator.memory=standard", "estimator.jacobian=vjp"])
    def test_changes_the_way_but_not_the_figures(self, base: Callable, override: str) -> None:
        """How memory falls and which products are made is seen in the estimators' own tests."""
        for before, after in zip(base(), base(override), strict=True):
            for key in COLUMNS:
                assert float(before[key]) == pytest.approx(float(after[key]), rel=1e-3, abs=1e-5), key

    def test_max_seconds_ends_the_run(self, run: Run, tmp_path: Path) -> None:
        settings = ("trainer.epochs=1000", "trainer.steps_per_epoch=5000", "trainer.max_seconds=2")
        result = run("train", *TINY, NO_PLOTS, *settings, folder=tmp_path / "run")
        assert result.status == 0
        assert 2 <= result.summary["seconds"] < 10
        assert result.summary["steps"] < 100_000

    def test_max_seconds_bring_the_learning_rate_down(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if its epochs were done; by a clock of which every step takes a hundredth of a second."""
        monkeypatch.setattr(Trainer, "_seconds", lambda trainer: trainer.progress.step / 100)
        settings = ("trainer.epochs=1000", "trainer.steps_per_epoch=5000", "trainer.max_seconds=2")
        result = run("train", *TINY, NO_PLOTS, *settings, folder=tmp_path / "run")
        assert result.summary["steps"] == 200
        assert result.checkpoint["learner"]["optimizer"][0]["param_groups"][0]["lr"] < 1e-3 * 5e-2

    def test_plots_may_be_left_out(self, run: Run, tmp_path: Path) -> None:
        drawn = run("train", *TINY, folder=tmp_path / "drawn")
        plain = run("train", *TINY, NO_PLOTS, folder=tmp_path / "plain")
        assert not list((plain.folder / "plots").iterdir())
        assert not list(plain.folder.glob("*.gif"))
        assert drawn.rows == plain.rows
        assert same_weights(drawn, plain)

    def test_compiled_training_is_the_same_training(self, run: Run, tmp_path: Path) -> None:
        settings = (*TINY, NO_PLOTS, "trainer.epochs=1")
        written, compiled = (run("train", *settings, f"compile={on}", folder=tmp_path / on) for on in ("false", "true"))
        assert written.summary["compiled"] is False
        if "going on without" in compiled.err:
            pytest.skip(compiled.err)
        assert compiled.summary["compiled"] is True
        assert compiled.summary["kl"] == pytest.approx(written.summary["kl"], rel=1e-4)

    def test_without_a_compiler_training_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "/there/is/none")
        process = start("train", *TINY, NO_PLOTS, "trainer.epochs=1", "compile=true", cwd=tmp_path)
        _, err = process.communicate()
        assert process.returncode == 0
        assert err.startswith("compile=true: going on without, because nothing can be compiled here: there is no C")
        assert len(err.splitlines()) == 1

    def test_threads_are_set_and_recorded(self, run: Run, tmp_path: Path) -> None:
        result = run("train", *TINY, NO_PLOTS, "threads=2", folder=tmp_path / "run")
        assert result.summary["threads"] == 2
        assert torch.get_num_threads() == 1  # another run in this process has its own

    def test_a_resumed_run_has_the_threads_that_it_began_with(self, run: Run, tmp_path: Path) -> None:
        """Its launcher may have given it fewer than there are, and sums are made in parts, one for each thread."""
        torch.set_num_threads(2)
        begun = run("train", *TINY, NO_PLOTS, "trainer.epochs=1", folder=tmp_path / "run")
        torch.set_num_threads(1)
        for more, threads in (("trainer.epochs=2",), 2), (("trainer.epochs=3", "threads=1"), 1):
            assert run("train", f"resume={begun.folder}", *more).status == 0
            assert begun.summary["threads"] == threads


@functools.cache
def whole_run() -> Path:
    """The run that all killed ones are compared with, made once."""
    return kills.whole(Path(FOLDER.name))


class TestRepeatability:
    def test_same_seed_same_bits(self, run: Run, tmp_path: Path) -> None:
        a, b = (run("train", *TINY, "seed=3", folder=tmp_path / name) for name in "ab")
        assert a.rows == b.rows
        assert same_weights(a, b)
        for name in ("density.gif", "transport.gif"):
            assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes()

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_stopped_run_goes_on_as_if_it_never_had(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
    ) -> None:
        settings, update = (*TINY, "trainer.epochs=3", "threads=1"), Learner.update
        whole = run("train", *settings, folder=tmp_path / "whole")
        folder = tmp_path / "stopped"

        def update_and_signal(self: Learner, rate: float) -> torch.Tensor:
            norm = update(self, rate)
            if self.steps == 7:
                signal.raise_signal(number)
            return norm

        before = signal.signal(number, signal.default_int_handler)  # it may have been to be ignored
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", update_and_signal)
            stopped = run("train", *settings, folder=folder)
        signal.signal(number, before)
        assert stopped.status == status
        assert f"stopped at step 7, saved in {folder}; go on with: python train.py resume={folder}" in stopped.err
        assert not (folder / "summary.json").exists()
        for name in ("density.gif", "transport.gif"):
            Image.open(folder / name).load()

        resumed = run("train", f"resume={folder}")
        assert resumed.status == 0, resumed.err
        resumed = Result(0, "", "", folder)
        assert resumed.rows == whole.rows
        assert same_weights(resumed, whole)
        assert (folder / "density.gif").read_bytes() == (whole.folder / "density.gif").read_bytes()
        figures = ("kl", "nll", "kl_stderr", "lipschitz", "inverse_error", "steps", "config_sha256")
        assert {key: resumed.summary[key] for key in figures} == {key: whole.summary[key] for key in figures}

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("script", ["train", "sample"])
    def test_stopped_while_it_is_imported(self, tmp_path: Path, script: str, number: int, status: int) -> None:
        process = start(script, "run=nowhere" if script == "sample" else "data=moons", cwd=tmp_path)
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            while "libtorch" not in maps.read_text():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
        else:
            time.sleep(0.5)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (status, "")
        assert "Traceback" not in err

    # The first three are killed outright: early, in the first half, in the second. The slow ones are of every signal.
    @pytest.mark.parametrize("kill", [2, 8, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 4, 5, 6, 7))])
    def test_a_run_killed_at_a_random_moment_goes_on_as_if_it_never_had(self, kill: int, tmp_path: Path) -> None:
        kills.kill_and_resume(whole_run(), tmp_path / "killed", random.Random(kill))

    def test_a_run_stopped_before_its_first_checkpoint_begins_again(self, run: Run, tmp_path: Path) -> None:
        whole = run("train", *TINY, folder=tmp_path / "run")
        rows, weights = whole.rows, whole.checkpoint["learner"]["flow"]
        for path in tmp_path.glob("run/*.*"):
            if path.name != "config.yaml":
                path.unlink()
        again = run("train", f"resume={tmp_path}/run")
        assert again.status == 0, again.err
        again = Result(0, "", "", tmp_path / "run")
        assert again.rows == rows
        assert all(torch.equal(again.checkpoint["learner"]["flow"][key], weights[key]) for key in weights)

    def test_a_folder_in_use_is_refused(self, run: Run, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        run("train", *TINY, NO_PLOTS, "trainer.epochs=1", folder=folder)
        with open_folder(folder, resume=True):  # as if another process were at work there
            result = run("train", f"resume={folder}", "trainer.epochs=2")
        assert result.status == 2
        assert f"resume accepts a folder that no other process is training in; got '{folder}'" in result.err

    def test_runs_begun_within_a_second_have_a_folder_each(self, run: Run, tmp_path: Path) -> None:
        runs, now = tmp_path / "outputs" / "resflow-moons", datetime.now()
        taken = [runs / (now + timedelta(seconds=second)).strftime("%Y-%m-%d_%H-%M-%S") for second in range(2)]
        for folder in taken:
            folder.mkdir(parents=True)
        assert run("train", *TINY, "trainer.epochs=1").status == 0
        assert [len(list(folder.iterdir())) for folder in sorted(runs.iterdir())] == [0, 0, 9]

    def test_resume_trains_longer(self, run: Run, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        run("train", *TINY, folder=folder)
        early = (folder / "transport.gif").read_bytes()
        result = run("train", f"resume={folder}", "trainer.epochs=3")
        assert result.status == 0, result.err
        assert (folder / "transport.gif").read_bytes() != early
        result = Result(0, "", "", folder)
        assert [row["epoch"] for row in result.rows] == ["1", "2", "3"]
        assert result.summary["steps"] == 15
        assert Image.open(folder / "density.gif").n_frames == 3
        (folder / "density.gif").unlink()  # to save room
        assert run("train", f"resume={folder}", "trainer.epochs=4").status == 0
        assert Image.open(folder / "density.gif").n_frames == 1

    def test_what_is_trained_longer_has_no_summary_till_its_end(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = run("train", *TINY, folder=tmp_path / "run").folder
        monkeypatch.setattr(Trainer, "fit", lambda self: signal.raise_signal(signal.SIGTERM))
        assert run("train", f"resume={folder}", "trainer.epochs=7").status == 143
        assert not (folder / "summary.json").exists()
        assert not (folder / "report.html").exists()

    @pytest.mark.parametrize("stream", ["1", "2"])
    def test_a_stream_may_be_closed(self, tmp_path: Path, stream: str) -> None:
        command = [sys.executable, str(PROJECT / "train.py"), *TINY, NO_PLOTS, "threads=1", "hydra.run.dir=run"]
        done = subprocess.run(["sh", "-c", f'"$@" {stream}>&-', "sh", *command], cwd=tmp_path, timeout=100, check=False)
        assert done.returncode == 0
        assert (tmp_path / "run" / "summary.json").exists()

    def test_files_ahead_of_the_checkpoint_are_taken_back(self, run: Run, tmp_path: Path) -> None:
        """As after a kill between the drawing of an epoch and its checkpoint."""
        folder = tmp_path / "run"
        run("train", *TINY, "trainer.epochs=1", folder=folder)
        early = (folder / "checkpoint.pt").read_bytes()
        run("train", f"resume={folder}", "trainer.epochs=2")
        expected = (folder / "density.gif").read_bytes()
        (folder / "checkpoint.pt").write_bytes(early)
        run("train", f"resume={folder}", "trainer.epochs=2")
        assert (folder / "density.gif").read_bytes() == expected
        assert len(Result(0, "", "", folder).rows) == 2


class TestNonFinite:
    def test_stops_with_step_and_cause_and_keeps_the_checkpoint(self, run: Run, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        run("train", *TINY, NO_PLOTS, folder=folder)
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        state["learner"]["flow"]["bijections.1.net.layers.2.bias"].fill_(1e38)
        torch.save(state, folder / "checkpoint.pt")
        before = (folder / "checkpoint.pt").read_bytes()
        result = run("train", f"resume={folder}", "trainer.epochs=3")
        assert result.status == 1
        assert len(result.err.strip().splitlines()) == 1
        assert "the loss of step 11 is not finite" in result.err
        assert "bijections" in result.err
        assert "net.layers.2.bias" in result.err
        assert f"the last good checkpoint is {folder}/checkpoint.pt" in result.err
        assert (folder / "checkpoint.pt").read_bytes() == before


def test_held_out_points_and_every_epochs_are_drawn_apart(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, sample = [], Moons.sample
    monkeypatch.setattr(Moons, "sample", lambda self, n, g=None: seeds.append(g.initial_seed()) or sample(self, n, g))
    assert run("train", *TINY, NO_PLOTS, "trainer.epochs=3", folder=tmp_path / "run").status == 0
    held_out, *first, one, two, three = seeds  # first: to initialize by, and to use all once
    assert len(first) == 2
    assert len({held_out, one, two, three}) == 4
    assert held_out not in first


def test_a_run_folder_says_what_its_flow_is(run: Run, tmp_path: Path) -> None:
    result = run("train", *TINY, NO_PLOTS, "estimator=exact", folder=tmp_path / "run")
    x, y = (low + (high - low) * (np.arange(100) + 0.5) / 100 for low, high in Moons().window)
    grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
    with torch.no_grad():
        learned = load_run(result.folder).flow.log_prob(grid).exp().view(100, 100).numpy()
    kept = result.folder / "densities"
    np.testing.assert_allclose(np.load(kept / "epoch_0002.npy"), learned, rtol=1e-3, atol=1e-6)
    target = Moons().log_prob(grid).exp().view(100, 100).numpy()
    np.testing.assert_allclose(np.load(kept / "target.npz")["density"], target, rtol=1e-3, atol=1e-6)
    for row in result.rows:
        assert float(row["loss"]) == pytest.approx(float(row["nll"]), abs=1.0)
    assert result.summary["kl_stderr"] < float(result.rows[-1]["kl_stderr"]) / 2  # of ten times as many points


BAD = {
    "flow=resfow": (
        f"flow accepts {' | '.join(choices_in('flow'))}",
        "did you mean 'resflow'",
    ),
    "data=moon": ("checkerboard | circles | diamond", "did you mean 'moons'"),
    "estimator=null": (f"estimator accepts {' | '.join(choices_in('estimator'))}", "None"),
    "data=null --cfg=job": ("data accepts 2spirals | ", "None"),
    "logger=null": ("logger accepts tensorboard", "None"),
    "experiment=3": ("experiment accepts ", "got 3"),
    "data=4circles data.noise=1e200": ("data.noise accepts a number above 0 and at most 1e+06",),
    "data=pinwheel data.radial_noise=1e-9": ("data.radial_noise accepts at least",),
    "estimator.n_terms=5": (
        "estimator.n_terms accepts nothing with estimator=russian_roulette: it is of estimator=truncated",
    ),
    "flow=nice flow.blocks=5": ("flow.blocks accepts nothing with flow=nice: it is of flow=idensenet|implicit|",),
    "lr=1e-3": ("lr accepts nothing: there is no such setting", "did you mean 'optimizer.lr'"),
    "resflow": ("settings are name=value, without spaces; got 'resflow'",),
    "flow.blocks=0": ("flow.blocks accepts a whole number at least 1", "got 0"),
    "flow.blocks=2.5": ("flow.blocks accepts a whole number", "2.5"),
    "flow.coeff=1": ("flow.coeff accepts a number above 0 and below 1", "got 1"),
    "flow.activation=lipswitch": ("flow.activation accepts", "did you mean 'lipswish'"),
    "flow.actnorm=3": ("flow.actnorm accepts true or false", "3"),
    "flow.blokcs=3": ("flow.blokcs accepts nothing: there is no such setting", "did you mean 'flow.blocks'"),
    "estimator.p=1.5": ("estimator.p accepts a number above 0 and below 1", "1.5"),
    "estimator.share=samples": ("estimator.share accepts sample | batch", "did you mean 'sample'"),
    "estimator.n_terms=3": ("estimator.n_terms accepts nothing", "n_terms"),
    "data.noise=-1": ("data.noise accepts a number above 0", "-1"),
    "data.noise=nan": ("data.noise accepts a number", "nan"),
    "optimizer.lr=fast": ("optimizer.lr accepts a number", "'fast'"),
    "trainer.cuda_graph=true": ("trainer.cuda_graph accepts false here (only on CUDA are steps graphs)", "got true"),
    "trainer.max_seconds=0": ("trainer.max_seconds accepts a number above 0 or null", "0"),
    "seed=-1": ("seed accepts a whole number at least 0", "-1"),
    "seed=0,1": ("seed accepts one value, or several with -m", "seed=0,1"),
    "hydra.run.dir=a,b": ("hydra.run.dir accepts one value; got 'hydra.run.dir=a,b'",),
    "~seed": ("seed accepts a value, not its deletion", "~seed"),
    "device=cuda:99": ("device accepts auto or a device of this machine", "'cuda:99'"),
    "device=tpu": ("device accepts auto or a device of this machine", "'tpu'"),
    "+sed=1": ("sed accepts nothing", "1"),
    "+flow.heads=1": ("flow.heads accepts nothing", "1"),
    "+trainer.seed=7": ("trainer.seed accepts nothing: the settings here are epochs, ", "; got 7"),
    "+trainer.target=moons": ("trainer.target accepts nothing: the settings here are epochs, ",),
    "++optimzer.lr=1e-3": ("optimzer accepts nothing: there is no such group", "(did you mean 'optimizer'?)"),
    "+logger.foo=1": ("logger accepts what a file of configs holds, with its _target_",),
    "resume=nowhere": ("resume accepts a folder written by train.py", "'nowhere': there is no such folder"),
    "data=points data.path=a(1).csv": (
        """data.path accepts such a text in quotes alone: 'data.path="a(1).csv"'; got 'a(1).csv'""",
    ),
    "flow.depth=choise(1,2)": (
        "flow.depth accepts a call that Hydra knows, or a text in quotes; got 'choise(1,2)': Unknown function 'choise'",
    ),
    "seed=range(a,b)": ("seed accepts a call that Hydra knows", "got 'range(a,b)': mismatch type argument start"),
    "flow.blocks = 3": ("settings are name=value, without spaces; got 'flow.blocks = 3'",),
    "flow..blocks=3": ("flow..blocks accepts nothing: there is no such setting; got 'flow..blocks=3'",),
    "hydra/launcher=joblib": ("hydra/launcher accepts nothing outside a sweep, train.py -m",),
    "hydra.sweeper.n_trials=3 hydra/sweeper=optuna": ("hydra.sweeper.n_trials accepts nothing outside a sweep",),
    "hydra.job.chdir=false hydra.output_subdir=null hydra/job_logging=none flow.blocks=0": ("flow.blocks accepts",),
    "hydra.job.chdir=true": ("hydra.job.chdir accepts nothing outside a sweep",),
    "+hydra.job.env_set.X=1": ("hydra.job.env_set.X accepts nothing outside a sweep",),
    "hydra.output_subdir=.hydra": ("hydra.output_subdir accepts nothing outside a sweep",),
    "hydra.verbose=true": ("hydra.verbose accepts nothing outside a sweep",),
    "hydra.launcher=joblib": ("hydra.launcher accepts nothing: choose with hydra/launcher=...",),
    "hydra.sweeper=null": ("hydra.sweeper accepts nothing: choose with hydra/sweeper=...",),
    "hydra/job_logging=null": ("hydra/job_logging accepts the name of a file of configs; got None",),
    "--shell-completion": ("Expecting one subcommand",),
    "install=tcsh --shell-completion": ("No completion plugin for 'tcsh' found",),
    "--info --resolve": ("--resolve and --package go with --cfg",),
    "--package=flow": ("--resolve and --package go with --cfg",),
    "resume=nowhere --cfg=job": ("resume accepts nothing with --cfg", "'nowhere/config.yaml'"),
    "experiment=paper/resflow flow.blokcs=3": ("flow.blokcs accepts nothing", "did you mean 'flow.blocks'"),
    "experiment=paper/resflow estimator=exact": (
        "estimator.n_exact_terms accepts nothing",
        "; got 2, set by experiment=paper/resflow",
    ),
    "+flow.dimensions=3": ("flow.dimensions accepts nothing",),
    "flow=nfs --help": ("flow accepts ffjord | ", "got 'nfs' (did you mean 'nsf'?)"),
    "data._target_=os.system": ("data._target_ accepts a class or function of datasets", "'os.system'"),
    "data._target_=datasets.nowhere.Grid": ("data._target_ accepts", "No module named 'datasets.nowhere'"),
    "data._target_=datasets.target.torch.load": ("data._target_ accepts", "torch.load"),
    "seed=100000000000000000000": ("seed accepts a whole number below 2^63", "100000000000000000000"),
    "threads=100000": ("threads accepts a whole number at least 1 and at most 4096 or null", "100000"),
    "optimizer.lr=1e300": ("optimizer.lr accepts a number above 0 and at most 1e+06", "1e+300"),
    "data.noise=1e300": ("data.noise accepts a number above 0 and at most 1e+06", "1e+300"),
    "data.noise=1e-8": ("data.noise accepts at least 2.4e-07, below which points in float32 show nothing", "1e-08"),
    "choices.flow=mine": ("choices.flow accepts nothing: choose with flow=...", "choices.flow=mine"),
    "hydra={a: 1}": ("hydra accepts nothing", "{a: 1}"),
    "+data._partial_=true": ("data._partial_ accepts nothing", "True"),
    "+flow._recursive_=false": ("flow._recursive_ accepts nothing", "False"),
    "+estimator._args_=[1]": ("estimator._args_ accepts nothing", "[1]"),
    "+data.more={_target_: os.system}": ("data.more accepts nothing", "more"),
    "flow.estimator=[{_target_: os.system}]": ("flow.estimator accepts what a file of configs holds", "os.system"),
    "flow.estimator=3": ("flow.estimator accepts what a file of configs holds", "3"),
    "flow.estimator={_target_: os.system}": ("flow.estimator", "_target_"),
    "data.noise=[{_target_: os.system}]": ("data.noise accepts a number", "os.system"),
    "data._target_=flows.flow.Flow": ("data._target_ accepts a class or function of datasets", "flows.flow.Flow"),
    "data._target_=datasets.target.TargetDensity": ("data._target_ accepts", "TargetDensity"),
    "data._target_='${oc.env:HOME}'": ("data._target_ accepts a class or function of datasets", "got '/"),
    "optimizer._target_=training.checkpoint.save_checkpoint": ("optimizer._target_ accepts", "save_checkpoint"),
    "--flow=resflow": ("unrecognized arguments: --flow=resflow", "settings are name=value"),
    "hydra.run.dir=/proc/nowhere": ("hydra.run.dir accepts a folder that can be written", "/proc/nowhere"),
}


class TestBadInput:
    @pytest.mark.parametrize("override", BAD)
    def test_is_one_line_and_status_2_and_writes_nothing(self, run: Run, tmp_path: Path, override: str) -> None:
        result = run("train", *TINY, *re.split(r" (?=[\w./]+=|--)", override))
        assert result.status == 2
        (line,) = result.err.strip().splitlines()
        for words in BAD[override]:
            assert words in line
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "override",
        [
            "+hydra.callbacks.a._target_=os.mkdir", "+hydra.callbacks={a: {_target_: os.mkdir}}",
            "+hydra.launcher.a={_target_: os.mkdir}", "+hydra.sweeper.a._target_=os.mkdir",
            "+hydra.sweeper.a=${b}",
        ],
    )  # fmt: skip
    def test_a_sweep_builds_nothing_foreign(self, run: Run, tmp_path: Path, override: str) -> None:
        result = run("train", "-m", *TINY, "seed=0,1", override)
        assert result.status == 2
        (line,) = result.err.strip().splitlines()
        assert line.startswith("train.py: hydra.")
        assert not list(tmp_path.iterdir())

    def test_what_an_experiment_chooses_is_said_to_be_its(self, run: Run) -> None:
        result = run("train", "experiment=checkerboard_fast", "flow=nsf")
        got = "exact, set by experiment=checkerboard_fast"
        assert result.err == f"train.py: estimator accepts nothing: flow=nsf takes none; got {got}\n"
        assert result.status == 2

    def test_beside_configs_of_ones_own_the_mistake_is_named(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "own").mkdir()
        result = run("train", "--config-dir", "own", "flow=nsf", "flow.bins=8", "data.nois=0.2")
        assert result.status == 2
        assert result.err.startswith("train.py: data.nois accepts nothing: there is no such setting; got ")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("# @package _global_\noptimzer:\n  lr: 0.1\n", "optimzer accepts nothing: there is no such group"),
            ("optimizer:\n  lr: 0.1\n", "experiment accepts a file with the line '# @package _global_' at its top"),
        ],
    )
    def test_an_experiment_that_would_set_nothing_is_refused(
        self, run: Run, tmp_path: Path, text: str, words: str
    ) -> None:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
        result = run("train", "--config-dir", "own", "experiment=mine")
        assert result.status == 2
        assert result.err.startswith(f"train.py: {words}; got ")

    def test_an_experiment_may_hold_what_it_refers_to(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        text = "# @package _global_\nmy:\n  size: 0\nflow:\n  width: ${my.size}\n"
        (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
        result = run("train", "--config-dir", "own", "experiment=mine")
        assert (result.status, result.err) == (2, "train.py: flow.width accepts a whole number at least 1; got 0\n")

    @pytest.mark.parametrize(
        "typed",
        [('hydra.run.dir="~/a"',), ("-m", 'hydra.sweep.dir="~/a"'), ('resume="~/a"',), ("-m", 'resume="~/a"')],
        ids=" ".join,
    )
    def test_a_tilde_is_ones_home(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...]
    ) -> None:
        monkeypatch.setenv("HOME", "/proc/nowhere")
        result = run("train", *typed, "compile=false")
        assert result.status == 2
        assert "; got '/proc/nowhere/a'" in result.err
        assert not list(tmp_path.iterdir())

    # So much that the system refuses at once: a little less it may grant, and end the process later.
    @pytest.mark.parametrize(
        "setting",
        ["trainer.held_out=1000000000000000", "estimator.n_probes=10000000000000", "flow.width=10000000"],
    )
    def test_what_does_not_fit_in_memory_is_one_line(self, run: Run, tmp_path: Path, setting: str) -> None:
        result = run("train", *TINY, NO_PLOTS, setting, folder=tmp_path / "run")
        assert result.status == 1
        assert result.err == "train.py: stopped: these settings need more memory than there is\n"

    def test_two_runs_in_one_folder_are_refused(self, run: Run, tmp_path: Path) -> None:
        run("train", *TINY, NO_PLOTS, folder=tmp_path / "run")
        result = run("train", *TINY, NO_PLOTS, folder=tmp_path / "run")
        assert result.status == 2
        assert f"resume={tmp_path}/run" in result.err
        by_year = [run("train", *TINY, NO_PLOTS, "hydra.run.dir=${now:%Y}") for _ in range(2)]
        assert [result.status for result in by_year] == [0, 2]
        assert "hydra.run.dir accepts a folder without a run" in by_year[1].err


def test_help_is_a_page(tmp_path: Path) -> None:
    process = start("train", "--help", cwd=tmp_path)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    config = composed()
    # Every setting that has a default, with that default.
    for group in ("data", "flow", "estimator", "optimizer", "trainer"):
        for name, value in config[group].items():
            if not name.startswith("_") and not isinstance(value, DictConfig):
                assert f"{group}.{name}=" in out
    words = " ".join(out.split())
    flows, densities = (
        ", ".join([first, *sorted({*choices_in(group)} - {first})])
        for group, first in (("flow", "resflow"), ("data", "moons"))
    )
    for expected in (
        f"flow {flows};",
        f"data {densities};",
        "seed=0 of the weights",
        "paper/resflow",
    ):
        assert expected in words
    assert words.count("python train.py") >= 4
    assert "$" not in out


@pytest.mark.parametrize("group", configuration.HANDED_OVER)
def test_what_is_handed_over_is_all_that_no_config_sets(group: str) -> None:
    node = composed()[group]
    target = configuration._find_target(group, configuration.HOMES[group], node._target_)
    assert {*inspect.signature(target).parameters} - {*node} == {*configuration.HANDED_OVER[group]}


LINES = (PROJECT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python train.py")])
def test_the_readmes_commands_are_accepted(line: str) -> None:
    words = shlex.split(line, comments=True)
    typed = [word for word in words[2:] if "=" in word and not word.startswith(("resume=", "hydra"))]
    swept = OverridesParser.create().parse_overrides(typed)
    for combination in combinations(swept, search="hydra/sweeper=optuna" in words):
        check_config(composed(*combination))


def test_the_readmes_programs_run(run: Run, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "outputs" / "resflow-moons" / "2026-01-01_12-00-00"
    assert run("train", *TINY, NO_PLOTS, folder=folder).status == 0
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, object] = {}
        exec(block.replace("range(500)", "range(20)"), names)
    assert -0.01 < float(names["kl"]) < 3


@pytest.mark.parametrize("page", [("--help",), ("--cfg", "job")])
def test_a_reader_may_leave_a_page_early(tmp_path: Path, page: tuple[str, ...]) -> None:
    """As of `python train.py --help | head -5`."""
    process = start("train", *page, cwd=tmp_path)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_pages_that_do_not_go_together_are_named(run: Run) -> None:
    result = run("train", "-m", "--cfg", "job")
    assert (result.status, result.err) == (2, "train.py: --multirun and --cfg do not go together\n")


def test_help_texts_may_be_made_when_they_are_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 looks at each as it is added, as here, and Hydra has one that is no text yet."""
    add_argument = argparse._ActionsContainer.add_argument

    def add_and_check(parser: argparse.ArgumentParser, *names: str, **settings: object) -> argparse.Action:
        action = add_argument(parser, *names, **settings)
        if hasattr(parser, "_check_help"):
            parser._check_help(action)
        return action

    def check(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if action.help:
            parser._get_formatter()._expand_help(action)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", add_and_check)
    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check, raising=False)
    with pytest.raises(TypeError):
        get_args_parser()
    assert run("train", "--cfg", "job").status == 0
    assert run("train", "--help").status == 0


def test_a_gpu_that_torch_cannot_use_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ones(*_: object, device: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nMore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    configuration._has_code_for_cuda.cache_clear()
    try:
        assert choose_device("auto") == choose_device("auto") == torch.device("cpu")
    finally:
        configuration._has_code_for_cuda.cache_clear()
    assert capsys.readouterr().err == (
        "device=auto: going on without cuda, which torch cannot use: "
        "CUDA error: no kernel image is available for execution on the device\n"
    )
    with pytest.raises(
        ArgumentError, match="device accepts auto or a device that torch has code for; got 'cuda': CUDA"
    ):
        choose_device("cuda")


@pytest.mark.parametrize(
    "message",
    ["CUDA error: out of memory", "MPS backend out of memory (MPS allocated: 1 GB)", "CUBLAS_STATUS_ALLOC_FAILED when"],
)
def test_a_full_gpu_is_not_one_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def ones(*_: object, device: str) -> torch.Tensor:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(RuntimeError, match=message[:10]):
        choose_device("cuda")


@pytest.mark.parametrize("name", ["plain", "with a space", "Jörg's (first), a=b", "#1~"])
def test_what_is_said_to_go_on_with_can_be_typed(name: str) -> None:
    folder = Path("/tmp") / name
    (typed,) = shlex.split(resuming(folder))
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert (override.key_or_group, Path(str(override.value()))) == ("resume", folder)


def test_no_file_is_run_by_hydra(run: Run, tmp_path: Path) -> None:
    """Hydra's own way to repeat a run unpickles what it is given."""
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(None))
    result = run("train", "--experimental-rerun", str(tmp_path / "config.pickle"))
    assert (result.status, result.out) == (2, "")
    assert result.err == "train.py: --experimental-rerun would run what a file says; resume= goes on with a run\n"


def test_help_shows_the_settings_of_what_was_chosen(run: Run, tmp_path: Path) -> None:
    result = run("train", "estimator=truncated", "data=rings", "--help")
    assert result.status == 0
    assert "estimator.n_terms=20" in result.out
    assert "data.radii=" in result.out
    assert "Residual Flow (Chen et al. 2019): Russian roulette" in " ".join(result.out.split())
    assert "estimator.share" not in result.out
    of_iresnet = run("train", "flow=iresnet", "--help").out  # which brings an estimator of its own
    assert "of estimator=truncated:" in of_iresnet
    assert "russian_roulette:" not in of_iresnet
    of_nsf = run("train", "flow=nsf", "--help").out
    assert "of optimizer=adam:" in of_nsf
    assert "of estimator=" not in of_nsf
    of_two = run("train", "flow=nsf,iresnet", "flow.width=7", "--help").out
    assert of_two.count("flow.width=7") == 2
    of_recipe = run("train", "experiment=paper/resflow", "--help").out
    assert "of optimizer=adam:" in of_recipe
    assert "set by experiment=paper/resflow:" in of_recipe
    assert "  flow.activation=lipswish" in of_recipe.splitlines()
    assert "flow.activation=fourier" not in of_recipe
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_shell_completes_settings() -> None:
    """As bash would ask, by the function that `--shell-completion install=bash` defines."""
    script = f"""
        export PATH="{Path(sys.executable).parent}:$PATH"
        eval "$(python train.py --shell-completion install=bash)"
        COMP_LINE="python train.py flow=ires"; COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=($COMP_LINE); COMP_CWORD=2
        hydra_bash_completion; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "flow=iresnet", done.stderr
