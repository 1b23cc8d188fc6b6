"""Answers to a few forget questions: the true one, the untouched model's, every method's, the retrained model's (table 3).

Which questions are shown is fixed by their place, never by the answers. Texts and questions are those on
record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.recorded import Question, Recorded
from plots import _select
from plots._select import LAST, REFERENCES, Group, without_references

if TYPE_CHECKING:
    import pandas as pd

QUESTIONS = 4
"""How many are shown."""
LONGEST = 140
"""Characters of an answer that Markdown and LaTeX show; CSV has all of them."""
RULE = "forget authors that lie evenly apart in the data, each with a question further down its list, whatever was answered"


@figure("samples")
def samples(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Sheet]:
    """A table for each group of comparable runs and each preset."""
    recorded = Recorded(options.results)
    made: dict[str, Sheet] = {}
    lacking: list[Group] = []
    for group in _select.groups(runs, ("forget_quality",), "this table"):
        of_group = _of_group(group, recorded)
        made |= of_group
        if not of_group:
            lacking.append(group)
    if not made:
        where = lacking[0] if lacking else Group("", "", str(runs["bench"].iloc[0]), str(runs["model"].iloc[0]), runs, ())
        raise UsageError(
            f"no questions and answers are recorded for {where.bench} with {where.model}. "
            f"{_select.advice(where.bench, where.model, 'untouched,retrained,kfade')} --results {options.results}"
        )
    left = sorted({f"{group.bench} with {group.model}" for group in lacking})
    note = [f"No questions and answers are recorded for {', '.join(left)}."] if left else []
    return {name: replace(sheet, notes=[*sheet.notes, *note]) for name, sheet in made.items()}


def _of_group(group: Group, recorded: Recorded) -> dict[str, Sheet]:
    """A table for each preset of which texts are on record."""
    ends = LAST.pick(group.points)
    questions = _chosen(recorded.questions(ends["folder"].iloc[0]))
    methods = without_references(ends)
    made: dict[str, Sheet] = {}
    for protocol in _select.protocols_of(methods) if questions else ():
        references = {name: _speaking(ends[ends["method"] == name]) for name in REFERENCES}
        missing = [name for name in REFERENCES if not references[name]]
        who = [*references["untouched"], *_speaking(methods[methods["preset"] == protocol]), *references["retrained"]]
        heading = _select.heading(protocol)
        notes = [
            f"Shown: {RULE}.",
            f"{heading}, {LAST.name}, lowest seed; greedy answers, cut after {LONGEST} characters (not in the CSV).",
            *(f"{name}: no answers recorded. {_select.advice(group.bench, group.model, name)}" for name in missing),
            *group.notes,
        ]
        sheet = _sheet(recorded, questions, who, f"Answers to forget questions, {heading}: {group.title}", notes)
        if sheet is not None:
            made[f"{group.name}-{protocol.replace(' ', '-')}"] = sheet
    return made


def _chosen(questions: Sequence[Question]) -> list[Question]:
    """A few forget questions; see `RULE`."""
    of_author: dict[str, list[Question]] = {}
    for question in questions:
        if question.task == "forget":
            of_author.setdefault(str(question.cluster), []).append(question)
    authors = list(of_author.values())
    count = min(QUESTIONS, len(authors))
    chosen = [authors[i * len(authors) // count] for i in range(count)]
    return [of[i * len(of) // count] for i, of in enumerate(chosen)]


def _speaking(ends: pd.DataFrame) -> list[Mapping[str, Any]]:
    """One run for each method: that of the lowest seed."""
    first = ends.sort_values(["method", "seed", "folder"], kind="stable").drop_duplicates("method")
    return [dict(row) for row in first.to_dict("records")]


def _sheet(
    recorded: Recorded, questions: Sequence[Question], who: Sequence[Mapping[str, Any]], caption: str, notes: Sequence[str]
) -> Sheet | None:
    """Question by question, everybody's answer; None if nobody's text is recorded."""
    import pandas as pd

    texts = [(run, recorded.texts(run["folder"], int(run["index"]))) for run in who]
    lines = []
    for question in questions:
        place = {"question": question.question, "row": question.row}
        lines.append({**place, "who": "true answer", "run": "", "answer": str(question.answer)})
        for run, answers in texts:
            answer = answers.get(tuple(question.turns))
            if answer is not None:
                lines.append({**place, "who": run["method"], "run": run["run"], "answer": answer})
    if len(lines) == len(questions):
        return None
    numbers = pd.DataFrame(lines)
    repeated = numbers["question"].eq(numbers["question"].shift())
    shown = pd.DataFrame(
        {
            "question": numbers["question"].mask(repeated, ""),
            "who": numbers["who"],
            "answer": [_cut(text) for text in numbers["answer"]],
        }
    )
    return Sheet(numbers, shown, caption, notes)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return "(nothing)" if not text else text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"
