"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from arguments import ArgumentError
from atomic import write_atomically
from training.diagnosis import first_line

__all__ = ["belonging_together", "load_checkpoint", "save_checkpoint"]

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, of tensors, numbers, texts, lists and dicts; `path` is always whole, the old or the new."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(folder: Path, setting: str) -> dict[str, Any]:
    """Read `folder`'s checkpoint.pt, on the host. No code in the file is ever run.

    Args:
        setting: name of the setting that led here, for the error.

    Raises:
        ArgumentError: there is no checkpoint of this project in `folder`, or it cannot be read.
    """
    path, accepts = folder / "checkpoint.pt", "a folder written by train.py, with its checkpoint.pt"
    if not path.is_file():
        raise ArgumentError(setting, accepts, f"{str(folder)!r}, which has no checkpoint.pt")
    try:
        data = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(data) as archive:  # what torch.save writes; its own reader lets damage pass
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        data.seek(0)
        state = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that anyone may have written, the readers raise whatever they meet
        raise ArgumentError(setting, accepts, f"{str(path)!r}, which cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ArgumentError(setting, accepts, f"{str(path)!r}, which is not a checkpoint of format {FORMAT}")
    return state


@contextlib.contextmanager
def belonging_together(folder: Path, setting: str) -> Iterator[None]:
    """Turn what fails inside, on a checkpoint that is not of the configuration beside it, into an ArgumentError."""
    try:
        yield
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        accepts = "a folder whose files are all of one run, as train.py left them"
        raise ArgumentError(setting, accepts, f"{str(folder)!r}: {first_line(error)}") from error
