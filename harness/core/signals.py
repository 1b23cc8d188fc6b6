"""SIGTERM and SIGHUP end a command as Ctrl-C does: what runs is marked and cleaned up, and the exit status is the shell's.

A cluster's scheduler sends the first, a terminal that is lost the second.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a command, besides Ctrl-C."""
SECONDS_TO_CLEAN_UP = 10.0
"""How long a further signal is passed over, so that it does not break off what the first one began."""


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end; handled wherever Ctrl-C is.

    Args:
        number: the signal's.
        reason: for the record of what was running.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


_received: list[tuple[int, float]] = []
"""The signals that this process was ended by, and when."""


def exit_status() -> int:
    """What a shell expects of a command that was ended: 128 and the number of the signal, Ctrl-C's if no other came."""
    return 128 + (_received[0][0] if _received else signal.SIGINT)


def stop_on_signals(reason: str = "") -> None:
    """From now on, raise `Stopped` in the main thread when a signal asks to end; a signal that is ignored (nohup) stays so.

    Args:
        reason: for the record of what was running; the signal's name if not given.
    """
    terminals = [number for number in (0, 1, 2) if _is_terminal(number)]

    def stop(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if _received and now - _received[-1][1] < SECONDS_TO_CLEAN_UP:
            return
        _received.append((number, now))
        if signal.Signals(number).name == "SIGHUP":
            _leave(terminals)
        raise Stopped(number, reason or f"ended by {signal.Signals(number).name}")

    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def ignore_signals() -> None:
    """Leave the signals that end a command to the process that started this one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Whatever is done inside, afterwards signals are handled as before: some libraries install handlers of their own."""
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}  # None: C code's
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread, where no handler can have been changed
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_terminal(number: int) -> bool:
    with suppress(OSError):
        return os.isatty(number)
    return False


def _leave(terminals: list[int]) -> None:
    """Write to nowhere instead of to a terminal that is gone: there even a progress bar's last line is an error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # the last one where the signal came in the middle of a write
            stream.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
