"""A promise, whether it is kept, and how that is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness.core.errors import reason

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
        except Broken as error:
            broken = str(error)
        except Exception as error:
            log.debug("a check broke off", exc_info=True)
            broken = f"it breaks off ({reason(error)})"
        yield Outcome(check.plugin, check.promise, broken)
