"""The page's glossary: every metric with what it says, the references, every method with its paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness.core.evaluator import metric_of
from harness.core.method import METHODS
from harness.reading.equal_damage_section import EqualDamageSection
from harness.reading.formats import arrow
from harness.reading.rows import REFERENCE_METHODS, Section

REFERENCES = (
    ("untouched", "the model before unlearning: it knows everything"),
    ("retrained", "a model that never met the forget set: where unlearning should lead"),
    ("noise floor", "what two retrained models differ by; a method at or under it cannot be told from retraining: a tie"),
)
"""What methods are measured against."""


class Term(NamedTuple):
    """A metric of the glossary."""

    name: str
    """As recorded, with its arrow."""
    title: str
    """Its heading."""
    about: str
    """What it says."""


class Source(NamedTuple):
    """A method of the glossary."""

    method: str
    """Its name."""
    source: str
    """Its paper, as the method names it."""
    link: str
    """The paper's address; empty where the method names none."""


def terms(tables: Iterable[Section | EqualDamageSection]) -> list[Term]:
    """The metrics of some tables that are declared here, in the tables' order."""
    names = dict.fromkeys(metric for section in tables for metric in section.metrics)
    declared = [match[1] for name in names if (match := metric_of(name))]
    return [Term(f"{metric.name} {arrow(metric.better)}".strip(), metric.title, metric.about) for metric in declared]


def sources(methods: Sequence[str]) -> list[Source]:
    """The papers of those methods that are installed here; references have none."""
    known = [name for name in methods if name in METHODS.names() and name not in REFERENCE_METHODS]
    return [Source(name, (source := METHODS.get(name).source), paper(source)) for name in known]


def paper(source: str) -> str:
    """The address of a paper that is named by its arXiv number or its DOI; empty if it is by neither.

    >>> paper("arXiv:2602.10568"), paper("doi:10.1109/TVCG.2009.113"), paper("published weights")
    ('https://arxiv.org/abs/2602.10568', 'https://doi.org/10.1109/TVCG.2009.113', '')
    """
    if match := re.search(r"arXiv:(\d{4}\.\d{4,5})", source):
        return f"https://arxiv.org/abs/{match[1]}"
    if match := re.search(r"doi:(10\.\d+/[^\s;,]+)", source):
        return f"https://doi.org/{match[1]}"
    return ""
