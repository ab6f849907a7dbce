"""A command of this project: Hydra's grammar, one plain line for a mistake, and the contract's exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from arguments import ArgumentError, Count, Range, check_arguments, check_choice, check_value, nearest
from training.captured import require_capturable
from training.configuration import build, build_flow, build_target, check_config, choose_device, load_config
from training.defaults import CONFIGS, choices_in
from training.diagnosis import OUT_OF_MEMORY, is_of_memory
from training.help import help_page
from training.interruption import SIGPIPE, Interrupted, exit_as_ever
from training.run_folder import STOPPED
from training.sweep import Sweep, belongs_to_sweep, combinations, values_of

__all__ = ["command"]

WHERE = ("hydra/launcher", "hydra.launcher")
"""Settings that say where a sweep runs, not what."""

OF_SWEEPS = (*WHERE, "hydra/sweeper", "hydra.sweep")
"""Settings that only a sweep heeds."""

OF_HYDRA = {
    **dict.fromkeys(("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs"), Count),
    "hydra.sweeper.direction": Literal["minimize"],
    "hydra.launcher.n_jobs": Count | Annotated[int, Range(le=-1)] | None,
    **dict.fromkeys(
        ("hydra.sweeper.max_batch_size", "hydra.launcher.timeout_min", "hydra.launcher.cpus_per_task"), Count | None
    ),
}
"""What settings of launchers and sweepers may be, where these would answer with a traceback."""

LAUNCHERS = ("joblib", "multiprocessing", "submitit", "ray")
"""Packages whose errors are of where a sweep ran: a worker that was killed, or took too long."""

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"

Task = Callable[[DictConfig, Any, Path], float | None]
"""What a command does: takes the configuration, its top-level settings as an object, and the run folder."""


def command(task: Task, settings: type, config_name: str, resumable: Iterable[str] = ()) -> None:
    """Run `task` as the command line says.

    Args:
        task: what the command does, see `Task`.
        settings: a dataclass of the settings at the top level.
        config_name: the primary configuration, in `configs`.
        resumable: settings that may change with `resume=`.

    Raises:
        SystemExit: with status 1 where a run stopped or failed, 2 for a mistake in what was typed, 128 + the signal
            where one came.
    """
    exit_as_ever()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, and Hydra prints nothing of its own
    # From Python 3.14 on help texts are checked as they are added: Hydra 1.3 has one that is made when it is shown.
    argparse.ArgumentParser._check_help = lambda *_: None
    parser = get_args_parser()
    parser.error = lambda message: _exit(2, f"{message}; settings are name=value, and options such as -m come first")
    arguments = parser.parse_args()
    for item in arguments.overrides:
        if "=" not in item and not item.startswith("~"):
            _exit(2, f"settings are name=value, without spaces; got {item!r}")
    _prefer_own_configs()
    try:
        _dispatch(task, settings, config_name, frozenset(resumable), arguments)
    except ArgumentError as error:
        _exit(2, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit(2, " ".join(line.strip() for line in str(error).splitlines() if line.strip()))
    except STOPPED as error:
        if isinstance(error.__cause__, BrokenPipeError):
            _leave_standard_output()
        _exit(1, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        _exit(1, f"stopped: {OUT_OF_MEMORY}")
    except BrokenPipeError:
        _leave_standard_output()
        _exit(1, "standard output was closed before all was said")
    except Interrupted as stop:
        if stop.number == SIGPIPE:
            _leave_standard_output()
        print(stop.message, file=sys.stderr)
        raise
    except KeyboardInterrupt:  # before training has begun, or the second one
        _exit(130, "stopped")


def _dispatch(
    task: Task, settings: type, config_name: str, resumable: frozenset[str], arguments: argparse.Namespace
) -> None:
    """Do what the command line asks for: say something, go on with a run, begin one, or make many."""
    if arguments.help:
        with _read_as_far_as_wanted():
            print(help_page(config_name, [] if arguments.config_dir else arguments.overrides))
        return
    if arguments.config_path is not None:
        _exit(2, "--config-path would leave the project's configs; --config-dir adds a folder to them")
    if arguments.config_dir is not None and not os.path.isdir(arguments.config_dir):
        _exit(2, f"--config-dir accepts a folder of configs; got {arguments.config_dir!r}")
    if arguments.experimental_rerun is not None:
        _exit(2, "--experimental-rerun would run what a file says; resume= goes on with a run")
    _refuse_what_nobody_sets(arguments.overrides)
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(given := [f"--{name.replace('_', '-')}" for name in exclusive if getattr(arguments, name)]) > 1:
        _exit(2, f"{' and '.join(given)} do not go together")
    asks_hydra = arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion
    if asks_hydra or (arguments.multirun and not resumable):
        with _read_as_far_as_wanted():
            _hand_to_hydra(task, settings, config_name)
    elif arguments.multirun:
        _run_many(task, settings, config_name, arguments)
    elif resumable and (folder := _folder_to_resume(arguments.overrides)) is not None:
        config, changes = _resumed(folder, arguments.overrides, resumable)
        _check(settings, config)
        for change in changes:
            print(f"resuming with {change}")
        _run(task, settings, config, folder)
    else:
        config = _compose(arguments.config_name or config_name, arguments.overrides, arguments.config_dir)
        if config.hydra.mode == RunMode.MULTIRUN:
            _run_many(task, settings, config_name, arguments)
        else:
            for override in _parse(arguments.overrides):
                if override.key_or_group.startswith(OF_SWEEPS):
                    raise ArgumentError(override.key_or_group, "nothing without -m", repr(override.input_line))
            _run_once(task, settings, config)


def _prefer_own_configs() -> None:
    """Let configs/hydra stand in place of what the extras register under the same names, not be merged into it."""
    Plugins.instance()  # imports the extras
    for path in (CONFIGS / "hydra").rglob("*.yaml"):
        group = ConfigStore.instance().repo
        for name in path.relative_to(CONFIGS).parent.parts:
            group = group.get(name, {})
        group.pop(path.name, None)


def _run_once(task: Task, settings: type, config: DictConfig) -> None:
    """Make one run in this process, without Hydra's launcher. One that is refused leaves nothing behind."""
    HydraConfig.instance().set_config(config)  # what ${hydra:...} refers to
    with _folder_of_its_own(config) as folder:
        _run(task, settings, _without_hydra(config), folder)


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


