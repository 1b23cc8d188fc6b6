"""What a worker process needs: to end with its parent, and to leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


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
