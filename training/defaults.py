"""The configs as they stand: what can be chosen there, and how a run's configuration differs from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

__all__ = ["CONFIGS", "changed_settings", "choices_in", "choices_of", "recipe"]

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def choices_in(group: str) -> list[str]:
    """The names of the files of a group."""
    folder = CONFIGS / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def choices_of(flow: str) -> dict[str, str | None]:
    """What is chosen by default, by group, beside `flow`: it brings an estimator, or none, and maybe an optimizer."""
    choices = dict(_listed(_load(CONFIGS / "train.yaml")))
    for group, value in _listed(_load(CONFIGS / "flow" / f"{flow}.yaml")):  # override /group@_global_.group
        choices[group.rpartition(".")[2]] = value
    return choices


def recipe(experiment: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What a file of `configs/experiment` chooses, by group, and sets, by full name."""
    content = _load(CONFIGS / "experiment" / f"{experiment}.yaml")
    choices = {group.rpartition("/")[2]: value for group, value in _listed(content)}
    content.pop("defaults")
    settings: dict[str, Any] = {}
    for group, node in content.items():
        settings.update(
            {f"{group}.{name}": value for name, value in node.items()} if isinstance(node, dict) else {group: node}
        )
    return choices, settings


def changed_settings(config: DictConfig) -> dict[str, tuple[Any, Any]]:
    """The settings of `config` that differ from the files chosen, and choices that differ from the flow's defaults.

    Each is given as (value, default). The default is None if the file chosen is not in `configs`, as with --config-dir.
    """
    primary = _load(CONFIGS / "train.yaml")
    choices = choices_of(config.choices.flow)
    changed = {key: (value, choices[key]) for key, value in config.choices.items() if value != choices[key]}
    for key, node in config.items():
        if not isinstance(node, DictConfig):
            if key not in ("resume", "threads") and node != primary.get(key):
                changed[key] = (node, primary.get(key))
        elif key != "choices":
            defaults = _load(CONFIGS / key / f"{config.choices.get(key, choices.get(key))}.yaml")
            for name, value in node.items():
                if not name.startswith("_") and not isinstance(value, DictConfig) and value != defaults.get(name):
                    changed[f"{key}.{name}"] = (value, defaults.get(name))
    return changed


def _listed(content: dict[str, Any]) -> list[tuple[str, str | None]]:
    """What the defaults list of a file chooses, by group."""
    return [item for entry in content["defaults"] for item in entry.items()]


def _load(path: Path) -> dict[str, Any]:
    """A file's content, merged over that of the files of its own group that its defaults list names."""
    content = OmegaConf.load(path) if path.is_file() else OmegaConf.create({})
    entries = list(content.pop("defaults", []))
    bases = [_load(path.parent / f"{entry}.yaml") for entry in entries if isinstance(entry, str) and entry != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(*bases, content))
    chosen = [OmegaConf.to_container(entry) for entry in entries if not isinstance(entry, str)]
    return merged | {"defaults": [*(entry for base in bases for entry in base["defaults"]), *chosen]}
