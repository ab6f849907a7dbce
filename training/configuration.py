"""From a composed configuration to objects: checked first, and only ever objects of this project."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arguments import ArgumentError, check_arguments
from atomic import write_atomically
from datasets import TargetDensity

__all__ = ["build", "build_target", "check_config", "choose_device", "load_config", "save_config"]

PACKAGES = ("datasets", "flows", "training")


def check_config(config: DictConfig) -> None:
    """Check the settings of every group of `config` against the function or class that will receive them.

    Raises:
        ArgumentError: names the setting in full, as it is typed.
    """
    for key, value in OmegaConf.to_container(config, resolve=True).items():
        if isinstance(value, dict):
            _check_node(key, value)


def _check_node(path: str, node: dict[str, Any]) -> None:
    if "_target_" in node:
        target = _find_target(f"{path}._target_", node["_target_"])
        if "_args_" in node:
            raise ArgumentError(f"{path}._args_", "nothing: arguments are given by name", repr(node["_args_"]))
        check_arguments(target, {key: value for key, value in node.items() if not key.startswith("_")}, f"{path}.")
    for key, value in node.items():
        if isinstance(value, dict):
            _check_node(f"{path}.{key}", value)


def _find_target(setting: str, name: Any) -> Callable[..., Any]:
    """Import what a `_target_` names, which must be a class or function defined in one of the project's packages."""
    error = ArgumentError(setting, f"a class or function of {', '.join(PACKAGES)}, as package.module.name", repr(name))
    module_name, _, attribute = str(name).rpartition(".")
    if module_name.partition(".")[0] not in PACKAGES:
        raise error
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError):
        raise error from None
    # What a module merely imports, such as torch's own loader, is not the project's.
    if not callable(target) or getattr(target, "__module__", None) != module_name:
        raise error
    return target


def build(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a checked node, with `arguments` that are known only now. A `_partial_` node waits for more.

    Raises:
        ArgumentError: the object itself refuses a setting, such as a contradictory pair.
    """
    made = instantiate(node, **{key: value for key, value in arguments.items() if not node.get("_partial_")})
    return functools.partial(made, **arguments) if node.get("_partial_") else made


def build_target(config: DictConfig) -> TargetDensity:
    """Build the target density, its entropy computed and kept.

    Raises:
        ArgumentError: the density is too thin for its entropy to be known.
    """
    target = build(config.data)
    try:
        target.entropy  # noqa: B018
    except ArgumentError as error:
        raise ArgumentError(f"data.{error.name}", error.accepts, error.got) from None
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
        name = "cuda" if "cuda" in here else "cpu"
    if name not in here:
        raise ArgumentError("device", f"auto or a device of this machine: {' | '.join(here)}", repr(name))
    return torch.device(name)


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
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise ArgumentError(setting, accepts, f"{str(folder)!r}: {reason}") from error
    if not isinstance(config, DictConfig):
        raise ArgumentError(setting, accepts, f"{str(path)!r}, which holds no settings")
    return config
