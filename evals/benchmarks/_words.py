"""The words of the embedded worlds' sentences."""

from __future__ import annotations

import re

_WORD = re.compile(r"[.,?]|[^\s.,?]+")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a sentence."""
    return _WORD.findall(text)
