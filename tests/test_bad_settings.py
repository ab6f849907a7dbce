"""Bad values for every setting of every config, found in the configs themselves: a new setting is covered unlisted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import train
from arguments import ArgumentError
from tests.conftest import PROJECT, Result, composed
from training import command_line

# Each group with each of its files, as what is typed to choose it.
CHOICES = {
    "flow": [f"flow={name}" for name in ("iresnet", "resflow", "idensenet", "implicit")],
    "data": [f"data={path.stem}" for path in sorted((PROJECT / "configs" / "data").glob("*.yaml"))],
    "estimator": [f"estimator={path.stem}" for path in sorted((PROJECT / "configs" / "estimator").glob("*.yaml"))],
    "optimizer": [f"optimizer={path.stem}" for path in sorted((PROJECT / "configs" / "optimizer").glob("*.yaml"))],
}
ALWAYS_BAD = ("{a: 1}", "no_such_thing")
BAD_NUMBERS = ("-1e9", "nan", "inf", "'1'", "true", "[1, 2]", "null")
BAD_FLAGS = ("3", "null", "[true]", "'yes'")
BAD_TEXTS = ("3", "[a, b]", "null")
OUT_OF_RANGE = "-1e9"
"""All else of the bad numbers is of another kind, which is refused in one place whatever the setting."""
MAY_BE_NULL = ("threads", "resume", "trainer.max_seconds", "data.sha256", "n", "points", "grid")


def bad_overrides() -> Iterator[tuple[str, ...]]:
    """What to type: a choice where one is needed, and one bad override last."""
    seen = set()
    with hydra.initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        for choice in [None, *(choice for choices in CHOICES.values() for choice in choices)]:
            chosen = [] if choice is None else [choice]
            config = hydra.compose("train", chosen)
            for group, node in config.items():
                if group == "choices":
                    continue
                settings = node.items_ex(resolve=False) if isinstance(node, DictConfig) else [(None, node)]
                for name, value in settings:
                    if name is not None and (name.startswith("_") or str(value).startswith("${")):
                        continue
                    key = group if name is None else f"{group}.{name}"
                    if key in seen and (choice is None or not choice.startswith(f"{group}=")):
                        continue
                    for bad in bad_values(key, value):
                        if (key, bad, group == "data" and choice) not in seen:
                            seen.add((key, bad, group == "data" and choice))
                            yield (*chosen, f"{key}={bad}")
                    if key not in seen:
                        yield (*chosen, f"{key}x={value}")  # a slip of the finger
                    seen.add(key)


def bad_values(key: str, value: object) -> list[str]:
    if key == "experiment":
        return ["no_such_thing"]
    kinds = BAD_FLAGS if isinstance(value, bool) else BAD_NUMBERS if isinstance(value, (int, float)) else BAD_TEXTS
    if key in ("threads", "trainer.max_seconds", "n", "grid"):
        kinds = BAD_NUMBERS
    if isinstance(value, (list, tuple)) or "ListConfig" in type(value).__name__:
        kinds = ("[]", "3", "[a]", "[-1.0]", "null")
    return [bad for bad in (*ALWAYS_BAD, *kinds) if not (bad == "null" and key in MAY_BE_NULL)]


def bad_overrides_of_sample() -> Iterator[str]:
    with hydra.initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
        for key, value in hydra.compose("sample").items():
            yield f"{key}x={value}"
            for bad in bad_values(key, value):
                if not (key == "out" and bad in ("null", "no_such_thing")):
                    yield f"{key}={bad}"


def is_of_another_kind(overrides: tuple[str, ...]) -> bool:
    """Whether it is a number's setting, and what it is given no number in any range."""
    key, _, bad = overrides[-1].partition("=")
    return (*overrides[:-1], f"{key}={OUT_OF_RANGE}") in ALL and bad in {*BAD_NUMBERS, *ALWAYS_BAD} - {OUT_OF_RANGE}


ALL = dict.fromkeys(bad_overrides())
OF_ANOTHER_KIND = [overrides for overrides in ALL if is_of_another_kind(overrides)]
OVERRIDES = [overrides for overrides in ALL if not is_of_another_kind(overrides)]


def test_there_are_at_least_150() -> None:
    assert len(OVERRIDES) >= 150
    assert len(OF_ANOTHER_KIND) >= 150


@pytest.mark.parametrize("overrides", OVERRIDES, ids=" ".join)
def test_is_one_line_that_names_the_setting_and_writes_nothing(
    run: Callable[..., Result], tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    result = run("train", *overrides)
    assert result.status == 2, result.err
    (line,) = result.err.strip().splitlines()
    assert overrides[-1].split("=")[0] in line
    assert "Traceback" not in line
    assert not list(tmp_path.iterdir())


def test_what_is_of_another_kind_is_refused_by_name() -> None:
    """As the command does before anything slow starts. Composed once a choice, which takes a fifth of a second."""
    parser = OverridesParser.create()
    for chosen, group in itertools.groupby(OF_ANOTHER_KIND, key=lambda overrides: overrides[:-1]):
        config = composed(*chosen)
        for *_, override in group:
            key, changed = override.partition("=")[0], config.copy()
            OmegaConf.update(changed, key, parser.parse_overrides([override])[0].value(), merge=False)
            with pytest.raises(ArgumentError, match=rf"^{re.escape(key)} accepts"):
                command_line._check(train.Settings, changed)


@pytest.mark.parametrize("override", list(bad_overrides_of_sample()))
def test_the_same_of_sample(run: Callable[..., Result], tmp_path: Path, override: str) -> None:
    result = run("sample", "run=no_such_run", override)
    assert result.status == 2, result.err
    (line,) = result.err.strip().splitlines()
    assert line.startswith(f"sample.py: {override.split('=')[0]} accepts")
    assert "Traceback" not in line
    assert not list(tmp_path.iterdir())