@contextlib.contextmanager
def _folder_of_its_own(config: DictConfig) -> Iterator[Path]:
    """The folder of a run; on leaving it is removed if nothing was written there.

    If its name holds the time it is made at once, so that of two runs begun within a second the later waits for the
    next.
    """
    folder = Path(str(config.hydra.run.dir))
    if "${now:" not in OmegaConf.to_container(config.hydra.run, resolve=False)["dir"]:
        yield folder
        return
    before, made = None, []
    while folder != before:  # as it is where it is named by the day, say: opening it tells whether it is free
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            time.sleep(1)
            OmegaConf.clear_cache(config)  # which holds the time
            folder, before = Path(str(config.hydra.run.dir)), folder
        except OSError:
            break  # opening it tells why
        else:
            made = missing
            break
    try:
        yield folder
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # where it is empty


def _run_many(task: Task, settings: type, config_name: str, arguments: argparse.Namespace) -> None:
    """A sweep, or the rest of one: by Hydra's sweeper and launcher, once every run of it has been checked."""
    resumed = _folder_to_resume(arguments.overrides)
    if resumed is not None:
        sweep = Sweep.stored(resumed)
        overrides = [*sweep.overrides, *_only_where(arguments.overrides)]
    else:
        overrides = arguments.overrides
    keys = {override.input_line: override.key_or_group for override in _parse(overrides)}
    of_hydra = [line for line, key in keys.items() if key.startswith(("hydra.", "hydra/"))]
    of_task = [line for line in keys if line not in of_hydra]

    config_name, extra_folder = arguments.config_name or config_name, arguments.config_dir
    hydra_config = _compose(config_name, of_hydra, extra_folder).hydra
    _check_machinery(hydra_config)
    if resumed is None:  # what was begun has been checked
        compose = functools.partial(_compose, config_name, extra_folder=extra_folder)
        _check_runs(settings, compose, hydra_config, of_hydra, of_task)
        kept = [line for line in overrides if line in of_task or belongs_to_sweep(keys[line])]
        sweep = Sweep(Path(hydra_config.sweep.dir), kept)
        sweep.create()
    sweep.is_submitted = "submitit" in hydra_config.launcher._target_
    options = (("--config-name", arguments.config_name), ("--config-dir", extra_folder))
    sweep.options = [text for option, given in options if given for text in (option, given)]

    def job(config: DictConfig) -> float | None:
        return sweep.run(config, functools.partial(_run, task, settings))

    _launch(sweep, job, config_name, overrides, hydra_config)
    sweep.report()


