"""Answers to a few forget questions: the true one, the untouched model's, every method's, the retrained model's (table 3).

Which questions are shown is fixed by their place, never by the answers. Texts come from the runs' `generations.jsonl`,
questions and true answers from the store's `questions` folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from harness.storage.record_files import Question
from harness.storage.store import Store
from plots import _select
from plots._select import ARMS, LAST, OTHER, PROTOCOLS, Group

if TYPE_CHECKING:
    import pandas as pd

QUESTIONS = 4
"""How many are shown."""
LONGEST = 140
"""Characters of an answer that Markdown and LaTeX show; CSV has all of them."""
RULE = "forget authors that lie evenly apart in the data, each with a question further down its list, whatever was answered"


@figure("samples")
def samples(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Sheet]:
    """A table for each group of comparable runs and each form."""
    store = Store(options.results)
    made: dict[str, Sheet] = {}
    lacking: list[Group] = []
    for group in _select.groups(runs, ("forget_quality",), "this table"):
        ends = LAST.pick(group.points)
        spec = store.read(ends["folder"].iloc[0]).spec
        asked = _chosen(store.questions(spec))
        if not asked:
            lacking.append(group)
            continue
        methods = ends[~ends["method"].isin(ARMS)]
        forms = [form for form in PROTOCOLS if (methods["protocol"] == form).any()] or [OTHER] * bool(len(methods))
        for form in forms:
            speaking = _speaking(methods[methods["protocol"] == form])
            arms = {arm: _speaking(ends[ends["method"] == arm]) for arm in ARMS}
            missing = [arm for arm in ARMS if not arms[arm]]
            who = [*arms["untouched"], *speaking, *arms["retrained"]]
            notes = [
                f"Shown: {RULE}.",
                f"{form} form, {LAST.name}, lowest seed; greedy answers, cut after {LONGEST} characters (not in the CSV).",
                *(f"{arm}: no answers recorded. {_select.advice(group.bench, group.model, arm)}" for arm in missing),
                *group.notes,
            ]
            sheet = _sheet(store, asked, who, f"Answers to forget questions, {form} form: {group.title}", notes)
            if sheet is not None:
                made[f"{group.name}-{form.replace(' ', '-')}"] = sheet
            else:
                lacking.append(group)
    if not made:
        where = lacking[0] if lacking else Group("", "", str(runs["bench"].iloc[0]), str(runs["model"].iloc[0]), runs, ())
        raise UsageError(
            f"no questions and answers are recorded for {where.bench} with {where.model}. "
            f"{_select.advice(where.bench, where.model, 'untouched,retrained,kfade')} --results {options.results}"
        )
    left = sorted({f"{group.bench} with {group.model}" for group in lacking})
    told = [f"No questions and answers are recorded for {', '.join(left)}."] if left else []
    return {name: replace(sheet, notes=[*sheet.notes, *told]) for name, sheet in made.items()}


def _chosen(asked: Sequence[Question]) -> list[Question]:
    """A few forget questions; see `RULE`."""
    of_author: dict[str, list[Question]] = {}
    for question in asked:
        if question.task == "forget":
            of_author.setdefault(str(question.cluster), []).append(question)
    authors = list(of_author.values())
    count = min(QUESTIONS, len(authors))
    chosen = [authors[i * len(authors) // count] for i in range(count)]
    return [questions[i * len(questions) // count] for i, questions in enumerate(chosen)]


def _speaking(ends: pd.DataFrame) -> list[Mapping[str, Any]]:
    """One run for each method: that of the lowest seed."""
    first = ends.sort_values(["method", "seed", "folder"], kind="stable").drop_duplicates("method")
    return [dict(row) for row in first.to_dict("records")]


def _sheet(
    store: Store, asked: Sequence[Question], who: Sequence[Mapping[str, Any]], caption: str, notes: Sequence[str]
) -> Sheet | None:
    """Question by question, everybody's answer; None if nobody's text is recorded."""
    import pandas as pd

    texts = [(run, store.texts(run["folder"], int(run["index"]))) for run in who]
    lines = []
    for question in asked:
        told = {"question": question.question, "row": question.row}
        lines.append({**told, "who": "true answer", "run": "", "answer": str(question.answer)})
        for run, said in texts:
            answer = said.get(tuple(question.turns))
            if answer is not None:
                lines.append({**told, "who": run["method"], "run": run["run"], "answer": answer})
    if len(lines) == len(asked):
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
