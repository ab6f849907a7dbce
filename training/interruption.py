"""Ctrl-C, SIGTERM and what a launcher sends, noted when they come and acted on when it is safe."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import NoReturn

__all__ = ["SIGPIPE", "Interrupted", "Interruption", "exit_as_ever", "exit_quietly", "stop_signals"]

OF_LAUNCHERS = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]  # not on Windows
SIGPIPE = getattr(signal, "SIGPIPE", 13)  # missing on Windows; sent when the reader of what is said has left


def exit_quietly() -> None:
    """From now on Ctrl-C and SIGTERM end the process at once: a traceback through its imports would say nothing."""
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == default:
            signal.signal(number, lambda number, _: os._exit(128 + number))


def exit_as_ever() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt and SIGTERM Interrupted, unless they were to be ignored."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, terminate)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """What SIGTERM does where no run notes it, or the second time."""
    raise Interrupted(number, "stopped")


def stop_signals() -> list[int]:
    """SIGINT and SIGTERM, except where ignored, as SIGINT is in processes that a script starts in the background.

    Also SIGUSR1 or SIGUSR2 if a launcher handles it, as submitit does to queue a job again at its time limit.
    """
    asked = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    return asked + [number for number in OF_LAUNCHERS if callable(signal.getsignal(number))]


class Interrupted(SystemExit):
    """A signal has stopped the work, and all that was to be kept is saved. Exit status 128 + signal: 130 or 143."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)
        self.number, self.message = number, message

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return Interrupted, (self.number, self.message)  # to be sent from process to process


class Interruption:
    """While entered, the signals of `stop_signals` only set `number`; a second one acts at once, as ever.

    On leaving, the signal is raised again if it came after the last look at `number`, or if an error ended the work
    first and the handler before was that of a sweep, which would otherwise start its next run, or of a launcher, which
    would otherwise not queue this run again.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.getsignal(number) for number in stop_signals()}  # all, before one is noted
        for number in self._previous:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        handler = self._previous.get(self.number)
        of_others = callable(handler) and handler not in (signal.default_int_handler, terminate)
        unseen = error is None and self.number is not None
        if unseen or (isinstance(error, Exception) and of_others):
            signal.raise_signal(self.number)  # or a sweep would go on with its next run, and a launcher not queue this

    def hand_on(self) -> None:
        """Let a launcher have its signal, now that all is saved."""
        if self.number in OF_LAUNCHERS:
            signal.raise_signal(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
