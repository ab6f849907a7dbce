"""The page that --help prints, from the configs themselves: their choices, settings and comments."""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from arguments import check_choice
from training.defaults import CONFIGS, choices_in, choices_of, recipe

__all__ = ["help_page"]


class Setting(NamedTuple):
    name: str
    value: str
    comment: str


# `blocks: 16  # residual blocks`, at the top level of a file; `  - data: moons  # the density` in its defaults list.
SETTING = re.compile(r"(\w+): (.*?) +# (.+)")
DEFAULT = re.compile(r"  - (\w+): (\S+) *#? *(.*)")


def help_page(config_name: str, overrides: Iterable[str] = ()) -> str:
    """The page of a command.

    Args:
        config_name: the command's own.
        overrides: what else was typed: the settings of the choices among them are shown, `flow=iresnet --help`, and
            the values that are typed.

    Raises:
        ArgumentError: there is no such choice.
    """
    path = CONFIGS / f"{config_name}.yaml"
    texts = yaml.safe_load(path.read_text(encoding="utf-8"))["hydra"]["help"]
    typed = dict(item.split("=", 1) for item in overrides if "=" in item)
    groups = [group for group in _matches(DEFAULT, path) if (CONFIGS / group.name).is_dir()]
    lines = [texts["header"].rstrip(), ""]
    if groups:
        lines.append("Groups, and their choices (the default first):")
        for group in groups:
            others = [name for name in choices_in(group.name) if name != group.value]
            first = [] if group.value == "null" else [group.value]
            lines += _entry(group.name, ", ".join([*first, *others]), group.comment)
        lines.append("")
    lines.append("Settings, and their defaults:")
    for name, value, comment in _matches(SETTING, path):
        lines += _entry(f"{name}={typed.get(name, value)}", comment)
    for group in groups:
        for name in typed[group.name].split(",") if group.name in typed else ():  # those of a sweep
            check_choice(group.name, name, choices_in(group.name))
    brought, changed = recipe(typed["experiment"]) if "experiment" in typed else ({}, {})
    flow = next(({**brought, **typed}.get("flow", group.value) for group in groups if group.name == "flow"), None)
    chosen = {**(choices_of(flow) if flow else {}), **brought, **typed}
    if changed:
        lines += ["", f"set by experiment={typed['experiment']}:"]
        lines += [f"  {name}={value}" for name, value in changed.items()]
    for group in groups:
        for choice in str(chosen[group.name]).split(","):
            file = CONFIGS / group.name / f"{choice}.yaml"
            if file.is_file() and group.name != "experiment":
                lines += ["", f"of {group.name}={file.stem}:", *_about(file)]
                for name, value, comment in _matches(SETTING, file):
                    full = f"{group.name}.{name}"
                    lines += _entry(f"{full}={typed.get(full, changed.get(full, value))}", comment)
    return "\n".join([*lines, "", texts["footer"].rstrip()])


def _about(path: Path) -> list[str]:
    """What a file says of itself, in the comment that it begins with."""
    comment = itertools.takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
    return textwrap.wrap(" ".join(line[2:] for line in comment), _width(), initial_indent="  ", subsequent_indent="  ")


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 72), 120)  # names take half of it


def _matches(pattern: re.Pattern[str], path: Path) -> Iterator[Setting]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := pattern.fullmatch(line):
            yield Setting(*match.groups())


def _entry(name: str, *texts: str) -> list[str]:
    """A name, and what is to be said of it to the right, as wide as the terminal."""
    text = "; ".join(filter(None, texts))
    indent = " " * 36
    return textwrap.wrap(text, _width(), initial_indent=f"  {name:<33} ", subsequent_indent=indent)
