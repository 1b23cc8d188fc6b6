"""What worker processes need: to end with their parent, and to leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType

from harness.core.signals import SIGNALS


def prepare_for_workers() -> None:
    """Called before the first worker is begun: what multiprocessing counts its resources with outlives a lost terminal.

    It passes over Ctrl-C and SIGTERM by itself, but SIGHUP would end it before its parent, which then begins another and
    complains of it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_the_script() -> Iterator[None]:
    """Processes that are begun inside do not read the script that begins them.

    Python has each one read it again. A script of a few lines, without `if __name__ == "__main__":`, would ask for its run in
    each, and each would wait for the process that waits for it.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def reads_the_script() -> bool:
    """Whether this is a worker that is reading the script which began it, as a sweep's must: methods may stand in it."""
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def follow_parent() -> None:
    """Called first in a worker: Ctrl-C is the parent's to handle, and a parent that is killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent:
            parent.join()
            os._exit(1)

    # A parent that is killed outright cannot tell its workers; without this they would wait for work for ever.
    threading.Thread(target=leave_with_parent, daemon=True).start()
