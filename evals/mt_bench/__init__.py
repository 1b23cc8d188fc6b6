"""MT-Bench: how well a model answers 80 questions of two turns each, as a judge grades it from 1 to 10.

Follows lm-sys/FastChat `llm_judge` (`gen_model_answer.py`, `gen_judgment.py` in mode single, `common.py`, `show_result.py`;
arXiv:2306.05685): temperatures by category, 1,024 tokens an answer, reference answers in the prompts for math, reasoning and
coding, the `[[rating]]` of a verdict, ratings pooled over questions and turns, verdicts without one left out. One
repetition answers and judges everything once; repetitions differ in what is drawn (categories with a temperature) and in the
judge's own noise.

It departs from FastChat in five things. A model's thoughts are taken off its answers before the judge sees them, and a
judge's off its verdicts (`harness/numerics/thoughts.py`). Of several ratings in a verdict the last one counts, where FastChat
takes the first: a judge that reasons weighs some before it comes to its own. A conversation is rendered by the tokenizer's
own template instead of FastChat's copies of them (zephyr's begins there with an empty system message); a tokenizer that has
none gets the benchmark's template, and an empty line between the answer and the second turn. Answers are drawn from the whole
distribution, whatever top-k or top-p the checkpoint suggests. Each answer has random numbers of its own, seeded by the
repetition.

Questions, reference answers and judge prompts are FastChat's files (`fastchat.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from evals import _judge
from evals.mt_bench.answers import request
from evals.mt_bench.fastchat import TURNS, read
from evals.mt_bench.judgements import NO_RATING, judged, ratings_of
from harness.core.config import JSON
from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, evaluator
from harness.core.metric import Metric, Number, Plain, Rows

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""2: thoughts are not judged, and the last rating of a verdict counts."""
SCALE = (1.0, 10.0)
TABLE = "judgements"
MEAN = Metric(
    "mt_bench",
    title="MT-Bench",
    unit="rating",
    better="higher",
    about="how well 80 questions of two turns are answered, as a judge rates it",
    range=SCALE,
    cluster="question",
)
STANDARD_ERROR = Metric(
    "mt_bench_standard_error",
    title="MT-Bench, s.e.",
    unit="rating",
    better=None,
    about="by how much the mean rating would move if all were answered and judged again",
    statistic=Plain("it says how certain mt_bench is", compared=False),
)
METRICS = (
    MEAN,
    *(
        replace(
            MEAN,
            name=f"mt_bench_turn_{turn}",
            title=f"MT-Bench, turn {turn}",
            about=f"the mean rating of answers to turn {turn}",
            part=str(turn),
        )
        for turn in TURNS
    ),
    STANDARD_ERROR,
)


def requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """For every repetition and question the first answer, then the second; none where there is no judge."""
    judge = plan.judge
    if judge is None:
        return []
    questions = read(plan.data_dir, plan.limit).questions
    return [request(plan, tokenizer, q, turn, n) for n in range(judge.repetitions) for q in questions for turn in TURNS]


def _inputs(plan: EvalPlan) -> dict[str, JSON]:
    judge = plan.judge
    if judge is None:
        return {}
    digests = read(plan.data_dir, plan.limit).digests
    return {**_judge.identity(judge), "repetitions": judge.repetitions, **digests}


def _check(context: EvalContext) -> None:
    if judge := context.plan.judge:
        _judge.check(judge)


@evaluator("mt_bench", version=VERSION, metrics=METRICS, requests=requests, before=_check, evaluator_inputs=_inputs)
def measure(context: EvalContext, metric: Metric) -> Rows | Number:
    """`mt_bench`, the mean rating; `mt_bench_turn_1`, `mt_bench_turn_2`; `mt_bench_standard_error` over repetitions."""
    judge = context.plan.judge
    if judge is None:
        raise LookupError("no judge was given: --judge openai:MODEL or vllm:MODEL, and FastChat's files by --data-dir")
    table = context.table(TABLE, judged)
    _rated(table)
    if metric is STANDARD_ERROR:
        return _standard_error(table)
    if metric.part:
        table = table[table["turn"] == int(metric.part)]
    rated = _rated(table)
    note = None if metric.part else _note(table, judge.name)
    return Rows(rated["judge_rating"].to_numpy(dtype=float), rated["cluster"].to_numpy(), note=note)


def _rated(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with a rating.

    Raises:
        LookupError: if the judge gave up, or none of its verdicts holds one; why.
    """
    if failure := next(iter(table["judge_failure"]), ""):
        raise LookupError(failure)
    rated = table[table["judge_rating"] != NO_RATING]
    if rated.empty:
        raise LookupError(f"none of the judge's {len(table)} verdicts holds a rating")
    return rated


def _standard_error(table: pd.DataFrame) -> Number:
    """By how much the mean of all repetitions would move if they were done again: s / √n of the repetitions' means."""
    means = _rated(table).groupby("repetition")["judge_rating"].mean().to_numpy(dtype=float)
    if len(means) < 2:
        raise LookupError("it takes two repetitions or more: --judge-repetitions")
    return Number(float(means.std(ddof=1) / math.sqrt(len(means))), len(means))


def _note(table: pd.DataFrame, judge: str) -> str:
    """Who judged, and what a reader could stumble over."""
    ratings = table["judge_rating"].to_numpy(dtype=float)
    without = int((ratings == NO_RATING).sum())
    outside = int(((ratings != NO_RATING) & ((ratings < SCALE[0]) | (ratings > SCALE[1]))).sum())
    remarks = [f"judged by {judge}, which answered as {', '.join(sorted(set(table['judge_model'])))}"]
    if (repetitions := table["repetition"].nunique()) > 1:
        remarks.append(f"{repetitions} repetitions")
    if without:
        missing = table.loc[table["judge_absent"] != "", "judge_absent"]
        why = f", {len(missing)} of them because there is no verdict ({missing.iloc[0]})" if len(missing) else ""
        remarks.append(f"{without} of {len(ratings)} verdicts hold no rating and are left out{why}")
    if several := sum(len(set(ratings_of(text))) > 1 for text in table["judge_text"]):
        remarks.append(f"{several} verdicts hold several different ratings: the last one counts")
    if unanswered := int(table["only_thoughts"].sum()):
        remarks.append(f"{unanswered} answers are thoughts that came to no end: the judge was shown an empty answer")
    if outside:
        remarks.append(f"{outside} ratings lie outside 1 to 10 and count as given")
    if not table["chat"].all():
        remarks.append("the tokenizer has no chat template: the benchmark's own was taken")
    return "; ".join(remarks)
