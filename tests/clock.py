"""Time in tests, so that none passes or fails by how busy the machine is.

What a test waits for is an event, a file or a process, never a number of seconds; how long something may take is asked of the
processor time, or of a wait that would otherwise have no end.
"""

from __future__ import annotations

import time

A_HANG = 1800.0
"""Seconds after which what has not come will not come: a busy machine takes ten minutes over what takes one."""
SOON = 300.0
"""Seconds within which something ends that would otherwise go on for ever, or until `A_HANG`."""


class Clock:
    """The processor time of this process, which other processes do not lengthen, and what was passed on purpose."""

    def __init__(self) -> None:
        self._passed = 0.0

    def __call__(self) -> float:
        return time.process_time() + self._passed

    def sleep(self, seconds: float) -> None:
        """Let time pass without waiting."""
        self._passed += seconds
