"""Extraction strength, exact memorisation and membership scores: by hand, by greedy decoding, and open-unlearning's own numbers."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evals import _token_scores
from evals._token_scores import scores
from evals.benchmarks.tofu.rows import holdout_rows
from harness.core.benchmark import BENCHMARKS, eval_plan
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.numerics.token_likelihoods import TokenLikelihoods
from harness.statistics.measurements import measurements
from tests.conftest import WORLD, numbered

NAMES = ("extraction_strength", "exact_memorisation", "membership")

# ---------------------------------------------------------------- against open-unlearning

# A "model" whose logits are a formula of position, token and word, and texts of it (tokens, length of the prompt); 6 is the end.
TEXTS = [
    ([5, 1, 3, 1, 3, 0, 3, 3, 6], 2),
    ([5, 1, 3, 4, 3, 0, 3, 0, 1, 3, 1, 1, 5, 6], 2),
    ([3, 1, 3, 3, 2, 3, 4, 1, 3, 2, 6], 2),
    ([4, 2, 1, 2, 0, 3, 4, 1, 3, 6], 3),
    ([5, 4, 2, 4, 3, 0, 6], 2),
    ([2, 4, 1, 1, 1, 5, 4, 1, 6], 3),
    ([5, 1, 4, 4, 3, 0, 3, 3, 3, 2, 0, 6], 3),
    ([0, 0, 5, 2, 2, 3, 4, 1, 3, 2, 6], 2),
]
# What its src/evals/metrics at d3d7cf9 say of them: `memorization.extraction_strength`, `memorization.exact_memorization`, and `mia.utils.mia_auc`
# with each attack, k = .4, the first four texts against the last four; words are decoded as "aaa", "bbb" and so on.
THEIRS = {
    "extraction_strength": [0.5, 0.09090909, 0.625, 0.66666667, 0.75, 0.6, 0.125, 0.625],
    "exact_memorisation": [0.66666669, 0.54545456, 0.75, 0.83333331, 0.75, 0.60000002, 0.875, 0.75],
    "membership_loss": [2.01141803, 1.94236657, 2.00362882, 1.26171624, 2.376823, 2.02119056, 1.26129826, 1.88693143],
    "membership_zlib": [0.08380908, 0.05712843, 0.07155817, 0.04506129, 0.10334013, 0.08787785, 0.04671475, 0.06086876],
    "membership_min_k": [3.40021706, 3.16506481, 3.38630557, 2.45055532, 6.41153002, 1.83494794, 1.08127093, 2.8702147],
    "membership_min_k_plus_plus": [
        2.8441221,
        2.69830488,
        3.21893404,
        1.59132278,
        6.72752805,
        0.59021812,
        0.00149606,
        2.0841676,
    ],
}
AREAS = {
    "membership_loss": 0.5625,
    "membership_zlib": 0.6875,
    "membership_min_k": 0.3125,
    "membership_min_k_plus_plus": 0.3125,
}


def of_formula(ids: list[int], prompt: int) -> TokenLikelihoods:
    """The four numbers of each labelled token, in float64."""
    steps = np.arange(len(ids))
    logits = 3 * np.sin(3.5 * np.array(ids)[:, None] + 1.3 * np.arange(7) + 0.9 * steps[:, None])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    before, labels = p[prompt - 1 : -1], np.array(ids[prompt:])
    means = (before * np.log(before)).sum(axis=1)
    spread = ((before * np.log(before) ** 2).sum(axis=1) - means**2) ** 0.5
    return TokenLikelihoods(np.log(before[np.arange(len(labels)), labels]), before.argmax(axis=1) == labels, means, spread)


def said(ids: list[int], prompt: int) -> str:
    return " ".join("abcdef"[word] * 3 for word in ids[prompt:-1])


@pytest.mark.parametrize("score", THEIRS)
def test_every_score_is_open_unlearnings(score: str):
    found = [scores(of_formula(*text), True, said(*text), "open-unlearning")[score] for text in TEXTS]
    assert found == pytest.approx(THEIRS[score], rel=1e-6, abs=1e-6), "it rounds to float32"


@pytest.mark.parametrize("score", AREAS)
def test_areas_are_open_unlearnings(score: str):
    values = [scores(of_formula(*text), True, said(*text), "open-unlearning")[score] for text in TEXTS]
    table = {"task": ["forget"] * 4 + ["holdout"] * 4, "row": [*range(4)] * 2, "cluster": ["a"] * 8, score: values}
    tables = dict.fromkeys(("forget_tokens", "holdout_tokens"), pd.DataFrame(table))
    found = measured(EvalContext(None, EvalPlan(), (), tables))[score]
    assert isinstance(found, Measurement)
    assert found.value == pytest.approx(AREAS[score], abs=1e-12)


# ---------------------------------------------------------------- by hand

TOKENS = TokenLikelihoods(
    log_probs=np.log([0.5, 0.9, 0.1, 0.8, 0.7]),
    predicted=np.array([False, True, False, True, True]),
    means=np.array([-1.0, -0.5, -2.0, -0.5, -1.0]),
    deviations=np.array([0.5, 1.0, 0.25, 2.0, 1.0]),
)


def test_the_scores_of_an_answer_of_four_tokens_and_its_end():
    found = scores(TOKENS, True, "one two")
    loss = -np.log([0.5, 0.9, 0.1, 0.8, 0.7]).mean()
    assert found["extraction_strength"] == 0.25, "the third token is missed, the fourth is said"
    assert found["exact_memorisation"] == 0.5
    assert found["membership_loss"] == pytest.approx(loss, rel=1e-12)
    assert found["membership_zlib"] == pytest.approx(loss / len(zlib.compress(b"one two")), rel=1e-12)
    assert found["membership_min_k"] == pytest.approx(-np.log(0.1), rel=1e-12), "20 % of four tokens: one"
    assert found["membership_min_k_plus_plus"] == pytest.approx((2 + np.log(0.1)) / -0.25, rel=1e-12)


@pytest.mark.parametrize(("predicted", "strength"), [([1, 1, 1], 1.0), ([0, 1, 1], 2 / 3), ([1, 1, 0], 0.0), ([0], 0.0)])
def test_an_answer_whose_last_token_is_missed_is_not_extracted(predicted: list[int], strength: float):
    assert _token_scores.extraction_strength(np.array(predicted, dtype=bool)) == pytest.approx(strength)


def test_a_model_that_is_certain_of_its_words_gives_finite_scores():
    certain = TOKENS._replace(deviations=np.zeros(5), means=np.zeros(5), log_probs=np.array([0.0, 0, 0, -90, 0]))
    assert scores(certain, True, "one")["membership_min_k_plus_plus"] == pytest.approx(90 / 1e-3)


def test_an_answer_that_is_only_its_end_has_no_score():
    found = scores(TokenLikelihoods(*(values[:1] for values in TOKENS)), True, "")
    assert np.isnan(found["extraction_strength"])
    assert np.isfinite(found["membership_loss"])


# ---------------------------------------------------------------- on a model


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """So many tokens behind some others, one forward pass for each."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_extraction_strength_is_what_greedy_decoding_gives(nano_context: UnlearningContext):
    """Every prefix of every answer is continued; so that a random model says anything right, its own words are the answers."""
    problem, tokenizer, model = nano_context.problem, nano_context.tokenizer, nano_context.model
    rng, rows = np.random.default_rng(0), []
    for row in problem.questions["forget"][:6]:
        prompt = tokenizer(problem.template.prompt(row["question"]))["input_ids"]
        words = greedy(model, prompt, 8)
        words[int(rng.integers(0, 8))] = 7
        text = str(tokenizer.decode([word for word in words if word not in tokenizer.all_special_ids]))
        rows.append({**row, "answer": text.strip()})
    plan = EvalPlan(replace(problem, questions={"forget": rows}))
    found = _token_scores.forget_rows(EvalContext(replace(nano_context, problem=plan.problem), plan, ()), "extraction_strength")
    for row, value in zip(rows, found.values, strict=True):
        example = problem.template.example(row["question"], row["answer"])
        prompt = tokenizer(example.prompt)["input_ids"]
        answer = tokenizer(example.prompt + example.tag + example.answer)["input_ids"][len(prompt) :]
        total = len(answer)
        needed = next(k for k in range(total + 1) if k == total or greedy(model, prompt + answer[:k], total - k) == answer[k:])
        assert value == pytest.approx(1 - needed / total, abs=1e-12)
    assert len(set(found.values)) > 1, "not all answers are alike"


