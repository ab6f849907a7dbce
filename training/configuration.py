"""From a composed configuration to objects: checked first, and only ever objects of this project."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arguments import ArgumentError, check_arguments, nearest
from atomic import write_atomically
from datasets import Target, TargetDensity
from flows import Flow
from flows.standardize import Standardize
from training.diagnosis import first_line, is_of_memory
from training.learner import POWER_ITERATIONS
from training.sweep_table import SWEEP

__all__ = ["build", "build_flow", "build_target", "check_config", "choose_device", "load_config", "save_config"]

# Where the classes and functions of each group are defined: nothing else is ever built, whoever wrote the config.
# Each group has a home of its own, since even a function of the project can do harm, as by writing to a given path.
HOMES = {
    "data": "datasets",
    "flow": "flows",
    "estimator": "flows.estimators",
    "optimizer": "training.optimizers",
    "trainer": "training.trainer",
    "logger": "training.tensorboard",
}
OPTIONAL = ("logger",)
USUAL_POWER_ITERATIONS = (POWER_ITERATIONS, 5)  # the default, and that of earlier versions
WAITING = ("optimizer", "trainer", "logger")  # groups that are built in two steps, `_partial_`
HANDED_OVER = {
    "flow": ("dimensions",),
    "optimizer": ("flow",),
    "trainer": ("flow", "target", "optimizer", "folder", "seed", "title", "about", "logger"),
}  # parameters that are no settings: what they get is known only when a group is built


def check_config(config: DictConfig) -> None:
    """Check the settings of every group of `config` against the function or class that will receive them.

    Raises:
        ArgumentError: a setting is refused, named in full as it is typed; or the name of a group is misspelled.
    """
    for key, value in OmegaConf.to_container(config, resolve=True).items():
        if not isinstance(value, dict) or key == "choices":
            continue
        if key == "experiment":  # without that line, Hydra puts the file's settings below `experiment`
            raise ArgumentError(key, "a file with the line '# @package _global_' at its top", repr(value))
        if key not in HOMES and (suggestion := nearest(str(key), HOMES)):  # others may serve ${key.name}
            raise ArgumentError(key, "nothing: there is no such group", f"{value!r}{suggestion}")
        if key in HOMES and "_target_" not in value:
            raise ArgumentError(key, "what a file of configs holds, with its _target_", repr(value))
        _check_node(key, value)


def _check_node(path: str, node: dict[str, Any]) -> None:
    group = path.rpartition(".")[2]
    if "_target_" in node:
        target = _find_target(f"{path}._target_", HOMES.get(group), node["_target_"])
        settings = {key: value for key, value in node.items() if not key.startswith("_")}
        check_arguments(target, settings, f"{path}.", HANDED_OVER.get(group, ()))
    for key, value in node.items():
        setting = f"{path}.{key}"
        if key.startswith("_"):
            waits = key == "_partial_" and value is True and group in WAITING
            if key != "_target_" and not waits:
                raise ArgumentError(setting, "nothing: arguments are given by name", repr(value))
        elif isinstance(value, dict) and "_target_" in value:
            _check_node(setting, value)
        elif isinstance(value, dict) or ("_target_" in node and key in HOMES):
            raise ArgumentError(setting, "what a file of configs holds, with its _target_", repr(value))
        elif _holds_mapping(value):  # Hydra would build what it names
            raise ArgumentError(setting, "plain values: a list may not hold settings", repr(value))


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(_holds_mapping(item) for item in value))


def _find_target(setting: str, home: str | None, name: Any) -> Callable[..., Any]:
    """Import what a `_target_` names: a public class or function defined in `home`, a module or package, or below."""
    accepts = "nothing: no class is expected here"
    if home is not None:
        accepts = f"a class or function of {home}, as package.module.name, in its module's __all__"
    error = ArgumentError(setting, accepts, repr(name))
    module_name, _, attribute = str(name).rpartition(".")
    if home is None or not f"{module_name}.".startswith(f"{home}."):
        raise error
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as reason:
        raise ArgumentError(setting, accepts, f"{name!r}: {reason}") from None
    # What a module merely imports, such as torch's own loader, is not the project's.
    target = getattr(module, attribute, None)
    public = attribute in getattr(module, "__all__", ()) and getattr(target, "__module__", None) == module_name
    if not public or not callable(target) or inspect.isabstract(target):
        raise error
    return target


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a checked node, with `arguments` that are known only now.

    A `_partial_` node gives a function, which is called with the rest of the arguments later.

    Raises:
        ArgumentError: the object itself refuses a setting, such as a contradictory pair.
    """
    try:
        return instantiate(node, **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ArgumentError):
            name = ".".join(filter(None, (node._get_full_key(None), cause.name)))  # of the whole node, without one
            raise ArgumentError(name, cause.accepts, cause.got) from None
        if cause is not None and is_of_memory(cause):
            raise cause from None
        raise


