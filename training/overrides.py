"""From what is typed, in Hydra's grammar, to a composed configuration; each mistake is named by its setting."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from arguments import ArgumentError, check_choice, nearest
from training.configuration import load_config
from training.defaults import CONFIGS, choices_in, recipe

__all__ = [
    "compose",
    "folder_to_resume",
    "naming_experiment",
    "parse",
    "refuse_what_nobody_sets",
    "resumed",
    "without_hydra",
]


def parse(overrides: list[str]) -> list[Override]:
    """What `overrides`, as they are typed, say.

    Raises:
        ArgumentError: one is not in Hydra's grammar.
    """
    parser = OverridesParser.create()
    try:
        return parser.parse_overrides(overrides)
    except OverrideParseException as error:
        name, _, value = error.override.partition("=")
        if error.__cause__ is not None:  # it is in the grammar, but calls what is not there, or with what it refuses
            got = f"{value!r}: {' '.join(str(error.__cause__).split())}"
            raise ArgumentError(name, "a call that Hydra knows, or a text in quotes", got) from None
        quoted = f"{name}={QuotedString(value, Quote.double).with_quotes()}"
        try:
            parser.parse_override(quoted)
        except HydraException:  # nor is the name
            raise ArgumentError(name, "nothing: there is no such setting", repr(error.override)) from None
        raise ArgumentError(name, f"such a text in quotes alone: {shlex.quote(quoted)}", repr(value)) from None


def compose(config_name: str, overrides: list[str], extra_folder: str | None) -> DictConfig:
    """The configuration, Hydra's own part included.

    Args:
        config_name: the primary configuration.
        overrides: as they are typed, each of one value.
        extra_folder: of configs beside the project's; None for no more.

    Raises:
        ArgumentError: an override deletes or sweeps a setting, or names an unknown setting or choice.
    """
    search = []
    if extra_folder:
        address = QuotedString(f"file://{Path(extra_folder).resolve()}", Quote.single).with_quotes()
        search = [f"hydra.searchpath=[{address}]"]
    parsed = parse(overrides)
    for override in parsed:
        key = override.key_or_group
        if override.is_delete():
            raise ArgumentError(key, "a value, not its deletion", repr(override.input_line))
        if override.is_sweep_override():
            accepts = "one value" if override.is_hydra_override() else "one value, or several with -m"
            raise ArgumentError(key, accepts, repr(override.input_line))
        if (CONFIGS / key).is_dir() and not search and not key.startswith("hydra/"):
            check_choice(key, override.value(), choices_in(key))
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra.compose(config_name, overrides + search, return_hydra_config=True)
        except HydraException:
            loader = GlobalHydra.instance().config_loader()
            choices = []  # overrides that choose a file of a group
            for override in parsed:
                key = override.key_or_group
                if names := loader.get_group_options(key, overrides=search):
                    if key.startswith("hydra/"):  # launchers, say, of which extras bring some
                        check_choice(key, override.value(), names)
                    choices.append(override.input_line)
            composed = hydra.compose(config_name, choices + search, return_hydra_config=True)
            known = _settings_of(composed)
            for override in parsed:
                key, is_added = override.key_or_group, override.type != OverrideType.CHANGE
                if key not in known and not is_added and override.input_line not in choices:
                    typed = [name for name in known if not name.startswith("hydra.") and "._" not in name]
                    accepts, suggestion = _elsewhere(key, composed.hydra.runtime.choices, typed)
                    raise ArgumentError(key, accepts, f"{override.input_line!r}{suggestion}") from None
            raise


def folder_to_resume(overrides: list[str]) -> Path | None:
    """What `resume=` names, if it is given.

    Raises:
        ArgumentError: it names several folders.
    """
    given = [override for override in parse(overrides) if override.key_or_group == "resume"]
    if given and (given[-1].is_sweep_override() or isinstance(given[-1].value(), (list, dict))):
        raise ArgumentError("resume", "one folder", repr(given[-1].input_line))
    if not given or given[-1].value() is None:
        return None
    return Path(os.path.expanduser(str(given[-1].value())))


def resumed(folder: Path, overrides: list[str], resumable: frozenset[str]) -> tuple[DictConfig, list[str]]:
    """The stored configuration of `folder`, with the few changes that a resumed run may make, and these in words.

    Raises:
        ArgumentError: names all settings that differ and may not.
    """
    config = load_config(folder, "resume")
    known, refused, changes = _settings_of(config), [], []
    for override in parse(overrides):
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


def refuse_what_nobody_sets(overrides: list[str]) -> None:
    """Refuse overrides that could make Hydra run other code, and others that nobody has a reason to type.

    Hydra builds its own parts, such as launchers, from the configuration too, and does not check where a class is from.

    Raises:
        ArgumentError: an override of Hydra's part names a class, or could; or sets `choices`, which follow from other
            overrides; or chooses null or a number as the file of a group; or sets hydra.launcher or hydra.sweeper
            where it should choose hydra/launcher or hydra/sweeper.
    """
    for override in parse(overrides):
        key, line = override.key_or_group, override.input_line
        if key == "hydra" or key.startswith("hydra.callbacks"):
            raise ArgumentError(key, "nothing", repr(line))
        is_plain = not override.is_sweep_override() and not override.is_delete()
        if is_plain and not isinstance(override.value(), (str, list)):  # for which Hydra has a traceback
            if (CONFIGS / key).is_dir():
                check_choice(key, override.value(), choices_in(key))
            elif "/" in key:
                raise ArgumentError(key, "the name of a file of configs", repr(override.value()))
        if key in ("hydra.launcher", "hydra.sweeper"):
            raise ArgumentError(key, f"nothing: choose with {key.replace('.', '/')}=...", repr(line))
        if key.startswith("hydra.") and isinstance(override.value(), dict):
            raise ArgumentError(key, "nothing: set what is in it one by one", repr(line))
        if key == "choices" or key.startswith("choices."):
            raise ArgumentError(key, f"nothing: choose with {key.rpartition('.')[2]}=...", repr(line))
        if key.startswith(("hydra.launcher", "hydra.sweeper")) and any(sign in line for sign in ("_target_", "{")):
            raise ArgumentError(key, "plain values of the settings that are there", repr(line))


@contextlib.contextmanager
def naming_experiment(config: DictConfig) -> Iterator[None]:
    """While entered, an error about a setting that came from the chosen experiment, not from what was typed, says so.

    Args:
        config: the composed configuration, Hydra's own part included.

    Raises:
        ArgumentError: the same, with the experiment after what it got.
    """
    try:
        yield
    except ArgumentError as error:
        experiment = config.hydra.runtime.choices.get("experiment")
        typed = {override.key_or_group for override in parse(list(config.hydra.overrides.task))}
        if experiment is None or error.name in typed or not any(error.name in part for part in recipe(experiment)):
            raise
        raise ArgumentError(error.name, error.accepts, f"{error.got}, set by experiment={experiment}") from error


def without_hydra(config: DictConfig) -> DictConfig:
    """A composed configuration as a task has it, without Hydra's own part."""
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


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
        name = f"{prefix}{key}"
        names.append(name)
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue  # ${estimator}: its settings have their own names
        if isinstance(child := node[key], DictConfig):
            names.extend(_settings_of(child, f"{name}."))
    return names
