"""open-unlearning's score and the paraphrased metrics, by hand on tables and on a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evals import _tofu, _token_scores
from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, GenerationRequest, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.statistics.measurements import measurements

ROWS = 6
ATTACKS = tuple(f"membership_{attack}" for attack in _token_scores.ATTACKS)


def keys(task: str, rows: int = ROWS) -> dict[str, Any]:
    return {"task": task, "row": range(rows), "cluster": [str(row) for row in range(rows)]}


def tables(seed: int, area: float) -> dict[str, pd.DataFrame]:
    """All that the score rests on; so large a share of the forget rows lies under all holdout rows."""
    rng = np.random.default_rng(seed)
    likelihood, answers = [], []
    for task in _tofu.TASKS:
        losses = rng.uniform(0.1, 2, (ROWS, 2))
        wrong = rng.uniform(1, 3, (ROWS, 5)).tolist()
        columns = {"avg_gt_loss": losses[:, 0], "avg_paraphrased_loss": losses[:, 1], "average_perturb_loss": wrong}
        likelihood.append(pd.DataFrame({**keys(task), **columns}))
        answers.append(pd.DataFrame({**keys(task), "rougeL_recall": rng.uniform(0.2, 1, ROWS)}))
    forget = {name: rng.uniform(0.1, 0.9, ROWS) for name in ("extraction_strength", "exact_memorisation")}
    scored = {name: [0.0 if row < ROWS * area else 2.0 for row in range(ROWS)] for name in ATTACKS}
    fluency = {"fluency_nll": rng.uniform(1, 3, ROWS), "fluency_tokens": [4.0] * ROWS}
    return {
        "likelihood": pd.concat(likelihood, ignore_index=True),
        "answers": pd.concat(answers, ignore_index=True),
        "forget_tokens": pd.DataFrame({**keys("forget"), **forget, **scored}),
        "holdout_tokens": pd.DataFrame({**keys("holdout"), **dict.fromkeys(ATTACKS, [1.0] * ROWS)}),
        "fluency": pd.DataFrame({**keys("retain"), **fluency}),
    }


def measured(context: EvalContext, name: str = "open_unlearning_score") -> Mapping[str, Any]:
    return {m.metric: m for m in measurements(EVALUATORS.get(name), context)}


def harmonic(*values: float) -> float:
    return len(values) / sum(1 / value for value in values)


def utility_of(found: Mapping[str, pd.DataFrame]) -> float:
    context = EvalContext(None, EvalPlan(), (), dict(found))
    return _tofu.utility(context)


def test_the_score_is_the_harmonic_mean_of_its_three():
    untouched, retrained, own = tables(0, 1.0), tables(1, 0.5), tables(2, 4 / 6)
    context = EvalContext(None, EvalPlan(), [Reference("retain-0", retrained)], own, untouched)
    found = measured(context)
    forget = own["likelihood"].query("task == 'forget'")
    p = np.exp(-forget["avg_paraphrased_loss"].to_numpy())
    q = np.exp(-np.array(forget["average_perturb_loss"].tolist()).mean(axis=1))
    tokens = own["forget_tokens"]
    memorisation = harmonic(
        1 - tokens["extraction_strength"].mean(),
        1 - tokens["exact_memorisation"].mean(),
        1 - p.mean(),
        1 - (p / (p + q + 1e-10)).mean(),
    )
    assert found["open_unlearning_memorisation"].value == pytest.approx(memorisation, rel=1e-12)
    assert found["open_unlearning_memorisation"].interval_95
    privacy = 1 - (4 / 6 - 0.5) / 0.5
    assert found["open_unlearning_privacy"].value == pytest.approx(privacy, rel=1e-12), "all four attacks alike"
    fluency = [np.exp(-of["fluency"]["fluency_nll"].sum() / (4.0 * ROWS)) for of in (own, untouched)]
    utility = harmonic(utility_of(own) / utility_of(untouched), fluency[0] / fluency[1])
    assert found["open_unlearning_utility"].value == pytest.approx(utility, rel=1e-12)
    assert found["open_unlearning_aggregate"].value == pytest.approx(harmonic(memorisation, privacy, utility), rel=1e-12)


def test_a_retrained_models_own_score_stands_beside_it():
    untouched, retrained = tables(0, 1.0), tables(1, 0.5)
    references = [Reference("retain-0", retrained)]
    beside = measured(EvalContext(None, EvalPlan(), references, tables(2, 4 / 6), untouched))
    own = measured(EvalContext(None, EvalPlan(), references, retrained, untouched))
    for name, number in own.items():
        assert beside[name].reference == pytest.approx(number.value, rel=1e-12)
    assert own["open_unlearning_privacy"].value == 1.0
    assert own["open_unlearning_aggregate"].value < 0.9


def test_the_untouched_model_has_all_of_its_own_utility():
    untouched = tables(0, 1.0)
    found = measured(EvalContext(None, EvalPlan(), [Reference("retain-0", tables(1, 0.5))], untouched, untouched))
    assert found["open_unlearning_utility"].value == pytest.approx(1.0)
    assert found["open_unlearning_privacy"].value == 0.0
    assert found["open_unlearning_aggregate"].value == 0.0


def test_what_is_missing_is_said():
    found = measured(EvalContext(None, EvalPlan(), (), tables(0, 1.0)))
    assert isinstance(found["open_unlearning_memorisation"], Measurement)
    assert "retrained model" in found["open_unlearning_privacy"].reason
    assert "untouched model" in found["open_unlearning_utility"].reason
    assert isinstance(found["open_unlearning_aggregate"], Absent)


@pytest.mark.parametrize("name", ["open_unlearning_score", "membership", "paraphrased"])
def test_a_models_tables_hold_all_that_others_are_compared_by(
    name: str, nano_context: UnlearningContext, nano_problem: Problem
):
    """Retrained models and the untouched one are measured by themselves, where nothing stands beside them."""
    evaluator, plan = EVALUATORS.get(name), EvalPlan(nano_problem)
    template = nano_problem.template
    rows = [row for rows in nano_problem.questions.values() for row in rows if isinstance(row["answer"], str)]
    answers = {template.prompt(row["question"]): row["answer"] for row in rows}
    said = {each: answers.get(each.turns[0], "x") for each in evaluator.requests(plan, nano_context.tokenizer)}
    context = EvalContext(nano_context, plan, (), generations=said)
    measurements(evaluator, context)
    known = dict(context.tables)
    beside = measured(EvalContext(None, plan, [Reference("retain-0", known)], known, known), name)
    assert all(isinstance(item, Measurement) for item in beside.values()), beside


@pytest.mark.parametrize("name", ["extraction_strength", "exact_memorisation", "membership", "paraphrased"])
def test_a_benchmark_without_forget_questions_has_no_such_number(
    name: str, nano_context: UnlearningContext, nano_problem: Problem
):
    """Also in definitions that ToFU's own metrics do not have."""
    problem = replace(nano_problem, questions={"bio": nano_problem.questions["bio"]}, holdout=None, paraphrased_questions={})
    context = EvalContext(replace(nano_context, problem=problem), EvalPlan(problem, variant="corrected"), ())
    found = measured(context, name)
    assert found
    assert all(isinstance(item, Absent) for item in found.values())