def build_flow(config: DictConfig, stored: bool = False) -> Flow:
    """Build the flow; for data in units of their own, it begins with a Standardize that is yet to be set.

    Args:
        config: the configuration.
        stored: whether the configuration was stored by an existing run, maybe of an earlier version.

    Raises:
        ArgumentError: there is an estimator, or a number of power iterations, and the flow has no use for one.
    """
    if config.get("estimator") is not None and "estimator" not in config.flow:
        accepts = f"nothing: flow={config.choices.flow} takes none"
        raise ArgumentError("estimator", accepts, config.choices.estimator)
    flow = build(config.flow, dimensions=2)
    iterations = config.trainer.get("power_iterations", POWER_ITERATIONS)
    # Every configuration holds the default, whatever its flow: only another number shows that somebody typed it.
    not_typed = USUAL_POWER_ITERATIONS if stored else USUAL_POWER_ITERATIONS[:1]
    if iterations not in not_typed and flow.lipschitz() is None:
        accepts = f"nothing: flow={config.choices.flow} has no Lipschitz constant to hold"
        raise ArgumentError("trainer.power_iterations", accepts, repr(iterations))
    if _target_class(config).in_own_units:
        flow.bijections.insert(0, Standardize(2))
    return flow


def _target_class(config: DictConfig) -> type[Target]:
    name = config.data._target_
    found = _find_target("data._target_", HOMES["data"], name)
    if not isinstance(found, type) or not issubclass(found, Target):
        raise ArgumentError("data._target_", "a class of datasets that can be sampled", repr(name))
    return found


def build_target(config: DictConfig) -> Target:
    """Build the target; of a density, the entropy is computed and kept.

    Raises:
        ArgumentError: the density is too thin for its entropy to be known, or its file is not what it should be.
    """
    _target_class(config)
    target = build(config.data)
    try:
        if isinstance(target, TargetDensity):
            target.entropy  # noqa: B018
    except ArgumentError as error:
        raise ArgumentError(".".join(filter(None, ("data", error.name))), error.accepts, error.got) from None
    return target


def choose_device(name: str) -> torch.device:
    """The device that the setting `device` names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        ArgumentError: there is no such device here.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name == "auto":
        return torch.device("cuda" if "cuda" in here and _has_code_for_cuda() else "cpu")
    if name not in here:
        raise ArgumentError("device", f"auto or a device of this machine: {' | '.join(here)}", repr(name))
    if name.startswith("cuda") and (reason := _why_not(name)):
        raise ArgumentError("device", "auto or a device that torch has code for", f"{name!r}: {reason}")
    return torch.device(name)


@functools.cache
def _has_code_for_cuda() -> bool:
    """Whether torch has code for the first GPU; if not, the reason is printed, once per process."""
    if reason := _why_not("cuda"):
        print(f"device=auto: going on without cuda, which torch cannot use: {reason}", file=sys.stderr)
    return not reason


def _why_not(name: str) -> str:
    """Why torch cannot compute on a device that it lists, such as a GPU too old for its code; empty if it can."""
    try:
        torch.ones(1, device=name).neg_()
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        return first_line(error)
    return ""


def save_config(config: DictConfig, folder: Path) -> None:
    """Write config.yaml, every value resolved."""
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True).encode())


def load_config(folder: Path, setting: str) -> DictConfig:
    """Read what `save_config` wrote.

    Raises:
        ArgumentError: `folder` holds no such file.
    """
    path, accepts = folder / "config.yaml", "a folder written by train.py, with its config.yaml"
    try:
        text, config = path.read_text(encoding="utf-8"), OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = first_line(error)
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            reason = "that file is not there" if os.path.isdir(folder) else "there is no such folder"
        if os.path.isfile(folder / SWEEP):  # Path.is_file raises where one may not look
            reason = "a sweep: go on with it by -m, or name one of its runs"
        raise ArgumentError(setting, accepts, f"{str(folder)!r}: {reason}") from error
    if "${" in text:  # what it stands for is not in the file, and could be anything
        raise ArgumentError(setting, accepts, f"{str(path)!r}, which refers to values outside it")
    groups = [group for group in HOMES if group not in OPTIONAL and (group != "estimator" or "estimator" in config)]
    needed = [f"{group}._target_" for group in groups]
    needed += [f"choices.{group}" for group in groups if group != "trainer"]
    for name in needed:
        if not isinstance(config, DictConfig) or not isinstance(OmegaConf.select(config, name), str):
            raise ArgumentError(setting, accepts, f"{str(path)!r}, which lacks {name}")
    return config
