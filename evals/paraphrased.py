"""Whether what was forgotten is still there in other words: the forget questions and answers, paraphrased.

Two paraphrases are given with ToFU's forget rows, of the answer and of the question (`paraphrased_answer`,
`paraphrased_question`; the embedded world has a third way to ask and to tell each fact, in which the authors to forget are in
no training text):

    paraphrased_answer_probability     exp(−loss per token) of the paraphrased answer behind the question
    paraphrased_answer_rouge           ROUGE-L recall of the paraphrased answer in the greedy answer to the question
    paraphrased_question_probability   exp(−loss per token) of the answer behind the paraphrased question
    paraphrased_question_rouge         ROUGE-L recall of the answer in the greedy answer to the paraphrased question

The first two are open-unlearning's `forget_Q_A_PARA_Prob` and `forget_Q_A_PARA_ROUGE`, the others its `forget_Q_A_Prob` and
`forget_Q_A_ROUGE` under `question_key=paraphrased_question` (`configs/eval/tofu_metrics`). The first one is made of the losses
that ToFU's own metrics rest on. Asked for by `--evals +paraphrased`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from harness.core.config import JSON
from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, evaluator, rows_of
from harness.core.metric import Metric, Rows
from harness.core.problem import Row
from harness.data.rows import fingerprint

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


def _metric(name: str, title: str, unit: str, about: str) -> Metric:
    return Metric(
        f"paraphrased_{name}",
        title=title,
        unit=unit,
        better="closer",
        better_alone="lower",
        about=about,
        range=(0.0, 1.0),
        part="forget",
        cluster="author",
    )


METRICS = (
    _metric(
        "answer_probability",
        "P paraphrased answer",
        "probability per token",
        "how likely the forget answer is in other words, per token",
    ),
    _metric(
        "answer_rouge",
        "ROUGE paraphrased answer",
        "ROUGE-L recall",
        "how much of the forget answer in other words the greedy answer repeats",
    ),
    _metric(
        "question_probability",
        "P paraphrased question",
        "probability per token",
        "how likely the forget answer is behind its question in other words, per token",
    ),
    _metric(
        "question_rouge",
        "ROUGE paraphrased question",
        "ROUGE-L recall",
        "how much of the forget answer the greedy answer to its question in other words repeats",
    ),
)


def _reworded(plan: EvalPlan) -> Sequence[Row]:
    """The forget rows with their questions in other words; none where there are no such questions."""
    if plan.of is None or not (wordings := plan.of.paraphrased_questions.get("forget")):
        return ()
    return [{**row, "question": question} for row, question in zip(plan.questions["forget"], wordings, strict=True)]


def _requests(plan: EvalPlan, tokenizer: PreTrainedTokenizerBase) -> list[GenerationRequest]:
    """A greedy answer to each forget question as it stands, and to each in other words."""
    other = replace(plan, of=replace(plan.problem, questions={"forget": _reworded(plan)}))
    return [request for each in (plan, other) for request in _tofu.task_requests(each, "forget", tokenizer)]


def _inputs(plan: EvalPlan) -> Mapping[str, JSON]:
    """A digest of the questions in other words, which are not among the problem's own."""
    rows = _reworded(plan)
    return {"questions": fingerprint(rows)} if rows else {}


@evaluator("paraphrased", version=1, metrics=METRICS, requests=_requests, evaluator_inputs=_inputs)
def measure(context: EvalContext, metric: Metric) -> Rows:
    """A number for each forget row."""
    if metric.name == "paraphrased_answer_probability":
        return _tofu.paraphrase_probability(context)
    rows = rows_of(context.table("paraphrases", _build), "forget", metric.name)
    return Rows(rows[metric.name].to_numpy(dtype=float), rows["cluster"].to_numpy())


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per forget question: the three numbers that ToFU's own tables do not hold."""
    import pandas as pd

    rows, reworded = context.plan.questions.get("forget", ()), _reworded(context.plan)
    if not rows:
        raise LookupError("there are no forget rows")
    generation_requests = _requests(context.plan, context.tokenizer)
    answers = [context.generations[request] for request in generation_requests]
    plain, others = answers[: len(rows)], answers[len(rows) :]
    columns: dict[str, Sequence[float] | np.ndarray] = {}
    if all("paraphrased_answer" in row for row in rows):
        columns["paraphrased_answer_rouge"] = [
            _tofu.rouge_recall(row["paraphrased_answer"], text)[1] for row, text in zip(rows, plain, strict=True)
        ]
    if reworded:
        columns["paraphrased_question_probability"] = _probabilities(context, reworded)
        columns["paraphrased_question_rouge"] = [
            _tofu.rouge_recall(row["answer"], text)[1] for row, text in zip(reworded, others, strict=True)
        ]
    keys = {"task": "forget", "row": [row["row"] for row in rows], "cluster": [row["cluster"] for row in rows]}
    return pd.DataFrame({**keys, **columns})


def _probabilities(context: EvalContext, rows: Sequence[Row]) -> np.ndarray:
    """[n] exp(−loss per token) of the true answers."""
    from harness.data.rows import pad_id
    from harness.numerics.likelihood import answer_nll

    template = context.problem.template
    encoded = _tofu.encoded_texts(context, [template.example(row["question"], row["answer"]) for row in rows])
    context.costs.count(sum(len(each.input_ids) for each in encoded))
    nats, tokens = answer_nll(context.model, encoded, pad_id(context.tokenizer))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.exp(-nats / tokens))
