"""C sources, compiled when first needed, and the threads that run them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

__all__ = ["CompileError", "alone_in_threads", "in_threads", "library", "program", "shares"]

HEADER = Path(__file__).with_name("vectors.h")  # that all sources include
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-shared")


class CompileError(RuntimeError):
    """The C library cannot be made here."""


_threads_alone: int | None = None  # while `alone_in_threads`


@contextlib.contextmanager
def alone_in_threads() -> Iterator[None]:
    """While entered, compiled code has all the threads that torch has, and torch's own operations have one.

    In a training step, what is left to torch is too small to split among threads. Torch's threads, which spin while
    they wait for the next operation, would take cores from compiled code: steps would take a third longer.
    """
    global _threads_alone
    if _threads_alone is not None:
        yield
        return
    before = torch.get_num_threads()
    _threads_alone = before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads_alone = None


def shares(batch: int, chunk: int, least: int) -> list[tuple[int, int]]:
    """Cut `range(batch)` into at most one part per thread, each but the last of whole chunks and at least `least` long.

    The parts depend only on the arguments and the number of threads, so that sums over them have a fixed order.
    """
    share = max(-(-batch // (_threads_alone or torch.get_num_threads())), least)
    share = -(-share // chunk) * chunk
    return [(begin, min(begin + share, batch)) for begin in range(0, max(batch, 1), share)]  # of nothing one, empty


def in_threads(parts: list[tuple[int, int]], work: Callable[[int, int, int], int]) -> list[int]:
    """Call `work(begin, end, number)` for every part, the first in this thread; return what the calls return.

    Raises:
        MemoryError: a call returns 0.
    """
    others = [_pool().submit(work, *part, number) for number, part in enumerate(parts) if number > 0]
    try:
        done = [work(*parts[0], 0), *(other.result() for other in others)]
    except BaseException:  # Ctrl-C, say
        concurrent.futures.wait(others)  # they work on what is freed when the caller gives up
        raise
    if not all(done):
        raise MemoryError("no memory for compiled code to work in")
    return done


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    most = max(32, os.cpu_count() or 1)  # they are started when first needed
    return concurrent.futures.ThreadPoolExecutor(most, thread_name_prefix="compiled")


if hasattr(os, "register_at_fork"):  # a child has none of the pool's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def library(source: Path, dtype: torch.dtype, *definitions: str) -> ctypes.CDLL:
    """The library of a C source for one dtype, compiled unless an earlier run has left it in the user's cache.

    Raises:
        CompileError: this is Windows, there is no C compiler, it fails, the library cannot be stored or loaded, or
            `dtype` is neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise CompileError(f"compiled code computes in float32 and float64, not in {dtype}")
    if dtype == torch.float64:
        definitions = (*definitions, "-DDOUBLE")
    if os.name == "nt":  # compilers there do not align the stack as AVX needs it
        raise CompileError("nothing is compiled on Windows itself; its Linux (WSL) has all")
    compiler = shlex.split(os.environ.get("CC", "")) or [name for name in ("cc", "gcc", "clang") if program(name)][:1]
    if not compiler or not program(compiler[0]):
        hint = "; xcode-select --install brings one" if sys.platform == "darwin" else ""
        raise CompileError(f"there is no C compiler ({' '.join(compiler) or 'cc, gcc or clang'}){hint}")
    command = [*compiler, *FLAGS, *definitions]
    texts = [path.read_text(encoding="utf-8") for path in (HEADER, source)]
    try:
        made_from = [*texts, *command, _version(tuple(compiler)), _processor()]
        key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:32]
        try:
            return _loaded(command, source, _cache() / f"{source.stem}-{key}.so")
        except OSError:  # a full disk, or one where nothing may be executed
            return _loaded(command, source, Path(_own_folder().name) / f"{source.stem}-{key}.so")
    except OSError as error:
        raise CompileError(f"what was compiled cannot be kept or loaded: {error}") from error


def program(name: str) -> str | None:
    """Where the program `name` is; None if it is not there."""
    path = shutil.which(name)
    if path is not None and sys.platform == "darwin" and path.startswith("/usr/bin/") and not _has_developer_tools():
        return None  # what stands in for it would open a window that offers to install it
    return path


@functools.cache
def _has_developer_tools() -> bool:
    return subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False).returncode == 0


def _loaded(command: list[str], source: Path, path: Path) -> ctypes.CDLL:
    if not path.exists():
        _compile(command, source, path)
    return ctypes.CDLL(str(path))


def _compile(command: list[str], source: Path, path: Path) -> None:
    # Compiled in a temporary folder and then renamed, since another process may be compiling the same library: whatever
    # is at `path` is complete.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, tempfile.TemporaryDirectory() as elsewhere:
        made, linked = Path(folder) / path.name, Path(elsewhere) / path.name
        for native in (["-march=native"], ["-mcpu=native"], []):  # compilers differ in the name, by processor
            done = subprocess.run(
                [*command, *native, f"-I{HEADER.parent}", "-o", str(linked), str(source), "-lm"],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode == 0:
                shutil.copyfile(linked, made)  # a full disk is an OSError here, to the linker an error like any other
                with made.open("rb") as file:
                    os.fsync(file.fileno())
                made.replace(path)
                return
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    raise CompileError(f"{command[0]} fails: {next((line for line in lines if 'error' in line), lines[0])}")


@functools.cache
def _cache() -> Path:
    """Where compiled libraries are kept: the user's cache folder, or one of this process where there is none."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "residual-flows"
        folder.mkdir(parents=True, exist_ok=True)  # one that is there need not be writable: what it has may be all
        return folder
    except (OSError, RuntimeError):  # no home, or one that cannot be written, is no reason to compute slowly
        return Path(_own_folder().name)


@functools.cache
def _own_folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when the process ends."""
    return tempfile.TemporaryDirectory(prefix="residual-flows-")


@functools.cache
def _version(compiler: tuple[str, ...]) -> str:
    command = [*compiler, "--version"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout


@functools.cache
def _processor() -> str:
    """What tells processors and C libraries apart, for the cache key: machines that differ may share a cache."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))]
    named = flags[:1] or [platform.version()]  # which names a Mac's chip
    return "\0".join([platform.machine(), *platform.libc_ver(), *named])
