"""Sweeps by Hydra's sweepers and launchers, every run of them checked before the first begins."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from arguments import ArgumentError, Count, Range, check_value
from training.captured import require_capturable
from training.configuration import build, build_flow, build_target, choose_device
from training.defaults import CONFIGS
from training.diagnosis import first_line
from training.overrides import compose, folder_to_resume, naming_experiment, parse, without_hydra
from training.sweep import Run, Sweep, belongs_to_sweep, combinations, finish

__all__ = ["LauncherError", "run_many"]

WHERE = ("hydra/launcher", "hydra.launcher")
"""Settings that say where a sweep runs, not what."""

OF_HYDRA = {
    **dict.fromkeys(("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs"), Count),
    "hydra.sweeper.direction": Literal["minimize"],
    "hydra.launcher.n_jobs": Count | Annotated[int, Range(le=-1)] | None,
    **dict.fromkeys(
        ("hydra.sweeper.max_batch_size", "hydra.launcher.timeout_min", "hydra.launcher.cpus_per_task"), Count | None
    ),
}
"""Types of launcher and sweeper settings, checked here because the plugins answer a wrong value with a traceback."""

LAUNCHERS = ("joblib", "multiprocessing", "submitit", "ray")
"""Packages whose errors concern the place where a sweep ran, such as a worker that was killed or took too long."""

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class LauncherError(RuntimeError):
    """The launcher that was to make the runs of a sweep gave up."""


def run_many(
    run: Run,
    check: Callable[[DictConfig], Any],
    config_name: str,
    arguments: argparse.Namespace,
) -> None:
    """Make a sweep by Hydra's sweeper and launcher, once every run is checked, or the rest of one begun before.

    Args:
        run: makes one run, of a configuration in a folder.
        check: a configuration; returns its settings at the top level.
        config_name: the command's own primary configuration.
        arguments: what was typed, as Hydra's parser has it.

    Raises:
        ArgumentError: names a setting of the first run that is refused, or of Hydra's.
        LauncherError: the launcher gave up.
        SystemExit: a run failed, or has no result, with status 1; a signal came.
    """
    resumed = folder_to_resume(arguments.overrides)
    if resumed is not None:
        sweep = Sweep.stored(resumed)
        overrides = [*sweep.overrides, *_only_where(arguments.overrides)]
    else:
        overrides = arguments.overrides
    typed = parse(overrides)
    for override in typed:
        if override.key_or_group.startswith("hydra.run."):
            accepts = "nothing with -m: a sweep's folder is hydra.sweep.dir"
            raise ArgumentError(override.key_or_group, accepts, repr(override.input_line))
    of_hydra = [item.input_line for item in typed if item.is_hydra_override()]
    of_task = [item.input_line for item in typed if not item.is_hydra_override()]

    config_name, extra_folder = arguments.config_name or config_name, arguments.config_dir
    # As Hydra does, from all that is not swept: an experiment may choose the launcher, settings may name the folder.
    of_all = [item.input_line for item in typed if item.is_hydra_override() or not item.is_sweep_override()]
    swept = {item.key_or_group for item in typed if item.is_sweep_override()}
    try:
        composed = compose(config_name, of_all, extra_folder)
    except ArgumentError as error:
        group = error.name.partition(".")[0]
        if group not in swept or not error.accepts.startswith("nothing with "):
            raise
        accepts = f"++{error.name}=... where {group} takes several values: the default one has no such setting"
        raise ArgumentError(error.name, accepts, error.got) from None
    hydra_config = composed.hydra
    _check_machinery(hydra_config)
    if resumed is None:  # what was begun has been checked
        files = _check_runs(check, config_name, extra_folder, hydra_config, of_hydra, of_task)
        kept = [item for item in typed if not item.is_hydra_override() or belongs_to_sweep(item.key_or_group)]
        sweep = _created(composed, [item.input_line for item in kept], files)
    sweep.is_submitted = "submitit" in hydra_config.launcher._target_
    sweep.is_here, sweep.is_search = _is_here(hydra_config), _is_search(hydra_config)
    options = (("--config-name", arguments.config_name), ("--config-dir", extra_folder))
    sweep.options = [text for option, given in options if given for text in (option, given)]
    sweep.where = [item.input_line for item in typed if item.key_or_group.startswith(WHERE)]

    def job(config: DictConfig) -> float | None:
        return sweep.run(config, run)

    _launch(sweep, job, config_name, overrides, hydra_config)
    sweep.report()


def _created(composed: DictConfig, overrides: list[str], files: dict[str, str]) -> Sweep:
    """A sweep in a folder of its own: of two begun within a second, in folders named by it, one waits for the next.

    Raises:
        ArgumentError: another sweep is there, or the folder cannot be written.
    """
    HydraConfig.instance().set_config(composed)  # what ${hydra:...} refers to
    while True:
        name = str(composed.hydra.sweep.dir)
        sweep = Sweep(Path(os.path.expanduser(name)), overrides)
        sweep.files = files
        try:
            sweep.create()
            return sweep
        except ArgumentError:
            if not sweep.exists():
                raise
            time.sleep(1)
            OmegaConf.clear_cache(composed)  # which holds the time
            if str(composed.hydra.sweep.dir) == name:
                raise


def _launch(
    sweep: Sweep,
    job: Callable[[DictConfig], float | None],
    config_name: str,
    overrides: list[str],
    hydra_config: DictConfig,
) -> None:
    """Let Hydra's sweeper and launcher make the runs.

    Raises:
        LauncherError: the launcher gave up.
    """
    # For processes that are not our children, such as a cluster's, to find the project's modules and its threads.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CONFIGS.parent), os.environ.get("PYTHONPATH")]))
    if cpus := hydra_config.launcher.get("cpus_per_task"):
        os.environ.setdefault("OMP_NUM_THREADS", str(cpus))
    folder = QuotedString(str(sweep.folder), Quote.single).with_quotes()
    sys.argv = [sys.argv[0], "--multirun", *sweep.options, *overrides, f"hydra.sweep.dir={folder}"]
    logging.raiseExceptions = False  # what Hydra says of each run may go to a reader who has left
    try:
        with sweep.stopped_by_signals():
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
    except Exception as error:
        if sweep.is_search and isinstance(error, ValueError) and sweep.all_failed():
            finish(sweep.folder)  # optuna found no best trial and raised, so Hydra did not call on_multirun_end
        elif type(error).__module__.partition(".")[0] in LAUNCHERS:
            raise LauncherError(f"the launcher gave up: {first_line(error)}; go on with: {sweep.command}") from error
        else:
            raise


def _is_here(hydra_config: DictConfig) -> bool:
    return hydra_config.launcher._target_ == BASIC_LAUNCHER


def _is_search(hydra_config: DictConfig) -> bool:
    return hydra_config.sweeper._target_ != BASIC_SWEEPER


def _check_runs(
    check: Callable[[DictConfig], Any],
    config_name: str,
    extra_folder: str | None,
    hydra_config: DictConfig,
    of_hydra: list[str],
    of_task: list[str],
) -> dict[str, str]:
    """Check the configuration of every run of a sweep, as that of a run alone is checked.

    Returns:
        The digests of their data files, by their paths.

    Raises:
        ArgumentError: names a setting of the first run that is refused.
    """
    here, search = _is_here(hydra_config), _is_search(hydra_config)
    given = [f"{key}={value}" for key, value in (hydra_config.sweeper.get("params") or {}).items()]
    search_path = create_config_search_path(str(CONFIGS))  # what flow=glob(*) is looked up in
    if extra_folder:
        search_path.append("command-line", f"file://{Path(extra_folder).resolve()}")
    swept = OverridesParser.create(ConfigLoaderImpl(search_path)).parse_overrides([*given, *of_task])
    for override in swept:
        if search and override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            accepts = "values one by one, with commas between them, in a search"
        elif getattr(override.value(), "shuffle", False):
            accepts = "values in an order that is the same when the sweep is resumed"
        else:
            continue
        raise ArgumentError(override.key_or_group, accepts, repr(override.input_line))
    targets, models, folders, files = set(), set(), {}, {}
    for number, combination in enumerate(
        tqdm(list(combinations(swept, search)), desc="checking", unit="run", delay=1, disable=None, leave=False)
    ):
        composed = compose(config_name, [*of_hydra, *combination], extra_folder)
        composed.hydra.job.id = composed.hydra.job.num = number  # as launchers do, for the folder's name
        HydraConfig.instance().set_config(composed)
        if not search:
            subdir = str(composed.hydra.sweep.subdir)
            if (first := folders.setdefault(subdir, number)) != number:
                got = f"{subdir!r} for runs {first} and {number}"
                raise ArgumentError("hydra.sweep.subdir", "a name of its own for each run", got)
        with naming_experiment(composed):
            config = without_hydra(composed)
            settings = check(config)
            device = choose_device(settings.device) if here else None  # a cluster's machines have devices of their own
            if (target := OmegaConf.to_yaml(config.data)) not in targets:
                if origin := build_target(config).origin:
                    files[origin["path"]] = origin["sha256"]
                targets.add(target)
            parts = OmegaConf.masked_copy(config, [key for key in ("flow", "estimator", "logger") if key in config])
            others = (config.trainer.get(name) for name in ("power_iterations", "cuda_graph"))
            if (model := (OmegaConf.to_yaml(parts), *others, config.data._target_, device)) not in models:
                flow = build_flow(config)
                if device is not None and config.trainer.get("cuda_graph"):
                    require_capturable(flow.to(device))
                if "logger" in config:
                    build(config.logger)()
                models.add(model)
    return files


def _only_where(overrides: list[str]) -> list[str]:
    """Those of `overrides` that say where the rest of a sweep runs; no others may come with resume=."""
    chosen = [override for override in parse(overrides) if override.key_or_group != "resume"]
    for override in chosen:
        if not override.key_or_group.startswith(WHERE):
            accepts = "no change with -m resume=: only hydra/launcher and its settings may"
            raise ArgumentError(override.key_or_group, accepts, repr(override.input_line))
    return [override.input_line for override in chosen]


def _check_machinery(hydra_config: DictConfig) -> None:
    """
    Raises:
        ArgumentError: the chosen launcher or sweeper is an extra that is not installed, or refuses a setting.
    """
    for kind in ("launcher", "sweeper"):
        module = hydra_config[kind]._target_.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except ImportError as error:
            accepts = "what is installed (pip install -r requirements-sweeps.txt; ray: 'hydra-ray-launcher<1.3')"
            got = f"{hydra_config.runtime.choices[f'hydra/{kind}']!r}: {error}"
            raise ArgumentError(f"hydra/{kind}", accepts, got) from error
    for key, hint in OF_HYDRA.items():
        _, kind, setting = key.split(".")
        if setting in hydra_config[kind]:
            check_value(key, hydra_config[kind][setting], hint)
