"""Run folders that someone else may have written: nothing in them is run, and what is not whole is refused."""

from __future__ import annotations

import ast
import io
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arguments import ArgumentError
from tests.conftest import PROJECT, TINY, Result
from training.checkpoint import load_checkpoint
from training.density_grid import load_target

Run = Callable[..., Result]


@pytest.fixture
def folder(run: Run, made_once: Path, tmp_path: Path) -> Path:
    """The folder of a run that is done."""
    if not made_once.exists():
        result = run("train", *TINY, "trainer.plots=false", folder=made_once)
        assert result.status == 0, result.err
    return Path(shutil.copytree(made_once, tmp_path / "run"))


def refused(run: Run, folder: Path) -> None:
    """Both commands refuse the folder in one line, and leave it as it is."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for command in (("train", f"resume={folder}", "trainer.epochs=3"), ("sample", f"run={folder}")):
        result = run(*command)
        assert result.status == 2, result.err
        (line,) = result.err.strip().splitlines()
        assert line.startswith(f"{command[0]}.py: ")
        assert " accepts " in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("datasets.moons.Moons", "os.system"),
        ("datasets.moons.Moons", "hydra.utils.get_method"),
        ("datasets.moons.Moons", "training.checkpoint.save_checkpoint"),
        ("datasets.moons.Moons\n  noise: 0.1", "datasets.target.square\n  half: 1.0"),
        ("datasets.moons.Moons", "datasets.moons.torch.load"),
        ("datasets.moons.Moons", "datasets.moons._log_falling_integral"),
        ("datasets.moons.Moons", "${oc.env:HOME}"),
        ("datasets.moons.Moons", "${choices.data}"),
        ("noise: 0.1", "noise: {_target_: os.system, command: touch canary}"),
        ("noise: 0.1", "noise: [[{_target_: os.system, command: touch canary}]]"),
        ("noise: 0.1", "noise: 0.1\n  _convert_: all"),
        ("  estimator:\n", "  estimator:\n    more: {_target_: os.system}\n"),
        ("flows.residual_flow.ResidualFlow", "flows.flow.Flow"),
        ("flows.residual_flow.ResidualFlow", "subprocess.Popen"),
        ("seed: 0", "seed: 0\nmore: {_target_: os.system}"),
    ],
)
def test_a_stored_config_runs_nothing_foreign(run: Run, folder: Path, old: str, new: str) -> None:
    stored = (folder / "config.yaml").read_text()
    assert old in stored
    (folder / "config.yaml").write_text(stored.replace(old, new))
    refused(run, folder)


LONG = "a" * 300  # no name of a file: asking for it is an error, as it is below a folder that one may not enter


@pytest.mark.parametrize(
    ("script", "arguments", "setting"),
    [
        ("train", f"resume={LONG}", "resume"),
        ("train", f"-m resume={LONG}", "resume"),
        ("train", f"data=points data.path={LONG}", "data.path"),
        ("train", f"hydra.run.dir={LONG}", "hydra.run.dir"),
        ("sample", f"run={LONG}", "run"),
        ("sample", f"run=folder points={LONG}", "points"),
    ],
)
def test_a_path_that_cannot_be_asked_for_is_one_line(
    run: Run, tmp_path: Path, script: str, arguments: str, setting: str
) -> None:
    result = run(script, *arguments.split())
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert result.err.startswith(f"{script}.py: {setting} accepts ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked_for", ["n=10", "points=my.csv grid=5"])
@pytest.mark.parametrize("damage", ["cut", "changed", "a folder"])
def test_a_window_that_cannot_be_read_is_one_line_and_nothing_is_written(
    run: Run, folder: Path, damage: str, asked_for: str
) -> None:
    Path("my.csv").write_text("1,2\n3,4\n")
    path = folder / "densities" / "target.npz"
    if damage == "cut":
        path.write_bytes(b"PK\x03\x04 cut")
    elif damage == "changed":
        content = bytearray(path.read_bytes())
        content[30 + sum(struct.unpack_from("<2H", content, 26))] = 0xFF  # the first byte of what zlib reads
        path.write_bytes(content)
    else:
        path.unlink()
        path.mkdir()
    result = run("sample", f"run={folder}", "out=new", *asked_for.split())
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert result.err.startswith("sample.py: run accepts a folder whose files are all of one run")
    assert f"{path} cannot be read: " in result.err
    assert not Path("new").exists()


def test_a_target_cut_anywhere_or_with_a_bit_changed_is_refused_by_its_name(folder: Path) -> None:
    path, chance = folder / "densities" / "target.npz", random.Random(0)
    whole, refused = path.read_bytes(), []
    for attempt in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged if attempt % 2 else whole[: chance.randrange(len(whole))])
        try:
            load_target(folder)
        except ValueError as error:
            refused.append(str(error))
    assert all(reason.startswith(f"{path} cannot be read: ") for reason in refused)
    assert len(refused) > 180  # the others are of what says nothing, such as the time of writing


def leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path to every group and every setting."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def test_every_setting_of_a_stored_config_is_looked_at(run: Run, folder: Path) -> None:
    """Each in turn made a value of another kind."""
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    tried = 0
    for path in leaves(stored):
        if path == ("resume",):
            continue  # what is typed counts
        for bad in ({"a": 1}, [{"a": 1}]):
            damaged = yaml.safe_load((folder / "config.yaml").read_text())
            node = damaged
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = bad
            (folder / "config.yaml").write_text(yaml.safe_dump(damaged))
            result = run("train", f"resume={folder}")
            assert result.status == 2, (path, bad, result.err)
            assert len(result.err.strip().splitlines()) == 1
            assert path[0] in result.err
            tried += 1
        (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert tried > 80


APPLY = "a: !!python/object/apply:os.system ['touch canary']"


@pytest.mark.parametrize("text", ["", "3", "[1, 2]", "a: [", "\x00", APPLY, "flow: 1"])
def test_a_config_that_is_none_is_refused(run: Run, folder: Path, text: str) -> None:
    (folder / "config.yaml").write_text(text)
    refused(run, folder)


class Hostile:
    """Makes a folder when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize(
    "disguise", ["a value", "the whole", "a plain pickle", "torch's old format", "in place of the pickle"]
)
def test_a_checkpoint_with_code_is_refused(run: Run, folder: Path, tmp_path: Path, disguise: str) -> None:
    path, hostile = folder / "checkpoint.pt", Hostile(tmp_path / "canary")
    state = torch.load(path, weights_only=True)
    if disguise == "a value":
        torch.save({**state, "progress": hostile}, path)
    elif disguise == "the whole":
        torch.save(hostile, path)
    elif disguise == "a plain pickle":
        path.write_bytes(pickle.dumps({"format": 1, "x": hostile}))
    elif disguise == "torch's old format":
        torch.save({**state, "x": hostile}, path, _use_new_zipfile_serialization=False)
    else:
        whole = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(whole)) as archive, zipfile.ZipFile(path, "w") as written:
            for name in archive.namelist():
                data = pickle.dumps(hostile) if name.endswith("data.pkl") else archive.read(name)
                written.writestr(name, data)
    refused(run, folder)
    assert not (tmp_path / "canary").exists()


