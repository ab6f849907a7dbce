"""A file is the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atomic import write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_may_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fsync, own = tmp_path / "a", os.fsync, os.getpid()

    def let_another_write(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
        write_atomically(path, b"another's")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", let_another_write)
    write_atomically(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_content_is_there(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
