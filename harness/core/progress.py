"""How far something is: a bar on a terminal, and elsewhere, such as in a log file, a plain line every half a minute."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY = 2.0
"""Seconds before there is a bar at all."""
VARIABLE = "HARNESS_PROGRESS"
"""Says which: `auto`, `bar`, `plain` or `none`; `--progress` sets it, so that worker processes know it too."""
EVERY = 30.0
"""Seconds between plain lines."""


def progress_bar(
    items: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None, leave: bool = False
) -> tqdm[Any]:
    """Progress on stderr; with TQDM_DISABLE set there is none.

    Args:
        items: what is gone through; None where `update` says how far it is.
        desc: what is done.
        unit: what is counted.
        total: how many there are, where that is known.
        leave: whether a bar stays when it is done.
    """
    return tqdm(items, desc=desc, unit=unit, total=total, **style(leave))


def style(leave: bool = False) -> dict[str, Any]:
    """What decides how tqdm shows progress here, for bars that others make."""
    chosen = os.environ.get(VARIABLE, "auto")
    if chosen == "none":
        return {"disable": True}
    if chosen == "bar" or (chosen == "auto" and sys.stderr.isatty()):
        return {"delay": DELAY, "leave": leave}
    # Whoever updates seldom is asked by tqdm's own thread, at the latest when the next line is due.
    line = "{desc}: {n_fmt} of {total_fmt} ({unit}), {elapsed}, about {remaining} left"
    return {
        **{"delay": EVERY, "mininterval": EVERY, "maxinterval": EVERY, "leave": False},
        **{"bar_format": line, "file": _Lines()},
    }


class _Lines:
    """stderr for a bar that is no bar: what tqdm writes over itself becomes lines."""

    def write(self, text: str) -> int:
        """Text without what moves to the beginning of a line, or to the one above, and what wipes it out."""
        if line := text.replace("\x1b[A", "").strip(" \r\n"):
            sys.stderr.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        """As stderr."""
        sys.stderr.flush()
