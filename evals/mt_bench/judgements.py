"""The judge's verdicts and their ratings, as a table."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from evals import _judge
from evals._judge_server import Unavailable
from evals.mt_bench.answers import request, thinks_from_the_start
from evals.mt_bench.fastchat import FOLDER, TURNS, judge_prompt, read
from harness.core.evaluator import EvalContext
from harness.numerics.thoughts import without_thoughts

if TYPE_CHECKING:
    import pandas as pd

NO_RATING = -1.0
"""What a verdict without a rating counts as (FastChat); it is left out of every mean."""
_RATING = r"(\d{1,9}(?:\.\d{0,9})?)"
"""No more digits than any scale has: FastChat's own pattern takes for ever on a million of them."""


def ratings_of(verdict: str) -> list[float]:
    """Every `[[number]]` of what a verdict says after its thoughts; where there is none, every `[number]`."""
    said = without_thoughts(verdict)
    ratings = re.findall(rf"\[\[{_RATING}\]\]", said) or re.findall(rf"\[{_RATING}\]", said)
    return [float(number) for number in ratings]


def rating(verdict: str) -> float:
    """The last of a verdict's ratings, else −1 (FastChat's `common.py` takes the first)."""
    return (ratings_of(verdict) or [NO_RATING])[-1]


def judged(context: EvalContext) -> pd.DataFrame:
    """One row for each repetition, question and turn.

    `judge_rating` (−1 if the verdict holds none, NaN if there are no verdicts), `judge_text`, `judge_model`; `judge_absent`
    says why there is no verdict on this answer, `judge_failure`, on every row, why the judge was given up; `only_thoughts`: no
    answer came after the thoughts.
    """
    import pandas as pd

    plan, judge = context.plan, context.plan.judge
    assert judge is not None  # `measure` asks for no table without one
    files = read(plan.data_dir, plan.limit)
    rows: list[dict[str, Any]] = []
    prompts: list[_judge.Prompt] = []
    begun = thinks_from_the_start(context.tokenizer)
    for repetition in range(judge.repetitions):
        for question in files.questions:
            requests = [request(plan, context.tokenizer, question, turn, repetition) for turn in TURNS]
            said = [context.generations[each] for each in requests]
            answers = [without_thoughts(text, begun) for text in said]
            for turn in TURNS:
                prompts.append(judge_prompt(files, question, turn, answers, repetition))
                only_thoughts = bool(said[turn - 1].strip()) and not answers[turn - 1]
                about = {"task": FOLDER, "row": len(rows), "cluster": str(question.number), "category": question.category}
                answered = {"turn": turn, "repetition": repetition, "chat": requests[0].chat, "only_thoughts": only_thoughts}
                rows.append(about | answered)
    try:
        verdicts, failure = _judge.verdicts(judge, prompts, context.cache), ""
    except Unavailable as error:
        verdicts, failure = [], str(error)
        context.unfinished.append(failure)
        _judge.log.warning("mt_bench is absent for this model: %s", failure)  # hours of unlearning may follow
    if absent := [verdict.absent for verdict in verdicts if verdict.absent]:
        context.unfinished.append(f"{len(absent)} of {len(verdicts)} verdicts are missing: {absent[0]}")
        _judge.log.warning("mt_bench: %s", context.unfinished[-1])
    given = pd.DataFrame(
        {
            "judge_rating": [rating(v.text) for v in verdicts] or [math.nan] * len(rows),
            "judge_text": [v.text for v in verdicts] or [""] * len(rows),
            "judge_model": [v.model for v in verdicts] or [""] * len(rows),
            "judge_absent": [v.absent for v in verdicts] or [""] * len(rows),
            "judge_failure": failure,
        }
    )
    return pd.concat([pd.DataFrame(rows), given], axis=1)