def _launch(
    sweep: Sweep,
    job: Callable[[DictConfig], float | None],
    config_name: str,
    overrides: list[str],
    hydra_config: DictConfig,
) -> None:
    """Let Hydra's sweeper and launcher make the runs.

    Raises:
        SystemExit: the launcher gave up, with status 1.
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
        if hydra_config.sweeper._target_ != BASIC_SWEEPER and isinstance(error, ValueError) and sweep.all_failed():
            sweep.finish()  # a search that has no best trial
        elif type(error).__module__.partition(".")[0] in LAUNCHERS:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            _exit(1, f"the launcher gave up: {reason}; go on with: {sweep.command}")
        else:
            raise


def _check_runs(
    settings: type,
    compose: Callable[..., DictConfig],
    hydra_config: DictConfig,
    of_hydra: list[str],
    of_task: list[str],
) -> None:
    """Check the configuration of every run of a sweep, as that of a run alone is checked.

    Raises:
        ArgumentError: names a setting of the first run that is refused.
    """
    here, search = hydra_config.launcher._target_ == BASIC_LAUNCHER, hydra_config.sweeper._target_ != BASIC_SWEEPER
    given = [f"{key}={value}" for key, value in (hydra_config.sweeper.get("params") or {}).items()]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # what flow=glob(*) is looked up in
        swept = OverridesParser.create(loader).parse_overrides([*given, *of_task])
    for override in swept:
        if override.is_interval_sweep() and not search:
            accepts = "values with commas between them; an interval with hydra/sweeper=optuna"
        elif search and override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            accepts = "values one by one, with commas between them, in a search"
        elif getattr(override.value(), "shuffle", False):
            accepts = "values in an order that is the same when the sweep is resumed"
        elif not _has_values(override):
            accepts = "one value or more"
        else:
            continue
        raise ArgumentError(override.key_or_group, accepts, repr(override.input_line))
    targets, models = set(), set()
    for combination in tqdm(
        list(combinations(swept, search)), desc="checking", unit="run", delay=1, disable=None, leave=False
    ):
        config = compose(overrides=[*of_hydra, *combination])
        HydraConfig.instance().set_config(config)
        config = _without_hydra(config)
        values = _check(settings, config)
        device = choose_device(values.device) if here else None  # a cluster's machines have devices of their own
        if (target := OmegaConf.to_yaml(config.data)) not in targets:
            build_target(config)
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


def _has_values(override: Override) -> bool:
    try:
        return bool(values_of(override))
    except (ValueError, HydraException):  # a range in steps of zero
        return False


def _only_where(overrides: list[str]) -> list[str]:
    """Those of `overrides` that say where the rest of a sweep runs; no others may come with resume=."""
    chosen = [override for override in _parse(overrides) if override.key_or_group != "resume"]
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
            accepts = "what is installed (the extras: pip install -r requirements-sweeps.txt; ray: hydra-ray-launcher)"
            got = f"{hydra_config.runtime.choices[f'hydra/{kind}']!r}: {error}"
            raise ArgumentError(f"hydra/{kind}", accepts, got) from error
    for key, hint in OF_HYDRA.items():
        _, kind, setting = key.split(".")
        if setting in hydra_config[kind]:
            check_value(key, hydra_config[kind][setting], hint)


def _hand_to_hydra(task: Task, settings: type, config_name: str) -> None:
    """What Hydra shows of itself and of the configuration, and shell completion."""

    def job(config: DictConfig) -> float | None:
        return _run(task, settings, config, Path(HydraConfig.get().runtime.output_dir))

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()


def _run(task: Task, settings: type, config: DictConfig, folder: Path) -> float | None:
    if hasattr(sys.stdout, "reconfigure"):  # a file or a pipe is to have each line at once, as a terminal does
        sys.stdout.reconfigure(line_buffering=True, errors="replace")  # whatever letters it knows
    threads = torch.get_num_threads()
    try:
        return task(config, _check(settings, config), folder)
    finally:
        torch.set_num_threads(threads)  # the next run of a sweep is not to have those of this one


def _check(settings: type, config: DictConfig) -> Any:
    """Check all of `config`; return its settings at the top level."""
    known = {field.name for field in dataclasses.fields(settings)}
    values = {key: value for key, value in config.items() if key in known or not isinstance(value, DictConfig)}
    check_arguments(settings, values)
    for missing in known - values.keys():  # in a stored configuration that was changed
        raise ArgumentError(missing, "a value", "none")
    check_config(config)
    return settings(**values)


def _folder_to_resume(overrides: list[str]) -> Path | None:
    """What `resume=` names, if it is given."""
    given = [override for override in _parse(overrides) if override.key_or_group == "resume"]
    if given and (given[-1].is_sweep_override() or isinstance(given[-1].value(), (list, dict))):
        raise ArgumentError("resume", "one folder", repr(given[-1].input_line))
    return None if not given or given[-1].value() is None else Path(str(given[-1].value()))


def _resumed(folder: Path, overrides: list[str], resumable: frozenset[str]) -> tuple[DictConfig, list[str]]:
    """The stored configuration of `folder`, with the few changes that a resumed run may make, and these in words.

    Raises:
        ArgumentError: names all settings that differ and may not.
    """
    config = load_config(folder, "resume")
    known, refused, changes = _settings_of(config), [], []
    for override in _parse(overrides):
        key, value = override.key_or_group, override.value()
        if key == "resume":
            continue
        if override.is_sweep_override():
            raise ArgumentError(key, "one value, or several with -m", repr(override.input_line))
        if key.startswith("hydra."):
            refused.append(f"{override.input_line} (for a run that begins)")
            continue
        if key not in known and not (CONFIGS / key).is_dir():
            got = f"{override.input_line!r}{nearest(key, known)}"
            raise ArgumentError(key, "nothing: there is no such setting", got)
        if key not in config.choices and (CONFIGS / key).is_dir():  # which of its files was chosen is not in the run
            if value is None and OmegaConf.select(config, key) is None:
                continue
            refused.append(f"{key}={value} (chosen when a run begins)")
            continue
        stored = config.choices[key] if key in config.choices else OmegaConf.select(config, key)
        if value == stored:
            continue
        if key in resumable:
            OmegaConf.update(config, key, value)
            changes.append(f"{key}={value}, which was {stored}")
        else:
            refused.append(f"{key}={value} ({stored} in the run)")
    if refused:
        accepts = f"no change of settings other than {', '.join(sorted(resumable))}"
        raise ArgumentError("resume", accepts, ", ".join(refused))
    config.resume = str(folder)
    return config, changes


def _refuse_what_nobody_sets(overrides: list[str]) -> None:
    """Hydra builds its own parts from the configuration too, and asks nobody where their classes come from.

    Raises:
        ArgumentError: an override names a class there, or could; or it is of what follows from other settings.
    """
    for override in _parse(overrides):
        key, line = override.key_or_group, override.input_line
        if key == "hydra" or key.startswith("hydra.callbacks"):
            raise ArgumentError(key, "nothing", repr(line))
        if key.startswith("hydra.") and isinstance(override.value(), dict):
            raise ArgumentError(key, "nothing: set what is in it one by one", repr(line))
        if key == "choices" or key.startswith("choices."):
            raise ArgumentError(key, f"nothing: choose with {key.rpartition('.')[2]}=...", repr(line))
        if key.startswith(("hydra.launcher", "hydra.sweeper")) and any(sign in line for sign in ("_target_", "{")):
            raise ArgumentError(key, "plain values of the settings that are there", repr(line))


def _compose(config_name: str, overrides: list[str], extra_folder: str | None) -> DictConfig:
    """The configuration, Hydra's own part included.

    Raises:
        ArgumentError: an override names an unknown setting.
    """
    search = [f"hydra.searchpath=[file://{Path(extra_folder).resolve()}]"] if extra_folder else []
    choices = []  # overrides that choose a file of a group
    for override in _parse(overrides):
        key, group = override.key_or_group, CONFIGS / override.key_or_group
        if override.is_delete():
            raise ArgumentError(key, "a value, not its deletion", repr(override.input_line))
        if override.is_sweep_override():
            raise ArgumentError(key, "one value, or several with -m", repr(override.input_line))
        if group.is_dir() and not search and not key.startswith("hydra/"):
            check_choice(key, override.value(), choices_in(key))
            choices.append(override.input_line)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra.compose(config_name, overrides + search, return_hydra_config=True)
        except HydraException:
            composed = hydra.compose(config_name, choices + search, return_hydra_config=True)
            known = _settings_of(composed)
            for override in _parse(overrides):
                key = override.key_or_group
                names = GlobalHydra.instance().config_loader().get_group_options(key)
                if names and key.startswith("hydra/") and not search:  # launchers, say, of which extras bring some
                    check_choice(key, override.value(), names)
                if key not in known and override.input_line not in choices:
                    typed = [name for name in known if not name.startswith("hydra.") and "._" not in name]
                    accepts, suggestion = _elsewhere(key, composed.hydra.runtime.choices, typed)
                    raise ArgumentError(key, accepts, f"{override.input_line!r}{suggestion}") from None
            raise


def _elsewhere(key: str, choices: DictConfig, known: list[str]) -> tuple[str, str]:
    """What to say of an unknown setting: what `key` accepts, and a suggestion after what it got."""
    group, _, name = key.partition(".")
    having = [
        choice
        for choice in choices_in(group)
        if group in choices and group != "experiment" and name in OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    ]
    if having and choices[group] is None:
        return f"nothing: with flow={choices.flow} there is no {group}", ""
    if having:
        return f"nothing with {group}={choices[group]}: it is of {group}={'|'.join(having)}", ""
    namesakes = [full for full in known if full.rpartition(".")[2] == key]
    suggestion = f" (did you mean {namesakes[0]!r}?)" if namesakes else nearest(key, known)
    return "nothing: there is no such setting", suggestion


def _settings_of(node: DictConfig, prefix: str = "") -> list[str]:
    """The full names of all settings below `node`."""
    names = []
    for key in node:
        name, child = f"{prefix}{key}", node._get_node(key)
        names.append(name)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            if child._is_interpolation():
                continue  # ${estimator}: its settings have their own names
            names.extend(_settings_of(child, f"{name}."))
    return names


@contextlib.contextmanager
def _read_as_far_as_wanted() -> Iterator[None]:
    """While entered, what is printed is for a person, who may look at its beginning alone: `--help | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_standard_output()


def _leave_standard_output() -> None:
    """Nobody reads standard output, so Python must not flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(overrides: list[str]) -> list[Override]:
    """
    Raises:
        ArgumentError: one is not in Hydra's grammar.
    """
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        name, _, value = error.override.partition("=")
        quoted = shlex.quote(f"{name}={QuotedString(value, Quote.double).with_quotes()}")
        raise ArgumentError(name, f"Hydra's grammar, which quotes such a text: {quoted}", repr(value)) from None


def _exit(status: int, message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(status)
