"""A file is the old one or the new one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

import atomic
from atomic import locked, write_atomically


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


def test_a_file_that_another_program_has_open_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where it cannot be replaced meanwhile."""
    replace, refused = os.replace, []

    def refuse_twice(*paths: object) -> None:
        if len(refused) < 2:
            refused.append(paths)
            raise PermissionError(errno.EACCES, "in use")
        replace(*paths)

    monkeypatch.setattr(os, "replace", refuse_twice)
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "a", b"at once")
    refused.clear()
    monkeypatch.setattr(atomic, "PATIENCE", 60.0)
    write_atomically(tmp_path / "a", b"later")
    assert (tmp_path / "a").read_bytes() == b"later"
    assert len(refused) == 2


def test_a_file_system_may_know_neither_locks_nor_how_to_sync_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refused = os.fsync, []

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            refused.append(handle)
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert refused
    monkeypatch.setattr(atomic.fcntl, "flock", refuse)
    with open(tmp_path / "a") as file, locked(file.fileno(), wait=False):
        pass


def test_a_lock_is_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    with open(path) as first, open(path) as second:
        with locked(first.fileno(), wait=False), pytest.raises(BlockingIOError):
            locked(second.fileno(), wait=False).__enter__()
        with locked(second.fileno(), wait=False):
            pass
