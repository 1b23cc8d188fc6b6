"""One question that was to be forgotten, and what each method's model answers, before and after; from recorded texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.core.evaluator import metric_of
from harness.reading.compared import Run
from harness.reading.rows import REFERENCE_METHODS, Section
from harness.storage.store import Store


@dataclass(frozen=True)
class Answers:
    """A question with its answers."""

    question: str
    """What was asked."""
    truth: str
    """What the data say."""
    references: Sequence[tuple[str, str]]
    """Reference → its answer; the untouched one's is the answer before."""
    methods: Sequence[tuple[str, str, str]]
    """Method, protocol and answer after unlearning, in the table's order."""


def answers_of(section: Section, store: Store) -> Answers | None:
    """The answers to the first question of the set that was to be forgotten, never one picked by its answers.

    Of each row's runs the first one counts. None where no method's answers are on record, or not what was asked.
    """
    match = metric_of(section.roles.forgetting[0]) if section.roles.forgetting else None
    rows = [row for row in section.rows if row.method not in REFERENCE_METHODS]
    if match is None or not rows:
        return None
    questions = [q for q in store.questions(rows[0].runs[0].spec) if q.task == match[1].part]
    if not questions:
        return None
    first, turns = questions[0], tuple(questions[0].turns)
    ends = {
        row.method: text
        for row in section.rows
        if row.method in REFERENCE_METHODS and (text := _text(row.runs[0], store, turns))
    }
    after = [(row.method, row.protocol, text) for row in rows if (text := _text(row.runs[0], store, turns))]
    references = [(name, ends[name]) for name in REFERENCE_METHODS if ends.get(name)]
    return Answers(first.question, first.answer, references, after) if after else None


def _text(run: Run, store: Store, turns: tuple[str, ...]) -> str:
    return store.texts(run.folder, run.index).get(turns, "")
