"""Accuracy through lm-eval: equal to the direct computation, silent, and without a look at any network."""

from __future__ import annotations

import copy
import logging
import math
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evals.multiple_choice import (
    _rows_of,
    _task_folders,
    log_likelihoods,
    question_sets,
    version,
)
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.statistics.measurements import measurements
from harness.statistics.standard_errors import pooled_standard_error, standard_error
from tests.conftest import WORLD, ContextMaker, with_choices

LETTERS = "ABCD"
EVALUATOR = EVALUATORS.get("multiple_choice")


@pytest.fixture
def problem(nano_problem: Problem) -> Problem:
    """Two sets of questions with choices, and one without."""
    real = [{k: row[k] for k in ("row", "cluster", "question", "answer")} for row in nano_problem.questions["real_authors"]]
    return replace(
        nano_problem,
        questions={
            "bio": with_choices(WORLD.world_facts[:40]),
            "general": with_choices(WORLD.real_authors[:30]),
            "instructions": real,
        },
    )


@pytest.fixture
def context(make_context: ContextMaker, problem: Problem) -> UnlearningContext:
    return make_context(problem=problem)


def direct(context: UnlearningContext, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> np.ndarray:
    """[n, 4] log p(choice | prompt) by the model's own logits, one text at a time."""
    import torch

    found = []
    for prompt, options in zip(prompts, choices, strict=True):
        for option in options:
            start = len(context.tokenizer(prompt)["input_ids"])
            ids = torch.tensor([context.tokenizer(prompt + option)["input_ids"]])
            with torch.no_grad():
                log_p = context.model(ids).logits.double().log_softmax(-1)[0]
            found.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
    return np.array(found).reshape(-1, 4)


def measuring(context: UnlearningContext) -> EvalContext:
    return EvalContext(context, EvalPlan(context.problem), ())


def measured(context: UnlearningContext) -> tuple[dict[str, Any], EvalContext]:
    eval_context = measuring(context)
    return {item.metric: item for item in measurements(EVALUATOR, eval_context)}, eval_context


# ---------------------------------------------------------------- the numbers


def test_nothing_is_said_of_git_where_one_stands_in_no_checkout(
    context: UnlearningContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    log_likelihoods(measuring(context), {"bio": context.problem.questions["bio"][:2]})
    told = capfd.readouterr()
    assert "fatal" not in told.out + told.err


def test_special_tokens_behind_a_choice_are_not_scored(make_context: ContextMaker, problem: Problem):
    import copy

    from tokenizers.processors import TemplateProcessing

    plain, eager = make_context(problem=problem), make_context(problem=problem)
    eager.tokenizer = copy.deepcopy(eager.tokenizer)
    eager.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <unk> <eos>",
        special_tokens=[("<unk>", eager.tokenizer.unk_token_id), ("<eos>", eager.tokenizer.eos_token_id)],
    )
    values = [[item.value for item in measured(each)[0].values()] for each in (plain, eager)]
    nats = [each.tables["choices"]["choice_log_likelihoods"].tolist() for each in (measured(s)[1] for s in (plain, eager))]
    assert values[0] == values[1]
    assert nats[0] == nats[1]


def test_log_likelihoods_equal_the_direct_computation_and_so_does_accuracy(context: UnlearningContext):
    found, eval_context = measured(context)
    assert list(found) == ["bio_accuracy", "general_accuracy"]
    table = eval_context.tables["choices"]
    for name in ("bio", "general"):
        rows = context.problem.questions[name]
        prompts = [context.problem.template.prompt(row["question"]) for row in rows]
        expected = direct(context, prompts, [[f" {c}" for c in row["choices"]] for row in rows])
        of_set = table[table["task"] == name]
        assert of_set["row"].tolist() == [row["row"] for row in rows]
        np.testing.assert_allclose(np.array(of_set["choice_log_likelihoods"].tolist()), expected, atol=1e-5)
        right = expected.argmax(axis=1) == [row["answer"] for row in rows]
        assert of_set["correct"].tolist() == right.astype(float).tolist()
        assert found[f"{name}_accuracy"].value == right.mean()
        assert found[f"{name}_accuracy"].n == len(rows)


def test_a_task_of_lm_eval_is_put_in_its_words_with_letters_and_the_benchmarks_rows(context: UnlearningContext):
    rows = [{**row, "task": "mmlu_high_school_biology"} for row in with_choices(WORLD.world_facts[:6])]
    named = {"mmlu_high_school_biology": rows, "wmdp_cyber": [{**row, "task": "wmdp_cyber"} for row in rows[:3]]}
    found = log_likelihoods(measuring(context), named)
    about = {"mmlu_high_school_biology": "high school biology", "wmdp_cyber": "cybersecurity"}
    for name, of in named.items():
        prompts = [
            f"The following are multiple choice questions (with answers) about {about[name]}.\n\n{row['question']}\n"
            + "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, row["choices"], strict=True))
            + "Answer:"
            for row in of
        ]
        expected = direct(context, prompts, [[f" {letter}" for letter in LETTERS]] * len(of))
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_a_set_may_consist_of_several_tasks_of_lm_eval(make_context: ContextMaker, problem: Problem):
    rows = with_choices(WORLD.world_facts[:8])
    names = ["mmlu_anatomy", "mmlu_virology"] * 4
    mmlu = [{**row, "task": name} for row, name in zip(rows, names, strict=True)]
    found, context = measured(make_context(problem=replace(problem, questions={"mmlu": mmlu})))
    assert list(found) == ["mmlu_accuracy"]
    assert found["mmlu_accuracy"].n == 8
    assert sorted(context.tables["choices"]["row"]) == list(range(8))


def test_a_right_answer_counts_wherever_it_stands(context: UnlearningContext):
    """With the likeliest choice called right, accuracy is 1; with another one, 0."""
    _, eval_context = measured(context)
    likeliest = eval_context.tables["choices"].set_index(["task", "row"])["choice"]
    for shift, value in ((0, 1.0), (1, 0.0)):
        questions = {
            name: [{**row, "answer": int((likeliest[name, row["row"]] + shift) % 4)} for row in rows]
            for name, rows in question_sets(EvalPlan(context.problem)).items()
        }
        found, _ = measured(replace(context, problem=replace(context.problem, questions=questions)))
        assert [item.value for item in found.values()] == [value, value]


# ---------------------------------------------------------------- how sure, and which way


def test_for_single_questions_the_standard_error_is_lm_evals_own():
    from lm_eval.api.metrics import mean_stderr

    correct = np.random.default_rng(0).integers(0, 2, 57).astype(float)
    error, groups = standard_error(correct, np.arange(57))
    assert groups == 57
    assert error == pytest.approx(mean_stderr(correct.tolist()), rel=1e-12)


def subjects_of(sizes: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """So many questions of each of some of MMLU's subjects; row numbers go on from one to the next."""
    rows = with_choices(WORLD.world_facts[: sum(sizes)])
    names = ["mmlu_anatomy", "mmlu_virology", "mmlu_astronomy"][: len(sizes)]
    starts = np.cumsum([0, *sizes])
    return {
        name: [{**row, "task": name, "cluster": str(row["row"])} for row in rows[start : start + size]]
        for name, size, start in zip(names, sizes, starts, strict=False)
    }


def test_mmlus_standard_error_is_the_one_that_lm_eval_gives_its_group(make_context: ContextMaker, problem: Problem):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    subjects = subjects_of([20, 9, 5])
    # One subject is known and another is not, so that pooling within subjects is another number than one over all questions.
    rows = [row for of in subjects.values() for row in of]
    context = make_context(problem=replace(problem, questions={"mmlu": rows}))
    _, eval_context = measured(context)
    likeliest = eval_context.tables["choices"].set_index("row")["choice"]
    shift = {
        "mmlu_anatomy": lambda i: int(i % 5 == 0),
        "mmlu_virology": lambda i: int(i % 4 != 0),
        "mmlu_astronomy": lambda i: 1,
    }
    for name, of in subjects.items():
        for i, row in enumerate(of):
            row["answer"] = int((likeliest[row["row"]] + shift[name](i)) % 4)
    context = replace(context, problem=replace(context.problem, questions={"mmlu": rows}))
    found, _ = measured(context)
    group = {
        "group": "some_of_mmlu",
        "task": [{"task": name, **_rows_of(of)} for name, of in subjects.items()],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],  # as _mmlu.yaml has it
    }
    lm = HFLM(context.model, tokenizer=copy.deepcopy(context.tokenizer))
    manager = TaskManager(include_path=_task_folders(), include_defaults=False)
    told = simple_evaluate(lm, tasks=[{"group": "outer", "task": [group]}], task_manager=manager)["groups"]
    theirs = told["outer::some_of_mmlu"]
    ours = found["mmlu_accuracy"]
    assert ours.value == pytest.approx(theirs["acc,none"], rel=1e-12)
    correct = np.array([float(row["answer"] == likeliest[row["row"]]) for row in rows])
    error, groups = pooled_standard_error(correct, np.arange(34), np.array([row["task"] for row in rows]))
    assert groups == 34
    assert error == pytest.approx(theirs["acc_stderr,none"], rel=1e-12)
    assert error < 0.95 * standard_error(correct, np.arange(34))[0]
    assert f"standard error {error:.4f}" in ours.note
    assert ours.interval_95 == pytest.approx((ours.value - 1.96 * error, ours.value + 1.96 * error))


def test_only_a_set_of_several_subjects_is_of_the_second_version(make_context: ContextMaker, problem: Problem):
    one, several = (
        replace(problem, questions={**problem.questions, "mmlu": [r for of in subjects_of(n).values() for r in of]})
        for n in ([6], [6, 6])
    )
    assert [version(EvalPlan(each)) for each in (problem, one, several)] == [1, 1, 2]
    found, _ = measured(make_context(problem=several))
    assert (found["bio_accuracy"].version, found["mmlu_accuracy"].version) == (1, 2)


def test_one_question_of_each_subject_says_nothing_of_its_spread():
    correct = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    error, groups = pooled_standard_error(correct, np.arange(6), np.arange(6))
    assert math.isnan(error)
    assert groups == 6
    one_subject = pooled_standard_error(correct, np.array([0, 0, 1, 1, 2, 2]), np.zeros(6))
    assert one_subject == pytest.approx(standard_error(correct, np.array([0, 0, 1, 1, 2, 2])))


def test_one_question_of_each_subject_gives_no_interval(problem: Problem):
    rows = [{**row, "task": f"subject-{i}", "cluster": str(i)} for i, row in enumerate(with_choices(WORLD.world_facts[:6]))]
    told = [
        {"task": "mmlu", "row": i, "cluster": str(i), "correct": float(i % 2), "choice_log_likelihoods": [0.0]}
        for i in range(6)
    ]
    [found] = measurements(
        EVALUATOR, EvalContext(None, EvalPlan(replace(problem, questions={"mmlu": rows})), (), {"choices": pd.DataFrame(told)})
    )
    assert isinstance(found, Measurement)
    assert (found.interval_95, found.interval_method) == (None, "none: one question a subject")


def test_questions_that_rise_and_fall_together_count_as_one():
    correct = np.random.default_rng(1).integers(0, 2, 40).astype(float)
    alone, _ = standard_error(correct, np.arange(40))
    doubled, groups = standard_error(np.repeat(correct, 2), np.repeat(np.arange(40), 2))
    assert groups == 40
    assert doubled == pytest.approx(alone)
    assert standard_error(correct, np.zeros(40)) == (pytest.approx(0), 1)


def test_hazardous_questions_are_better_answered_by_chance_and_others_right(context: UnlearningContext):
    found, _ = measured(context)
    hazardous, general = found["bio_accuracy"], found["general_accuracy"]
    assert (hazardous.better, general.better) == ("lower", "higher")
    assert "chance is 0.25" in hazardous.note
    for item in found.values():
        low, high = item.interval_95
        assert 0 <= low <= item.value <= high <= 1
        assert f"standard error {(high - item.value) / 1.96:.4f}" in item.note or low == 0 or high == 1


def test_few_groups_give_no_interval(make_context: ContextMaker, problem: Problem):
    rows = [{**row, "cluster": str(row["row"] % 4)} for row in problem.questions["bio"]]
    found, _ = measured(make_context(problem=replace(problem, questions={"bio": rows})))
    assert found["bio_accuracy"].interval_95 is None
    assert found["bio_accuracy"].interval_method.startswith("none: ")


def test_a_model_that_has_collapsed_has_no_accuracy(context: UnlearningContext):
    import torch

    with torch.no_grad():
        context.model.lm_head.weight.mul_(math.nan)
    found, _ = measured(context)
    assert all(isinstance(item, Absent) and "40 of 40" in item.reason for item in [found["bio_accuracy"]])


def test_a_benchmark_without_choices_says_so(nano_problem: Problem):
    problem = replace(nano_problem, questions={"forget": nano_problem.questions["forget"]})
    (item,) = measurements(EVALUATOR, EvalContext(None, EvalPlan(problem), ()))
    assert isinstance(item, Absent)


def test_recorded_tables_give_the_same_numbers(context: UnlearningContext):
    found, eval_context = measured(context)
    again = measurements(EVALUATOR, EvalContext(None, EvalPlan(context.problem), (), dict(eval_context.tables)))
    assert list(found.values()) == list(again)
    assert all(isinstance(item, Measurement) for item in again)


# ---------------------------------------------------------------- what it leaves alone


def test_it_asks_no_network_prints_nothing_and_leaves_tokenizer_and_random_state_alone(
    context: UnlearningContext,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    import torch

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    context.tokenizer.pad_token, padding = None, context.tokenizer.pad_token
    torch.manual_seed(5)
    state = torch.get_rng_state()
    caplog.set_level(logging.INFO)
    try:
        measured(context)
        assert context.tokenizer.pad_token is None
    finally:
        context.tokenizer.pad_token = padding
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith(("lm_eval", "lm-eval", "datasets"))]