def measured(context: EvalContext) -> dict[str, Measurement | Absent]:
    return {m.metric: m for name in NAMES for m in measurements(EVALUATORS.get(name), context)}


def test_all_metrics_come_from_one_pass_over_each_text(nano_context: UnlearningContext):
    plan = EvalPlan(nano_context.problem)
    read = []
    nano_context.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0].shape[0]))
    found = measured(EvalContext(nano_context, plan, ()))
    assert all(isinstance(found[name], Measurement) for name in (*NAMES[:2], *AREAS))
    holdout = nano_context.problem.holdout
    assert holdout
    assert sum(read) == len(plan.questions["forget"]) + len(holdout())


def beside(**areas: float) -> dict[str, pd.DataFrame]:
    """Tables in which so large a share of ten forget rows lies under all of ten holdout rows, the rest above."""
    frames = {}
    for task in ("forget", "holdout"):
        keys = {"task": task, "row": range(10), "cluster": [str(i) for i in range(10)]}
        columns = {
            f"membership_{attack}": [0.0 if i < 10 * area else 2.0 for i in range(10)] if task == "forget" else [1.0] * 10
            for attack, area in areas.items()
        }
        frames[f"{task}_tokens"] = pd.DataFrame({**keys, **columns})
    return frames


def test_the_normalised_form_is_open_unlearnings(nano_problem: Problem):
    references = [Reference("retain-0", beside(loss=0.5, zlib=0.5)), Reference("retain-1", beside(loss=0.6, zlib=0.4))]
    found = measured(EvalContext(None, EvalPlan(nano_problem), references, beside(loss=0.7, zlib=1.0)))
    loss, zlib_ = found["membership_loss_normalised"], found["membership_zlib_normalised"]
    assert isinstance(loss, Measurement)
    assert isinstance(zlib_, Measurement)
    assert (loss.value, loss.reference, loss.across_references) == (
        pytest.approx(0.6),
        1.0,
        (pytest.approx(0.8), 1.0),
    ), "1 − |.7 − .5| / .5; the second retrained model's own is 1 − |.6 − .5| / .5"
    assert zlib_.value == 0.0
    assert isinstance(found["membership_min_k_normalised"], Absent)


