"""What worker processes need: to end with their parent, and to leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

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
