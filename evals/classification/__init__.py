"""What a language model still knows apart from what it forgot: nine classification sets, and their mean (LoKU's "reasoning").

The sets are those that unlearning of memorised texts is judged by: LAMBADA, PIQA, HellaSwag, ARC-Easy, ARC-Challenge, COPA,
Winogrande, MathQA and PubMedQA (Jang et al. 2023, arXiv:2210.01504, public code joeljang/knowledge-unlearning `Datasets.py` and
`models/Neo_Model.py`; LoKU, arXiv:2408.06621). No examples, no chat template, no template of the benchmark's: a choice is
scored by the sum of its tokens' log-likelihoods right behind its text, whatever its length (`sets.py` says what both are).

    correct_i = 1[ argmax_c Σ_t log p(token t of choice c | text i, tokens before) = answer i ]

LAMBADA has no choices: its last word must be what the model would say itself (`lambada.py`). lm-eval scores the choices, by a
task of our own for each set. The mean is over sets, each counting alike; where some are not there it says of how many.

Quirks of the public code, which are kept as they are; `--variant corrected` puts them right:

-  texts and choices are cut into tokens apart from one another. Corrected: together, as lm-eval does;
-  a text of more than 512 tokens is cut at its end, so that a long abstract loses its question. Corrected: at its beginning;
-  MathQA's options stand behind the problem without a blank, and an option ends at its own first comma. Corrected: both.

It departs from that code in taking all rows: there `limit_val_batches=1` leaves one batch of each set, unless it is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from evals import _lm_eval, _over_sets
from evals.classification.sets import SETS, Question, Questions, read_sets
from harness.core.config import JSON
from harness.core.evaluator import EvalContext, EvalPlan, evaluator
from harness.core.metric import Metric, Rows

if TYPE_CHECKING:
    import pandas as pd

TABLE = "classification"
LONGEST = 512
"""Tokens of a text with its choice."""
_TITLES = {
    "lambada": "LAMBADA",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "arc_easy": "ARC-Easy",
    "arc_challenge": "ARC-Challenge",
    "copa": "COPA",
    "winogrande": "Winogrande",
    "math_qa": "MathQA",
    "pubmed_qa": "PubMedQA",
}
METRICS = (
    _over_sets.metric(
        "reasoning_accuracy", "Reasoning", "share of rows", "mean accuracy on nine classification sets, each counting alike"
    ),
    *(
        _over_sets.metric(
            f"{name}_accuracy",
            _TITLES[name],
            "share of rows",
            "share of texts whose last word the model would say itself"
            if name == "lambada"
            else f"share of {_TITLES[name]} rows whose likeliest choice is the right one",
            part=name,
        )
        for name in SETS
    ),
)


def _sets(plan: EvalPlan) -> Mapping[str, Questions | str]:
    return read_sets(plan.data_dir, plan.variant == "corrected") if _over_sets.asks(plan) else {}


def _inputs(plan: EvalPlan) -> Mapping[str, JSON]:
    """The digests of the sets that are there."""
    return {name: of.digest for name, of in _sets(plan).items() if isinstance(of, Questions)}


@evaluator("classification", version=1, metrics=METRICS, evaluator_inputs=_inputs)
def measure(context: EvalContext, metric: Metric) -> Rows | list[Rows]:
    """Which rows of a set, or of all sets that are there, are answered right."""
    _over_sets.check_asked(context)
    table, sets = context.table(TABLE, _build), _sets(context.plan)
    missing = {name: of for name, of in sets.items() if isinstance(of, str)}
    rows = _over_sets.measured(table, metric, SETS, "correct", missing)
    of = sets.get(metric.part)
    if isinstance(rows, Rows) and isinstance(of, Questions) and of.left_out:
        return replace(rows, note=f"{of.left_out} further rows have another number of choices and are left out")
    return rows


def _build(context: EvalContext) -> pd.DataFrame:
    """One row per question: `correct` (NaN where a log-likelihood is not finite) and `choice` (the likeliest one's number)."""
    import pandas as pd

    sets = _sets(context.plan)
    questions = {name: of.rows[: context.plan.limit] for name, of in sets.items() if isinstance(of, Questions)}
    if not questions:
        raise LookupError(f"none of the {len(SETS)} sets is there; the first one: {next(iter(sets.values()))}")
    table: list[dict[str, Any]] = []
    for name, answers in _answers(context, questions).items():
        for number, (row, choice) in enumerate(zip(questions[name], answers, strict=True)):
            correct = np.nan if choice is None else float(choice == row.answer)
            place = {"task": name, "row": number, "cluster": str(number)}
            table.append({**place, "correct": correct, "choice": -1 if choice is None else choice})
    return pd.DataFrame(table)


def _answers(context: EvalContext, questions: Mapping[str, Sequence[Question]]) -> dict[str, list[int | None]]:
    """For each row of each set the number of its likeliest choice, or None where a number is not finite.

    Of a set with one choice it is 0 where that is what the model would say itself, else 1.
    """
    from evals.classification.lambada import last_words

    _lm_eval.check_texts(
        context, [row.context + choice for rows in questions.values() for row in rows for choice in row.choices]
    )
    with _lm_eval.quietly():
        from lm_eval.tasks import TaskManager

        lm = _lm_eval.language_model(context)
        lm._encode_pair = partial(_tokens, lm, context.plan.variant == "corrected")
        choices = {name: rows for name, rows in questions.items() if name != "lambada"}
        tasks = [_task(name, rows) for name, rows in choices.items()]
        sizes = {name: len(rows) for name, rows in choices.items()}
        manager = TaskManager(include_defaults=False)
        likelihoods = _lm_eval.log_likelihoods(context, lm, tasks, manager, sizes) if tasks else {}
        texts = [lm._encode_pair(row.context, row.choices[0]) for row in questions.get("lambada", ())]
    answers = {name: [_likeliest(nats) for nats in of] for name, of in likelihoods.items()}
    if texts:
        context.costs.count(sum(len(text) + len(word) for text, word in texts))
        said = last_words(context.model, context.tokenizer, texts)
        answers["lambada"] = [None if np.isnan(value) else int(not value) for value in said]
    return {name: answers[name] for name in questions}


def _task(name: str, rows: Sequence[Question]) -> dict[str, Any]:
    """lm-eval's task for a set: a choice right behind its text."""
    columns = _lm_eval.dataset(
        prompt=[row.context for row in rows], choices=[list(row.choices) for row in rows], answer=[row.answer for row in rows]
    )
    return _lm_eval.task_of_choices(name, columns, "")


def _likeliest(nats: Sequence[float]) -> int | None:
    return int(np.argmax(nats)) if np.isfinite(nats).all() else None


def _tokens(lm: Any, corrected: bool, context: str, choice: str) -> tuple[list[int], list[int]]:
    """The tokens of a text and of its choice, together at most `LONGEST`.

    Args:
        lm: lm-eval's model.
        corrected: cut both into tokens together, and a long text at its beginning.
        context: the text.
        choice: what follows it.
    """
    if corrected:
        before, behind = type(lm)._encode_pair(lm, context, choice)
    else:
        before, behind = lm.tok_encode(context)[:LONGEST], lm.tok_encode(choice, add_special_tokens=False)
    return before[-max(1, LONGEST - len(behind)) :], behind
