"""The errors that are part of the interface, and the hint that helps: the nearest name."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

LONGEST_MESSAGE = 400
"""Characters of a message; a longer one quotes something that nobody wants to read in full."""
LONGEST_VALUE = 100
"""Characters of a value in a message."""
LONGEST_LIST = 160
"""Characters of a list of names; of a longer one the nearest few are told."""
NEAREST = 5
"""Names that are told where one is not known and there are many."""


_SECRET = re.compile(r"(?<=://)[^/\s@]+(?=@)|\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}")
"""A name and password in an address; tokens by how they begin."""
_SECRET_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """A message in which keys, tokens and passwords are replaced: messages are printed, logged and recorded."""
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name, "").strip()
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, f"${name}")
    return _SECRET.sub("…", text)


def cut(text: str, most: int = LONGEST_VALUE) -> str:
    """A text of at most so many characters: of a longer one the beginning and the end, and how much is left out."""
    if len(text) <= most:
        return text
    first, last = 2 * most // 3, most // 3
    return f"{text[:first]}… ({len(text) - first - last:,} characters left out) …{text[-last:]}"


class UsageError(Exception):
    """What was asked cannot be done as asked; the message says why, in one sentence, and the way out.

    The command line prints the message without a traceback and leaves with exit code 2. What a message quotes is cut, and
    secrets in it are replaced.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(without_secrets(message), LONGEST_MESSAGE))


class Diverged(Exception):
    """A loss, gradient or step that is not finite, or steps that train nothing. The run is failed and keeps its points."""


class RunFailed(Exception):
    """A run that broke off by itself; its record says why and keeps its points."""


def reason(error: Exception) -> str:
    """What to tell of an error: the message of one of these, with its kind before it of any other."""
    message = str(error) if isinstance(error, UsageError | Diverged | RunFailed) else f"{type(error).__name__}: {error}"
    return without_secrets(message)


def unknown(kind: str, name: str, known: Iterable[str], listing: str = "") -> UsageError:
    """The error for a name that nobody knows: the nearest known one, then all of them, or the nearest few of many.

    Args:
        kind: what is called so.
        name: as given.
        known: all names of the kind.
        listing: the command that lists them all.
    """
    names, name = sorted(known), cut(name)
    alike = {each.lower(): each for each in names}  # KFADE is near kfade
    near = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.5)
    hint = f" Did you mean '{cut(alike[near[0]])}'?" if near else ""
    shown = names if len(", ".join(names)) <= LONGEST_LIST else sorted(difflib.get_close_matches(name, names, NEAREST, 0.0))
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    where = f"; {listing} tells of all" if listing else ""
    return UsageError(
        f"no {kind} called '{name}'.{hint} There are: {cut(', '.join(shown), LONGEST_LIST) or 'none'}{more}{where}."
    )
