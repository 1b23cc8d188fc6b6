"""A promise, whether it is kept, and how that is told."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UsageError, reason
from harness.core.plugins import plugin_files

log = logging.getLogger(__name__)


class Broken(AssertionError):
    """A promise that a plug-in does not keep, in one sentence."""


def keep(kept: object, otherwise: str) -> None:
    """Go on if a promise is kept.

    Raises:
        Broken: with the sentence, otherwise.
    """
    if not kept:
        raise Broken(otherwise)


def _place(error: BaseException) -> str:
    """The line of a plug-in's file that an error comes from, if it comes from one."""
    files = {str(file) for file in plugin_files()}
    frames = [frame for each in (error, error.__cause__) if each for frame in traceback.extract_tb(each.__traceback__)]
    lines = [f", {Path(frame.filename).name} line {frame.lineno}" for frame in frames if frame.filename in files]
    return lines[-1] if lines else ""


@dataclass(frozen=True)
class Check:
    """One promise of one plug-in."""

    plugin: str
    """Kind and name, such as `method noise`."""
    promise: str
    """What is promised."""
    run: Callable[[], None]
    """Raises `Broken` if it is not kept."""


@dataclass(frozen=True)
class Outcome:
    """How a check went."""

    plugin: str
    """Kind and name."""
    promise: str
    """What is promised."""
    broken: str = ""
    """What is wrong, in one sentence; empty if it is kept."""

    def __str__(self) -> str:
        return f"{'FAIL' if self.broken else 'ok'}  {self.plugin}: {self.promise}" + (f": {self.broken}" if self.broken else "")


def outcomes(checks: Iterable[Check]) -> Iterator[Outcome]:
    """One after the other; what one comes to does not stop the next."""
    for check in checks:
        broken = ""
        try:
            check.run()
        except (Broken, UsageError) as error:
            broken = str(error)
        except Exception as error:
            log.debug("a check broke off", exc_info=True)
            broken = f"it breaks off ({reason(error)}{_place(error)})"
        yield Outcome(check.plugin, check.promise, broken)
