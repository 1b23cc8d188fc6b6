"""Two short texts compared by their words, as SQuAD compares answers (arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def words(text: str) -> list[str]:
    """A text's words in lower case, without ASCII punctuation, and then without articles.

    >>> words("The cat's on  a MAT.")
    ['cats', 'on', 'mat']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(said: str, true: str) -> float:
    """Harmonic mean of the shares of said words that are true and of true words that are said, each as often as both have it.

    >>> token_f1("a red red house", "the red house!"), token_f1("", "house"), token_f1("", "")
    (0.8, 0.0, 0.0)
    """
    ours, theirs = Counter(words(said)), Counter(words(true))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0