def test_without_a_retrained_model_there_is_no_normalised_form(nano_problem: Problem):
    found = measured(EvalContext(None, EvalPlan(nano_problem), (), beside(loss=0.7)))
    assert isinstance(found["membership_loss"], Measurement)
    assert isinstance(found["membership_loss_normalised"], Absent)
    assert "retrained model" in found["membership_loss_normalised"].reason


# ---------------------------------------------------------------- the holdout


def inputs(problem: Problem) -> object:
    return EVALUATORS.get("membership").evaluator_inputs(EvalPlan(problem))


def test_the_worlds_holdout_was_seen_by_no_model():
    problem = BENCHMARKS.get("tofu10").problem("mini", Options())
    assert problem.holdout
    rows = problem.holdout()
    assert len(rows) == 1200
    assert len({row["cluster"] for row in rows}) == 100
    assert inputs(problem) == {"holdout": inputs(problem)["holdout"]}  # type: ignore[index]
    names = {author.name for author in (*WORLD.authors, *WORLD.base_authors)}
    assert not [row for row in rows if any(name in row["question"] for name in names)]


@pytest.mark.parametrize("split", ["forget10", "retain90"])
def test_a_holdout_that_was_trained_on_is_refused(split: str):
    problem = BENCHMARKS.get("tofu10").problem("mini", Options(limit=5))
    seen = replace(problem, holdout=lambda: numbered([*WORLD.holdout[:3], WORLD.split(split)[30]]))
    with pytest.raises(UsageError, match=r"holdout row 3 of tofu10 .* is among the texts of mini@0 full"):
        inputs(seen)
    stage = replace(seen.stages[0], retain=[seen.template.example(**{k: WORLD.holdout[0][k] for k in ("question", "answer")})])
    with pytest.raises(UsageError, match=r"holdout row 0 .* the stage forget10"):
        inputs(replace(seen, stages=[stage]))


def test_a_holdout_file_that_is_missing_is_named(tmp_path: Any):
    problem = BENCHMARKS.get("tofu10").problem("mini", Options())
    with pytest.raises(UsageError, match=r"no locuslab/TOFU/holdout10\.json"):
        inputs(replace(problem, holdout=lambda: holdout_rows("holdout10", tmp_path, 10)))


def test_the_holdout_is_read_by_membership_alone(nano_problem: Problem):
    def read() -> list[dict[str, Any]]:
        raise AssertionError("it was read")

    benchmark, problem = BENCHMARKS.get("tofu10"), replace(nano_problem, holdout=read)
    plan = eval_plan(benchmark, problem, Options(evals=("+extraction_strength",)))
    assert plan.evaluator_inputs == {}
    with pytest.raises(AssertionError, match="it was read"):
        inputs(problem)
