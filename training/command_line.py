"""A command of this project: Hydra's grammar, one plain line for a mistake, and the contract's exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arguments import ArgumentError, check_arguments
from training.configuration import check_config
from training.defaults import CONFIGS
from training.diagnosis import OUT_OF_MEMORY, is_of_memory
from training.help import help_page
from training.interruption import SIGPIPE, Interrupted, exit_as_ever
from training.multirun import LauncherError, run_many
from training.overrides import (
    compose,
    folder_to_resume,
    naming_experiment,
    parse,
    refuse_what_nobody_sets,
    resumed,
    without_hydra,
)
from training.run_folder import STOPPED
from training.sweep import Run, combinations

__all__ = ["command"]

OF_A_RUN = ("hydra.run.", "hydra.job.name", "hydra.job.config.", "hydra.searchpath", "hydra.mode")
"""Prefixes of the Hydra settings that train.py obeys in a run outside a sweep."""

AS_IT_IS = {
    "hydra.job.chdir": (False, None),
    "hydra.output_subdir": (None,),
    "hydra.verbose": (False,),
    "hydra/job_logging": ("disabled", "none"),
    "hydra/hydra_logging": ("disabled", "none"),
}
"""Hydra settings that scripts often give, with the values that are accepted because a run behaves so anyway."""

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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    _show_each_line()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, and Hydra prints nothing of its own
    # From Python 3.14 on help texts are checked as they are added: Hydra 1.3 has one that is made when it is shown.
    argparse.ArgumentParser._check_help = lambda *_: None
    parser = get_args_parser()
    parser.error = lambda message: _exit(2, f"{message}; settings are name=value, and options such as -m come first")
    arguments = parser.parse_args()
    for item in arguments.overrides:
        name, equals, _ = item.partition("=")
        if name.split() != [name] or not (equals or item.startswith("~")):
            _exit(2, f"settings are name=value, without spaces; got {item!r}")
    _prefer_own_configs()
    try:
        run, check = functools.partial(_run, task, settings), functools.partial(_check, settings)
        _dispatch(run, check, config_name, frozenset(resumable), arguments)
    except ArgumentError as error:
        _exit(2, str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _exit(2, " ".join(line.strip() for line in str(error).splitlines() if line.strip()))
    except (*STOPPED, LauncherError) as error:
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
    run: Run,
    check: Callable[[DictConfig], Any],
    config_name: str,
    resumable: frozenset[str],
    arguments: argparse.Namespace,
) -> None:
    """Do what the command line asks for: say something, go on with a run, begin one, or make many."""
    if arguments.help:
        with _read_as_far_as_wanted():
            print(help_page(config_name, [] if arguments.config_dir else arguments.overrides))
        return
    if arguments.config_path is not None:
        _exit(2, "--config-path would leave the project's configs; --config-dir adds a folder to them")
    if arguments.config_dir is not None and not os.path.isdir(arguments.config_dir):
        raise ArgumentError("--config-dir", "a folder of configs", repr(arguments.config_dir))
    if arguments.experimental_rerun is not None:
        _exit(2, "--experimental-rerun would run what a file says; resume= goes on with a run")
    refuse_what_nobody_sets(arguments.overrides)
    exclusive = ("run", "multirun", "cfg", "info", "shell_completion")
    if len(given := [f"--{name.replace('_', '-')}" for name in exclusive if getattr(arguments, name)]) > 1:
        _exit(2, f"{' and '.join(given)} do not go together")
    if (arguments.resolve or arguments.package is not None) and not arguments.cfg:
        _exit(2, "--resolve and --package go with --cfg")
    typed = parse(arguments.overrides)
    if arguments.multirun and not resumable:  # results stand in the run's folder, or in out
        several = {override.key_or_group for override in typed if override.is_sweep_override()}
        for override in typed:
            key, got = override.key_or_group, repr(override.input_line)
            if key in several - {"run", "out"}:
                raise ArgumentError(key, "one value: only run and out take several", got)
            if key == "out" and "run" in several:
                raise ArgumentError(key, "nothing where run takes several: each has a folder of its own", got)
    folder = folder_to_resume(arguments.overrides) if resumable else None
    if arguments.cfg and folder is not None:
        accepts = f"nothing with --cfg: the settings of what began there are in '{folder / 'config.yaml'}'"
        raise ArgumentError("resume", accepts, f"'{folder}'")
    if arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion:
        with _read_as_far_as_wanted():
            _hand_to_hydra(config_name)
    elif arguments.multirun and resumable:
        run_many(run, check, config_name, arguments)
    elif folder is not None:
        config, changes = resumed(folder, arguments.overrides, resumable)
        check(config)
        for change in changes:
            print(f"resuming with {change}")
        run(config, folder)
    else:
        runs = combinations(typed, search=False) if arguments.multirun else [arguments.overrides]
        for overrides in runs:
            config = compose(arguments.config_name or config_name, overrides, arguments.config_dir)
            if resumable and config.hydra.mode == RunMode.MULTIRUN:
                run_many(run, check, config_name, arguments)
            else:
                _run_once(run, config, OF_A_RUN if resumable else ("hydra.searchpath",))


def _prefer_own_configs() -> None:
    """Let configs/hydra stand in place of what the extras register under the same names, not be merged into it."""
    Plugins.instance()  # imports the extras
    for path in (CONFIGS / "hydra").rglob("*.yaml"):
        group = ConfigStore.instance().repo
        for name in path.relative_to(CONFIGS).parent.parts:
            group = group.get(name, {})
        group.pop(path.name, None)


def _run_once(run: Run, config: DictConfig, heeded: tuple[str, ...]) -> None:
    """Make one run in this process, without Hydra's launcher. One that is refused leaves nothing behind.

    Args:
        heeded: prefixes of the Hydra settings that the run obeys; others are refused unless `AS_IT_IS` has the value.
    """
    for override in parse(list(config.hydra.overrides.hydra)):
        key = override.key_or_group
        if not key.startswith(heeded) and override.value() not in AS_IT_IS.get(key, ()):
            raise ArgumentError(key, "nothing outside a sweep, train.py -m", repr(override.input_line))
    HydraConfig.instance().set_config(config)  # what ${hydra:...} refers to
    with naming_experiment(config), _folder_of_its_own(config) as folder:
        run(without_hydra(config), folder)


@contextlib.contextmanager
def _folder_of_its_own(config: DictConfig) -> Iterator[Path]:
    """The folder of a run; on leaving it is removed if nothing was written there.

    If its name holds the time it is made at once, so that of two runs begun within a second the later waits for the
    next.
    """
    folder = Path(os.path.expanduser(str(config.hydra.run.dir)))
    if "${now:" not in OmegaConf.to_container(config.hydra.run, resolve=False)["dir"]:
        yield folder
        return
    before, made = None, []
    while folder != before:  # equal if the name holds only the day, say: then opening it tells whether it is free
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            time.sleep(1)
            OmegaConf.clear_cache(config)  # which holds the time
            folder, before = Path(os.path.expanduser(str(config.hydra.run.dir))), folder
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


def _hand_to_hydra(config_name: str) -> None:
    """What Hydra shows of itself and of the configuration, and shell completion."""
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(lambda config: None)()
    except ValueError as error:  # a shell that it does not know, say
        _exit(2, " ".join(str(error).split()))


def _run(task: Task, settings: type, config: DictConfig, folder: Path) -> float | None:
    _show_each_line()  # here too, since a sweep's other processes do not come by `command`
    threads = torch.get_num_threads()
    try:
        return task(config, _check(settings, config), folder)
    finally:
        torch.set_num_threads(threads)  # the next run of a sweep is not to have those of this one


def _show_each_line() -> None:
    """A file or a pipe is to have each line at once, as a terminal does, and whatever letters it knows."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")


def _check(settings: type, config: DictConfig) -> Any:
    """Check all of `config`; return its settings at the top level."""
    known = {field.name for field in dataclasses.fields(settings)}
    values = {key: value for key, value in config.items() if key in known or not isinstance(value, DictConfig)}
    check_arguments(settings, values)
    for missing in known - values.keys():  # in a stored configuration that was changed
        raise ArgumentError(missing, "a value", "none")
    check_config(config)
    return settings(**values)


@contextlib.contextmanager
def _read_as_far_as_wanted() -> Iterator[None]:
    """While entered, the reader of standard output may leave early without an error, as in `--help | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_standard_output()


def _leave_standard_output() -> None:
    """Nobody reads standard output, so Python must not flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(status: int, message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(status)
