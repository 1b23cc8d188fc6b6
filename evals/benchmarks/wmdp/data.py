"""What a benchmark of hazardous knowledge consists of, whether embedded (`embedded.py`) or real (`real.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from harness.core.config import JSON
from harness.core.options import Retain
from harness.core.problem import Row, Stage
from harness.core.text import Example

T = TypeVar("T")

GUARDS: Mapping[Retain, str] = {"neighbours": "neighbouring texts", "general": "general texts"}
"""What is in a stage's retain set: both in turn, or one of them alone."""


@dataclass(frozen=True)
class WmdpData:
    """Texts to forget and to retain, and the questions."""

    stages: Sequence[Stage]
    """What is forgotten one after the other, each with the texts that guard it."""
    questions: Mapping[str, Sequence[Row]]
    """Name of a set → its rows, numbered."""
    digests: Mapping[str, JSON]
    """Name → digest of a set of questions or of a corpus."""
    attacks: Mapping[str, Sequence[Example]]
    """What a fine-tuning attack may train on."""
    generation_budget: int
    """Most tokens of an answer."""
    notes: Sequence[str] = ()
    """What a reader of the results should know."""
    general: Sequence[Example] = ()
    """Text of no stage and no metric."""
    general_clusters: Sequence[str] = ()
    """What each of these is about, where that is known."""


def retain_kinds(retain: Retain) -> list[Retain]:
    """The kinds of texts that guard a stage, in turn."""
    return [kind for kind in GUARDS if retain in ("all", kind)]


def in_turn(*groups: Sequence[T]) -> list[T]:
    """The first of each, then the second of each, …."""
    return [item for item in chain.from_iterable(zip_longest(*groups)) if item is not None]


def texts(documents: Sequence[str]) -> tuple[Example, ...]:
    """Documents as texts without a prompt."""
    return tuple(Example("", document) for document in documents)


def numbered(rows: Sequence[Row], cluster: str = "") -> list[Row]:
    """Rows as evaluators want them: their position, the cluster they rise and fall with, and the question with its answer."""
    kept = ("question", "choices", "answer", "task")
    return [
        {"row": i, "cluster": str(row.get(cluster, i)), **{k: row[k] for k in kept if k in row}} for i, row in enumerate(rows)
    ]
