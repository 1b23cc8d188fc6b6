"""Fluency: perplexity by the model before unlearning, variety and repetition, against sums by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evals import fluency
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, GenerationRequest, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.statistics.measurements import measurements
from tests.conftest import TEMPLATE, WORLD, ContextMaker, Nano

TEXTS = ["Who is it", "it is it is it is it is", "", "Mia", "is is", "Mia is it .", "it it it it it", "a b", "c", "who who who"]


def context_of(context: UnlearningContext, texts: Sequence[str] = TEXTS, references: Sequence[Reference] = ()) -> EvalContext:
    asked = fluency.requests(EvalPlan(context.problem), context.tokenizer)
    assert len(asked) == len(texts)
    return EvalContext(context, EvalPlan(context.problem), references, generations=dict(zip(asked, texts, strict=True)))


def measured(context: EvalContext) -> Mapping[str, Any]:
    return {item.metric: item for item in measurements(EVALUATORS.get("fluency"), context)}


@pytest.mark.parametrize(
    ("text", "one", "two", "four"),
    [
        ("a b c d", 1, 1, 1),
        ("a a a a", 1 / 4, 1 / 3, 1),
        ("a b a b a b", 2 / 6, 2 / 5, 2 / 3),
        ("a  b\nc", 1, 1, math.nan),
        ("a", 1, math.nan, math.nan),
        ("", math.nan, math.nan, math.nan),
    ],
)
def test_distinct_grams_are_counted(text: str, one: float, two: float, four: float):
    assert [fluency.distinct(text, n) for n in (1, 2, 4)] == pytest.approx([one, two, four], nan_ok=True)


def test_variety_and_repetition_are_means_over_answers_long_enough(nano_context: UnlearningContext):
    found = measured(context_of(nano_context))
    for metric, n, of in (("fluency_distinct_1", 1, 1), ("fluency_distinct_2", 2, 1), ("fluency_repetition", 4, -1)):
        shares = [fluency.distinct(text, n) for text in TEXTS if len(text.split()) >= n]
        mean = sum(shares) / len(shares)
        assert found[metric].value == pytest.approx(mean if of > 0 else 1 - mean)
        assert found[metric].n == len(shares)
        assert f"{len(TEXTS) - len(shares)} of 10 answers are too short" in found[metric].note
    assert (
        found["fluency_distinct_2"].interval_95[0]
        < found["fluency_distinct_2"].value
        < found["fluency_distinct_2"].interval_95[1]
    )
    assert found["fluency_distinct_2"].resampled == "row"
    assert found["fluency_repetition"].interval_95 is None, "three answers have four words"


def uninstructed(problem: Problem) -> Problem:
    """The problem with its retain questions alone to be answered."""
    return replace(problem, questions={name: rows for name, rows in problem.questions.items() if name != "instructions"})


def test_perplexity_is_that_of_the_model_before_by_hand(nano: Nano, nano_problem: Problem, make_context: ContextMaker):
    import torch

    context = make_context(problem=uninstructed(nano_problem))
    with torch.no_grad():
        context.model.lm_head.weight.mul_(3)  # the model that is measured has moved; the one before is asked
    found = measured(context_of(context))["fluency_perplexity"]
    before, nats, tokens = nano.model(0), 0.0, 0
    for row, text in zip(context.problem.questions["retain"], TEXTS, strict=True):
        if text:
            prompt = TEMPLATE.prompt(row["question"])
            start, ids = len(nano.tokenizer(prompt)["input_ids"]), nano.tokenizer(f"{prompt} {text}")["input_ids"]
            with torch.no_grad():
                log_p = before(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats -= sum(float(log_p[t - 1, ids[t]]) for t in range(start, len(ids)))
            tokens += len(ids) - start
    assert found.value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.n == 9
    assert found.better == "lower"


def test_the_answers_are_the_very_ones_that_rouge_asks_for(nano_context: UnlearningContext):
    from evals import rouge  # noqa: F401 (registers it)
    from harness.core.evaluator import EVALUATORS

    plan = EvalPlan(uninstructed(nano_context.problem))
    asked = EVALUATORS.get("rouge").requests(plan, nano_context.tokenizer)
    assert set(fluency.requests(plan, nano_context.tokenizer)) < set(asked)


def test_instructions_are_asked_where_the_task_has_them(nano_problem: Problem, make_context: ContextMaker):
    rows = [{"row": i, "cluster": str(i), "question": row["question"]} for i, row in enumerate(WORLD.full[:6])]
    problem = replace(nano_problem, questions={**nano_problem.questions, "instructions": rows})
    context, plan = make_context(problem=problem), EvalPlan(problem)
    assert fluency.requests(plan, context.tokenizer) == [
        GenerationRequest((TEMPLATE.prompt(row["question"]),), request.sampling)
        for row, request in zip(rows, fluency.requests(plan, context.tokenizer), strict=True)
    ]
    eval_context = context_of(context, TEXTS[:6])
    assert measured(eval_context)["fluency_perplexity"].n == 5
    assert set(eval_context.tables["fluency"]["task"]) == {"instructions"}


@pytest.mark.parametrize("text", ["", "Mia"])
def test_a_model_that_falls_silent_has_no_number_and_the_reason(nano_context: UnlearningContext, text: str):
    found = measured(context_of(nano_context, [text] * 10))
    absent = {name: item.reason for name, item in found.items() if isinstance(item, Absent)}
    short = {"fluency_distinct_2": "no answer has two words", "fluency_repetition": "no answer has four words"}
    silent = {"fluency_perplexity": "every answer is empty", "fluency_distinct_1": "every answer is empty"}
    assert absent == (short if text else short | silent)


def test_a_task_without_questions_has_no_number(nano_problem: Problem, make_context: ContextMaker):
    context = make_context(problem=replace(nano_problem, questions={}))
    assert {item.reason for item in measurements(EVALUATORS.get("fluency"), context_of(context, []))} == {  # type: ignore[union-attr]
        "there are no retain questions and no instructions"
    }


def test_numbers_stand_beside_those_of_the_retrained_models(nano_context: UnlearningContext):
    references = []
    for name, texts in (("retain-0", ["a b c d"] * 10), ("retain-1", ["a a a a a"] * 10)):
        other = context_of(nano_context, texts)
        measurements(EVALUATORS.get("fluency"), other)
        references.append(Reference(name, other.tables))
    found = measured(context_of(nano_context, references=references))["fluency_repetition"]
    assert isinstance(found, Measurement)
    assert (found.reference, found.across_references, found.floor) == (0, (0, 0.5), 0.5)


def test_greedy_babble_is_likely_to_the_model_that_babbles_and_repeats_itself(nano: Nano, make_context: ContextMaker):
    """What a model itself finds likeliest has a lower perplexity than words in any order."""
    from harness.numerics.generation import HFGenerator

    context = make_context()
    greedy = HFGenerator().generate(
        context.model, context.tokenizer, fluency.requests(EvalPlan(context.problem), context.tokenizer)
    )
    words = [str(word) for row in WORLD.full[:20] for word in str(row["answer"]).split()]
    draw = np.random.default_rng(0)
    shuffled = [" ".join(draw.choice(words, len(text.split()) or 1)) for text in greedy]
    likely, unlikely = (measured(context_of(context, texts))["fluency_perplexity"].value for texts in (greedy, shuffled))
    assert likely < unlikely / 2