# ---------------------------------------------------------------- in other words


def test_paraphrases_are_scored_as_their_formulas_say(nano_context: UnlearningContext, nano_problem: Problem):
    plan, tokenizer, template = EvalPlan(nano_problem), nano_context.tokenizer, nano_problem.template
    rows, wordings = nano_problem.questions["forget"], nano_problem.paraphrased_questions["forget"]

    def loss(question: str, answer: str) -> float:
        example = template.example(question, answer)
        prompt = tokenizer(example.prompt)["input_ids"]
        ids = [*tokenizer(example.prompt + example.tag + answer)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            log_p = nano_context.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        return -float(np.mean([log_p[t - 1, ids[t]] for t in range(len(prompt), len(ids))]))

    evaluator = EVALUATORS.get("paraphrased")
    requests = evaluator.requests(plan, tokenizer)
    said: dict[GenerationRequest, str] = {}
    for row, wording in zip(rows, wordings, strict=True):
        for request in requests:
            if request.turns[0] == template.prompt(row["question"]):
                said[request] = row["paraphrased_answer"]
            elif request.turns[0] == template.prompt(wording):
                said[request] = " ".join(row["answer"].split()[:3])
    found = measured(EvalContext(nano_context, plan, (), generations=said), "paraphrased")
    values = {name: item.value for name, item in found.items()}
    assert values["paraphrased_answer_probability"] == pytest.approx(
        np.mean([np.exp(-loss(row["question"], row["paraphrased_answer"])) for row in rows]), rel=1e-4
    )
    assert values["paraphrased_question_probability"] == pytest.approx(
        np.mean([np.exp(-loss(wording, row["answer"])) for row, wording in zip(rows, wordings, strict=True)]), rel=1e-4
    )
    assert values["paraphrased_answer_rouge"] == 1.0
    assert values["paraphrased_question_rouge"] == pytest.approx(
        np.mean([3 / len(row["answer"].rstrip(".").split()) for row in rows]), rel=1e-12
    )


def test_without_paraphrased_questions_the_answers_alone_are_measured(nano_context: UnlearningContext, nano_problem: Problem):
    plan = EvalPlan(replace(nano_problem, paraphrased_questions={}))
    evaluator = EVALUATORS.get("paraphrased")
    requests = evaluator.requests(plan, nano_context.tokenizer)
    found = measured(EvalContext(nano_context, plan, (), generations=dict.fromkeys(requests, "x")), "paraphrased")
    assert evaluator.evaluator_inputs(plan) == {}
    assert isinstance(found["paraphrased_answer_rouge"], Measurement)
    assert isinstance(found["paraphrased_question_rouge"], Absent)
    assert isinstance(found["paraphrased_question_probability"], Absent)


@pytest.mark.parametrize("limit", [None, 3])
def test_the_worlds_paraphrased_questions_are_the_rows_own(limit: int | None):
    problem = BENCHMARKS.get("tofu10").problem("mini", Options(limit=limit))
    wordings = problem.paraphrased_questions["forget"]
    assert len(wordings) == len(problem.questions["forget"]) == (limit or 120)
    assert not set(wordings) & {row["question"] for row in problem.questions["forget"]}
