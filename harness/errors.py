"""The errors that are part of the interface, and the hint that helps: the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_MESSAGE = 1500
"""Characters of a message; a longer one quotes something that nobody wants to read in full."""
LONGEST_VALUE = 200
"""Characters of a value in a message."""


def cut(text: str, most: int = LONGEST_VALUE) -> str:
    """A text of at most so many characters: of a longer one the beginning and the end, and how much is left out."""
    if len(text) <= most:
        return text
    first, last = 2 * most // 3, most // 3
    return f"{text[:first]}… ({len(text) - first - last:,} characters left out) …{text[-last:]}"


class UsageError(Exception):
    """What was asked cannot be done as asked; the message says why, in one sentence, and the way out.

    The command line prints the message without a traceback and leaves with exit code 2. What a message quotes is cut.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(message, LONGEST_MESSAGE))


class Diverged(Exception):
    """A loss, gradient or step that is not finite. The run is marked as failed and keeps its points."""


class RunFailed(Exception):
    """A run that broke off by itself; its record says why and keeps its points."""


def reason(error: Exception) -> str:
    """What to tell of an error: the message of one of these, with its kind before it of any other."""
    return str(error) if isinstance(error, UsageError | Diverged | RunFailed) else f"{type(error).__name__}: {error}"


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that nobody knows: the nearest known one, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UsageError(f"no {kind} called '{name}'.{hint} There are: {', '.join(names) or 'none'}.")