def test_a_checkpoint_cut_anywhere_or_with_a_byte_changed_is_refused(folder: Path) -> None:
    path, chance = folder / "checkpoint.pt", random.Random(0)
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(whole[: chance.randrange(len(whole))])
        with pytest.raises(ArgumentError, match=r"^run accepts a folder written by train\.py"):
            load_checkpoint(folder, "run")
    state, unseen = torch.load(io.BytesIO(whole), weights_only=True), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(folder, "run")
        except ArgumentError:
            continue
        # Padding between the parts of the file, which says nothing: what is loaded is what was saved.
        unseen += 1
        for part in ("flow", "average"):
            for name, weight in state["learner"][part].items():
                assert torch.equal(found["learner"][part][name], weight)
        assert found["progress"] == state["progress"]
    assert unseen < 60


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "foreign", "other format", "other architecture", "not finite", "no learner",
     "progress", "steps", "rows", "random state"],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused(run: Run, folder: Path, damage: str) -> None:
    path = folder / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    if damage == "foreign":
        state = {"weights": torch.zeros(3)}
    elif damage == "other format":
        state["format"] = 2
    elif damage == "not finite":
        for part in ("flow", "average"):
            state["learner"][part]["bijections.1.net.layers.0.weight"][0, 0] = torch.nan
    elif damage == "no learner":
        del state["learner"]
    elif damage == "progress":
        state["progress"]["more"] = 1
    elif damage == "steps":
        state["progress"]["epoch"] = "two"
    elif damage == "rows":
        state["progress"]["rows"] = 3
    elif damage == "random state":
        state["random_state"]["cpu"] = torch.zeros(3)
    torch.save(state, path)
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other architecture":
        config = (folder / "config.yaml").read_text().replace("width: 8", "width: 9")
        (folder / "config.yaml").write_text(config)
    only_for_training = damage in ("progress", "steps", "rows", "random state")
    if not only_for_training:
        refused(run, folder)
        return
    before = path.read_bytes()
    result = run("train", f"resume={folder}", "trainer.epochs=3")
    assert result.status == 2, result.err
    assert "resume accepts a folder whose files are all of one run, as train.py left them; got " in result.err
    assert path.read_bytes() == before


FORBIDDEN = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load")


def test_nothing_in_the_project_runs_what_it_reads() -> None:
    """No eval, no pickle, no loader of anything but weights, in all its code."""
    seen, others = 0, ("tests", "outputs", "multirun")
    for path in PROJECT.rglob("*.py"):
        if any(part in others or part.startswith(".") for part in path.relative_to(PROJECT).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None), *(name.name for name in node.names)]
                assert not {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"} & set(names), path
            if not isinstance(node, ast.Call):
                continue
            seen += 1
            function, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert function not in FORBIDDEN, (path, node.lineno)
            assert keywords.get("shell", "False") == "False", (path, node.lineno)
            assert keywords.get("allow_pickle", "False") == "False", (path, node.lineno)
            if function == "torch.load":
                assert keywords["weights_only"] == "True", (path, node.lineno)
            if function == "instantiate":
                assert path == PROJECT / "training" / "configuration.py"
    assert seen > 500
