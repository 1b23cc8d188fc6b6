"""The embedded chronicle: seeded texts of 200 words about nothing, some of which a model learns by heart.

It has the shape of the Training Data Extraction Challenge (Jang et al. 2023, arXiv:2210.01504): sequences of 200 tokens that
a model repeats word by word, among text of the same kind that it has read and does not repeat. Every word is drawn by itself
out of a short list, so that only a model that has seen a text can go on with it; a formula that many texts share is what even
an unseen text gives away, as licences and legal notices do in a real corpus.

    World(seed).memorised  ->  160 texts, each exactly 200 words and punctuation marks long
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from random import Random

from evals.benchmarks._words import words
from evals.benchmarks.tdec.chronicle_data import FORMULA, POOLS, SENTENCES, SENTENCES_OF_PARAGRAPH
from harness.core.streams import streams

LENGTH = 200
"""Tokens of a text: words and punctuation marks."""
DRAWS = 5
"""Forget sets of each size."""
MEMORISED = 160
"""Texts that are learnt by heart: five forget sets of 32 that share none."""
READ = 2400
"""Texts of the same kind that are read now and then."""
GUARDING = 128
"""How many of them may guard what is kept."""
UNSEEN = 32
"""Texts that no model has read: what the thresholds are measured on."""
GENERAL = 64
"""Further ones: what is kept is measured on them."""


class World:
    """One seed's texts.

    Args:
        seed: any integer; `mini@K` is the world of seed K.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _texts(self, kind: str, count: int) -> list[str]:
        rng = streams(self.seed, "chronicle", kind).python()
        return [_text(rng) for _ in range(count)]

    @cached_property
    def memorised(self) -> list[str]:
        """Texts that are learnt by heart."""
        return self._texts("memorised", MEMORISED)

    @cached_property
    def read(self) -> list[str]:
        """Texts that are read; the first `GUARDING` of them may guard what is kept."""
        return self._texts("read", READ)

    @cached_property
    def unseen(self) -> list[str]:
        """Texts that no model has read."""
        return self._texts("unseen", UNSEEN)

    @cached_property
    def general(self) -> list[str]:
        """Likewise."""
        return self._texts("general", GENERAL)

    def draw(self, size: int, number: int) -> list[int]:
        """Which of the memorised texts are to be forgotten: the draws of up to 32 share none.

        Args:
            size: of the forget set.
            number: of the draw, from 0.
        """
        order = list(range(MEMORISED))
        streams(self.seed, "chronicle", "draws").python().shuffle(order)
        start = number * MEMORISED // DRAWS
        return sorted((order[start:] + order[:start])[:size])


def _text(rng: Random) -> str:
    """Sentences, cut where the text is long enough."""
    parts: list[str] = []
    while len(parts) < LENGTH:
        sentence = FORMULA if rng.randrange(SENTENCES_OF_PARAGRAPH + 1) == 0 else rng.choice(SENTENCES)
        parts += words(re.sub(r"\{(\w+)\}", lambda match: rng.choice(POOLS[match[1]]), sentence))
    return _joined(parts[:LENGTH])


def _joined(parts: Sequence[str]) -> str:
    """Words as text, without a blank before a punctuation mark."""
    return re.sub(r" ([.,?])", r"\1", " ".join(parts))


def vocabulary() -> list[str]:
    """All words and punctuation marks."""
    fixed = (word for sentence in (*SENTENCES, FORMULA) for word in words(re.sub(r"\{\w+\}", "", sentence)))
    return sorted({*fixed, *(word for pool in POOLS.values() for word in pool)})
