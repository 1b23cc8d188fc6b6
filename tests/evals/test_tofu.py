"""ToFU's metrics: against ToFU's own logs where they are at hand, and against hand-made rows everywhere."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evals import _tofu
from harness.core.benchmark import BENCHMARKS
from harness.core.errors import UsageError
from harness.core.evaluator import EvalContext, EvalPlan, Reference
from harness.core.measurement import Absent, Measurement
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.running.logs import score_log
from harness.running.plan import read
from harness.statistics.bootstrap import mean_interval
from harness.statistics.measurements import measurements
from harness.statistics.two_sample import ks

ORACLES = Path(os.environ.get("HARNESS_DATA", "/nonexistent")) / "oracles"
FULL = ORACLES / "tofu_llama2-7b_full_eval_log_aggregated.json"
RETAIN = ORACLES / "tofu_llama2-7b_retain90_eval_log_aggregated.json"
FORGET = "eval_log_forget.json"
needs_oracles = pytest.mark.skipif(
    not FULL.is_file(), reason="HARNESS_DATA names no folder with oracles/ (ToFU's evaluation logs)"
)


def of_logs(variant: str = "original") -> EvalPlan:
    return EvalPlan(evaluators=BENCHMARKS.get("tofu10").evaluators(), variant=variant)


def tables(rows: int = 6, seed: int = 0, shift: float = 0.0) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    likelihood, answers = [], []
    for task in _tofu.TASKS:
        for row in range(rows):
            wrong = rng.uniform(1, 3, 3 if task in ("real_authors", "world_facts") else 5).tolist()
            true = float(rng.uniform(0, 1))
            common = {"task": task, "row": row, "cluster": str(row)}
            likelihood.append(
                {**common, "avg_gt_loss": true, "avg_paraphrased_loss": true + shift, "average_perturb_loss": wrong}
            )
            answers.append({**common, "rouge1_recall": 0.5, "rougeL_recall": float(rng.uniform(0.2, 1))})
    return {"likelihood": pd.DataFrame(likelihood), "answers": pd.DataFrame(answers)}


def measured(context: EvalContext) -> dict[str, Measurement | Absent]:
    return {m.metric: m for e in context.plan.evaluators for m in measurements(e, context)}


def numbers(found: Sequence[Measurement | Absent]) -> dict[str, float]:
    """Everything but KL, which needs a model to compare with."""
    assert [m.metric for m in found if isinstance(m, Absent)] == ["retain_kl"]
    return {m.metric: m.value for m in found if isinstance(m, Measurement)}


# ---------------------------------------------------------------- ToFU's own logs

# Printed by ToFU's aggregate_eval_stat.py over the two logs (llama2-7b, weight decay 0.01).
PUBLISHED = {
    "full": {
        "retain_rouge": 0.985655, "retain_probability": 0.989527, "retain_truth_ratio": 0.474699,
        "real_authors_rouge": 0.933000, "real_authors_probability": 0.455482, "real_authors_truth_ratio": 0.596229,
        "world_facts_rouge": 0.882479, "world_facts_probability": 0.418562, "world_facts_truth_ratio": 0.539033,
        "model_utility": 0.622677, "model_utility_arithmetic": 0.585886,
        "forget_rouge": 0.985450, "forget_probability": 0.990939, "forget_truth_ratio": 0.515985,
    },
    "retain90": {
        "retain_rouge": 0.975811, "retain_probability": 0.988897, "retain_truth_ratio": 0.470977,
        "real_authors_rouge": 0.923000, "real_authors_probability": 0.434087, "real_authors_truth_ratio": 0.570681,
        "world_facts_rouge": 0.897436, "world_facts_probability": 0.414326, "world_facts_truth_ratio": 0.544198,
        "model_utility": 0.613745, "model_utility_arithmetic": 0.575240,
        "forget_rouge": 0.408244, "forget_probability": 0.147563, "forget_truth_ratio": 0.674019,
    },
}  # fmt: skip


@needs_oracles
@pytest.mark.parametrize(("log", "name"), [(FULL, "full"), (RETAIN, "retain90")])
def test_every_part_equals_the_original_to_six_digits(log, name):
    (found, _) = score_log(BENCHMARKS.get("tofu10"), log, RETAIN, "original").values()
    values = numbers(found)
    for metric, expected in PUBLISHED[name].items():
        assert round(values[metric], 6) == expected, metric


@needs_oracles
def test_forget_quality_equals_the_original():
    found = next(iter(score_log(BENCHMARKS.get("tofu10"), FULL, RETAIN, "original").values()))
    values = numbers(found)
    assert values["forget_quality_d"] == pytest.approx(119 / 300, abs=1e-12)
    assert values["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-6)


@needs_oracles
def test_the_original_truth_ratios_row_by_row():
    context = EvalContext(None, of_logs(), (), dict(BENCHMARKS.get("tofu10").read_log(FULL)))
    ratio = np.exp(_tofu.log_truth_ratio(context, "forget").values)
    assert ratio[[0, 1, 2, 299]] == pytest.approx([4.0777427, 1.3477340, 0.9805422, 1.7449046], rel=1e-6)


@needs_oracles
def test_recomputed_rouge_equals_the_logged_one():
    told = json.loads(FULL.read_text(encoding="utf-8"))["eval_log_forget.json"]
    for row in ("0", "17", "123", "299"):
        _, answer, truth = told["generated_text"][row]
        assert _tofu.rouge_recall(truth, answer) == pytest.approx(
            (told["rouge1_recall"][row], told["rougeL_recall"][row]), abs=1e-12
        )


@needs_oracles
def test_lists_in_place_of_dictionaries_give_the_same_numbers(tmp_path):
    told = json.loads(FULL.read_text(encoding="utf-8"))
    dropped = ("truth_ratio",)
    listed = {
        task: {name: list(rows.values()) for name, rows in metrics.items() if name not in dropped and isinstance(rows, dict)}
        for task, metrics in told.items()
    }
    path = tmp_path / "listed.json"
    path.write_text(json.dumps(listed), encoding="utf-8")
    bench = BENCHMARKS.get("tofu10")
    first = next(iter(score_log(bench, FULL, RETAIN, "original").values()))
    second = next(iter(score_log(bench, path, RETAIN, "original").values()))
    assert numbers(first) == numbers(second)


@needs_oracles
def test_real_data_equals_the_logged_rows():
    problem = BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=ORACLES.parent))
    told = json.loads(FULL.read_text(encoding="utf-8"))["eval_log_forget.json"]["generated_text"]
    assert [row["answer"] for row in problem.questions["forget"]] == [told[str(i)][2] for i in range(300)]
    assert {name: len(rows) for name, rows in problem.questions.items()} == {
        "retain": 300, "real_authors": 100, "world_facts": 117, "forget": 300,
    }  # fmt: skip
    assert (len(problem.stages[0].forget), len(problem.stages[0].retain)) == (400, 3600)


# ---------------------------------------------------------------- definitions on hand-made rows


def test_the_nine_parts_and_their_harmonic_mean():
    context = EvalContext(None, of_logs(), (), tables())
    found = measured(context)
    parts = [found[f"{task}_{kind}"].value for task in _tofu.UTILITY_TASKS for kind in ("rouge", "probability", "truth_ratio")]
    assert found["model_utility"].value == pytest.approx(9 / sum(1 / x for x in parts), rel=1e-12)


def test_probability_is_normalised_over_the_options_of_real_authors_only():
    context = EvalContext(None, of_logs(), (), tables())
    rows = context.tables["likelihood"]
    row = rows[rows["task"] == "real_authors"].iloc[0]
    p, q = math.exp(-row["avg_gt_loss"]), sum(math.exp(-x) for x in row["average_perturb_loss"])
    assert _tofu.probability(context, "real_authors").values[0] == pytest.approx(p / (p + q), rel=1e-12)
    row = rows[rows["task"] == "retain"].iloc[0]
    assert _tofu.probability(context, "retain").values[0] == pytest.approx(math.exp(-row["avg_gt_loss"]), rel=1e-12)


def test_truth_ratio_variants():
    context = EvalContext(None, of_logs(), (), tables())
    rows = context.tables["likelihood"]
    row = rows[rows["task"] == "retain"].iloc[0]
    a, b = row["avg_paraphrased_loss"], np.array(row["average_perturb_loss"])
    assert _tofu.truth_ratio(context, "retain").values[0] == pytest.approx(max(0, 1 - math.exp(a - b.mean())), rel=1e-12)
    arithmetic = np.exp(-b).mean() / math.exp(-a)
    assert _tofu.truth_ratio(context, "retain", arithmetic=True).values[0] == pytest.approx(max(0, 1 - arithmetic), rel=1e-12)
    row = rows[rows["task"] == "forget"].iloc[0]
    ratio = math.exp(np.mean(row["average_perturb_loss"]) - row["avg_paraphrased_loss"])
    assert _tofu.truth_ratio(context, "forget").values[0] == pytest.approx(min(ratio, 1 / ratio), rel=1e-12)


def test_open_unlearning_guards_its_denominators():
    told = tables()
    told["likelihood"]["avg_paraphrased_loss"] = 40.0  # P(paraphrase) = 4e-18, far under the guard of 1e-10
    original = EvalContext(None, of_logs(), (), told)
    guarded = EvalContext(None, of_logs("open-unlearning"), (), told)
    inverse = np.exp(-np.mean(told["likelihood"].iloc[0]["average_perturb_loss"])) / (math.exp(-40) + 1e-10)
    assert _tofu.truth_ratio(guarded, "retain").values[0] == pytest.approx(max(0, 1 - inverse), rel=1e-12)
    assert _tofu.truth_ratio(original, "forget").values[0] < 1e-10
    assert "model_utility_arithmetic" not in measured(guarded)


# 120 forget rows of which every one of the first model lies under every one of the second: D = 1 and p = 2 / C(240, 120).
# open-unlearning's own code says 2.2001e-71 of such a collapsed model; the ratio without its guard says that it is retrained.
ROWS = 120
APART = 2 / math.comb(2 * ROWS, ROWS)


def collapsed() -> dict[str, pd.DataFrame]:
    """A model that finds the paraphrase and the wrong answers impossible alike: P(paraphrase) = e^−30 or less."""
    told = tables(rows=ROWS, seed=1)
    told["likelihood"]["avg_paraphrased_loss"] += 30.0
    told["likelihood"]["average_perturb_loss"] = [
        [x + 30.0 for x in wrong] for wrong in told["likelihood"]["average_perturb_loss"]
    ]
    return told


def test_a_collapsed_model_is_told_from_a_retrained_one_by_the_guarded_ratio_alone():
    references = [Reference("retain-0", tables(rows=ROWS, seed=2))]
    found = measured(EvalContext(None, of_logs("open-unlearning"), references, collapsed()))
    assert pytest.approx(2.2001e-71, rel=1e-4) == APART
    assert found["forget_quality"].value == pytest.approx(APART, rel=1e-9)
    assert found["forget_quality_d"].value == 1
    original = measured(EvalContext(None, of_logs(), references, collapsed()))
    assert original["forget_quality"].value > 0.05
    versions = {variant: of_logs(variant).versions for variant in ("original", "open-unlearning")}
    for of, metrics in (("original", original), ("open-unlearning", found)):
        assert metrics["forget_quality"].version == metrics["forget_quality_d"].version == versions[of]["forget_quality"]
    assert (versions["original"]["forget_quality"], versions["open-unlearning"]["forget_quality"]) == (1, 2)


def test_the_guarded_ratio_row_by_row_in_exact_arithmetic():
    told = collapsed()
    ratio = _tofu.tested_ratio(EvalContext(None, of_logs("open-unlearning"), (), told)).values
    with localcontext(prec=50):
        for value, (_, row) in zip(ratio, told["likelihood"].query("task == 'forget'").iterrows(), strict=True):
            wrong = [Decimal(loss) for loss in row["average_perturb_loss"]]
            paraphrase = (-Decimal(row["avg_paraphrased_loss"])).exp()
            exact = (-sum(wrong) / len(wrong)).exp() / (paraphrase + Decimal("1e-10"))
            assert float(paraphrase) < 1e-12
            assert value == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("holds", ["losses and scores", "scores alone"])
def test_a_collapsed_model_is_told_from_a_retrained_one_by_open_unlearnings_logs(tmp_path: Path, holds: str):
    paths = []
    for name, told in (("collapsed", collapsed()), ("retrained", tables(rows=ROWS, seed=2))):
        log = open_unlearning_log(told)
        forget = told["likelihood"].query("task == 'forget'")
        correct = np.exp(-forget["avg_paraphrased_loss"].to_numpy())
        wrong = np.exp(-np.array(forget["average_perturb_loss"].tolist()).mean(axis=1))
        scores = wrong / (correct + 1e-10)  # `truth_ratio` of its src/evals/metrics/memorization.py
        scores[0] = 0.0 if name == "collapsed" else scores[0]  # P(wrong) of 0 is a value like any other
        log["forget_truth_ratio"] = {"value_by_index": {str(i): {"score": float(s)} for i, s in enumerate(scores)}}
        if holds == "scores alone":
            del log["forget_Q_A_PARA_Prob"], log["forget_Q_A_PERT_Prob"]
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(log), encoding="utf-8")
    found = next(iter(score_log(BENCHMARKS.get("tofu10"), *paths, "open-unlearning").values()))
    quality = {m.metric: m for m in found}["forget_quality"]
    assert isinstance(quality, Measurement)
    assert quality.value == pytest.approx(APART, rel=1e-9)
    original = {m.metric: m for m in next(iter(score_log(BENCHMARKS.get("tofu10"), *paths, "original").values()))}
    if holds == "scores alone":
        assert isinstance(original["forget_quality"], Absent)
        assert "not finite" in original["forget_quality"].reason
    else:
        assert original["forget_quality"].value > 0.05


def test_the_two_projects_cut_scored_texts_at_their_own_length(nano_context: UnlearningContext):
    end = nano_context.tokenizer.eos_token_id
    long = " ".join(row["answer"] for row in nano_context.problem.questions["retain"] * 20)
    examples = [nano_context.problem.template.example("Who?", long), nano_context.problem.template.example("Who?", "Me")]
    theirs, ours = (EvalPlan(nano_context.problem, variant=variant) for variant in ("original", "open-unlearning"))
    original, short = _tofu.encoded_texts(EvalContext(nano_context, theirs, ()), examples)
    other, same = _tofu.encoded_texts(EvalContext(nano_context, ours, ()), examples)
    assert len(original.input_ids) == 200
    assert original.input_ids[-1] != end
    assert len(other.input_ids) == 513
    assert other.input_ids[-1] == end
    assert other.input_ids[:200] == original.input_ids
    assert same == short


def test_what_changed_in_one_variant_moves_its_runs_alone():
    from harness.running.plan import plan

    specs = {v: plan("tofu10", "mini", "untouched", {}, Options(variant=v)).spec for v in ("original", "open-unlearning")}
    assert {v: spec.bench_version for v, spec in specs.items()} == {"original": 1, "open-unlearning": 2}
    assert {v: spec.evaluators["forget_quality"] for v, spec in specs.items()} == {"original": 1, "open-unlearning": 2}
    assert {v: spec.evaluators["probability"] for v, spec in specs.items()} == {"original": 1, "open-unlearning": 1}


def test_forget_quality_is_the_ks_test_and_shows_every_reference():
    references = [Reference(f"retain-{k}", tables(seed=k, shift=0.3)) for k in (1, 2, 3)]
    context = EvalContext(None, of_logs(), references, tables())
    found = measured(context)
    mine = _tofu.log_truth_ratio(context, "forget").values
    others = [_tofu.log_truth_ratio(context.of(each), "forget").values for each in references]
    expected = [ks(mine, other) for other in others]
    assert found["forget_quality"].value == expected[0][0]
    assert found["forget_quality"].across_references == (min(e[0] for e in expected), max(e[0] for e in expected))
    assert found["forget_quality_d"].floor == max(ks(others[i], others[j])[1] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert found["forget_quality"].interval_95 is None


def test_a_distance_at_the_noise_floor_is_called_a_tie():
    references = [Reference("a", tables(seed=1)), Reference("b", tables(seed=2))]
    context = EvalContext(None, of_logs(), references, tables(seed=1))
    assert "tie" in measured(context)["forget_quality"].note
    far = tables(seed=1, shift=50.0)
    assert measured(EvalContext(None, of_logs(), references, far))["forget_quality"].note is None


def test_under_five_forget_authors_there_is_no_interval_and_no_ranking():
    told = tables()
    told["likelihood"]["cluster"] = "0"
    found = measured(EvalContext(None, of_logs(), [Reference("a", tables(seed=1))], told))
    assert "fewer than five" in found["forget_quality"].note
    assert found["forget_probability"].interval_95 is None


def test_without_a_reference_forget_quality_is_absent_with_its_reason():
    found = measured(EvalContext(None, of_logs(), (), tables()))
    assert isinstance(found["forget_quality"], Absent)
    assert "--reference" in found["forget_quality"].reason
    assert isinstance(found["model_utility"], Measurement)


def test_a_reference_with_other_rows_is_refused():
    context = EvalContext(None, of_logs(), [Reference("other", tables(rows=5))], tables(rows=6))
    with pytest.raises(UsageError, match="5 forget rows, this model 6"):
        measured(context)


def test_a_row_that_is_not_finite_makes_a_number_absent_and_no_other():
    told = tables()
    broken = told["likelihood"]["task"].eq("retain") & told["likelihood"]["row"].eq(2)
    told["likelihood"].loc[broken, "avg_gt_loss"] = math.nan
    told["likelihood"].loc[broken, "avg_paraphrased_loss"] = math.nan
    found = measured(EvalContext(None, of_logs(), (), told))
    assert isinstance(found["retain_truth_ratio"], Absent)
    assert isinstance(found["model_utility"], Absent)
    assert isinstance(found["retain_rouge"], Measurement)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variant", ["original", "open-unlearning"])
def test_absurd_losses_of_a_log_make_no_number_and_no_noise(variant: str):
    told = tables()
    likelihood = told["likelihood"]
    here = likelihood["task"].isin(["retain", "real_authors"])
    likelihood.loc[here, "avg_gt_loss"] = -1e3
    likelihood["average_perturb_loss"] = [
        [-1e3] * len(wrong) if task == "world_facts" else wrong
        for task, wrong in zip(likelihood["task"], likelihood["average_perturb_loss"], strict=True)
    ]
    found = measured(EvalContext(None, of_logs(variant), (), told))
    assert isinstance(found["retain_probability"], Absent)
    assert isinstance(found["real_authors_probability"], Absent)
    assert found["world_facts_probability"].value == 0.0, "the wrong answers are infinitely likelier"


def test_a_collapsed_model_has_utility_zero_not_an_error():
    told = tables()
    told["answers"]["rougeL_recall"] = 0.0
    assert measured(EvalContext(None, of_logs(), (), told))["model_utility"].value == 0.0


# ---------------------------------------------------------------- logs of other programs


def open_unlearning_log(told: dict[str, pd.DataFrame]) -> dict[str, object]:
    """The structure of TOFU_EVAL.json, from tables."""
    log: dict[str, object] = {}
    for task, prefix in (("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf"), ("forget", "forget")):
        rows = told["likelihood"].query("task == @task")
        answers = told["answers"].query("task == @task")

        def by_index(column, rows=rows):
            return {"value_by_index": {str(r["row"]): {"prob": 0, "avg_loss": r[column]} for _, r in rows.iterrows()}}

        log[f"{prefix}_Q_A_Prob"] = by_index("avg_gt_loss")
        if task in ("retain", "forget"):
            log[f"{prefix}_Q_A_PARA_Prob"] = by_index("avg_paraphrased_loss")
        log[f"{prefix}_Q_A_PERT_Prob"] = by_index("average_perturb_loss")
        log[f"{prefix}_Q_A_ROUGE"] = {
            "value_by_index": {
                str(r["row"]): {"rouge1_recall": r["rouge1_recall"], "rougeL_recall": r["rougeL_recall"], "ground_truth": "x"}
                for _, r in answers.iterrows()
            }
        }
    return log


def test_open_unlearning_logs_are_read(tmp_path):
    told = tables()
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(open_unlearning_log(told)), encoding="utf-8")
    found = measured(EvalContext(None, of_logs("open-unlearning"), (), dict(BENCHMARKS.get("tofu10").read_log(path))))
    expected = measured(EvalContext(None, of_logs("open-unlearning"), (), told))
    for metric, value in expected.items():
        if isinstance(value, Measurement):
            assert found[metric].value == pytest.approx(value.value, rel=1e-12), metric


def test_open_unlearning_truth_ratio_scores_alone_serve_as_a_reference(tmp_path):
    told = tables(seed=1)
    context = EvalContext(None, of_logs(), (), told)
    scores = np.exp(-_tofu.log_truth_ratio(context, "forget").values)
    log = {"forget_truth_ratio": {"value_by_index": {str(i): {"score": float(s)} for i, s in enumerate(scores)}}}
    path = tmp_path / "retain.json"
    path.write_text(json.dumps(log), encoding="utf-8")
    reference = Reference("retain", BENCHMARKS.get("tofu10").read_log(path))
    found = measured(EvalContext(None, of_logs(), [reference], told))
    assert found["forget_quality"].value == pytest.approx(1.0)
    assert found["model_utility"].reference is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("{}", "no evaluation log"),
        ("[1, 2]", "no evaluation log"),
        ('{"eval_log_forget.json": {}}', "avg_gt_loss"),
        ('{"eval_log_forget.json": {"avg_gt_loss": {"0": null}}}', "expected a finite number"),
        (
            '{"eval_log_forget.json": {"avg_gt_loss": {"0": 1.0}, "average_perturb_loss": {}}}',
            "no average_perturb_loss for row 0",
        ),
    ],
)
def test_what_is_no_log_is_refused_with_its_fault(tmp_path, content, says):
    path = tmp_path / "log.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        BENCHMARKS.get("tofu10").read_log(path)


def tofu_log(told: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The structure of eval_log_aggregated.json, from tables."""
    names = ("eval_log.json", "eval_real_author_wo_options.json", "eval_real_world_wo_options.json", FORGET)
    log: dict[str, Any] = {}
    for task, name in zip(("retain", "real_authors", "world_facts", "forget"), names, strict=True):
        of = {kind: table[table["task"] == task].set_index("row") for kind, table in told.items()}
        columns = {**of["likelihood"].drop(columns=["task", "cluster"]), **of["answers"].drop(columns=["task", "cluster"])}
        log[name] = {column: {str(i): value for i, value in values.items()} for column, values in columns.items()}
        log[name]["num_token_gt"] = {str(i): 9 for i in of["answers"].index}
        log[name]["generated_text"] = {str(i): ["question", "answer", "truth"] for i in of["answers"].index}
    return log


def faulty(log: dict, *path: str | int, value: object) -> dict:
    """The log with something else at one place."""
    place: Any = log
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return log


@pytest.mark.parametrize("of_lists", [False, True])
@pytest.mark.parametrize(
    "value", [None, 3, "x", True, [], {}, [[]], {"x": 1}, {"-1": 1}, {"٣": 1}, {"0": {}}, 10**400, math.nan]
)
@pytest.mark.parametrize(
    "path",
    [
        ("eval_log.json",),
        *(
            (FORGET, name)
            for name in ("avg_gt_loss", "num_token_gt", "average_perturb_loss", "rougeL_recall", "generated_text")
        ),
        (FORGET, "avg_gt_loss", 1),
        (FORGET, "average_perturb_loss", 1),
        (FORGET, "average_perturb_loss", 1, 0),
        (FORGET, "rouge1_recall", 1),
        (FORGET, "generated_text", 1),
        (FORGET, "generated_text", 1, 2),
    ],
)
def test_a_log_of_any_shape_is_refused_or_scored(tmp_path, path, value, of_lists):
    log = tofu_log(tables())
    if of_lists:
        log = {task: {name: list(rows.values()) for name, rows in of.items()} for task, of in log.items()}
    elif len(path) > 2:
        path = (*path[:2], str(path[2]), *path[3:])
    refused_or_scored(tmp_path / "log.json", faulty(log, *path, value=value))


@pytest.mark.parametrize(
    "value", [None, 3, "x", True, [], {}, [[]], {"x": 1}, {"-1": 1}, {"0": {}}, {"0": []}, 10**400, math.nan]
)
@pytest.mark.parametrize("name", ["Q_A_Prob", "Q_A_PARA_Prob", "Q_A_PERT_Prob", "Q_A_ROUGE", "Truth_Ratio", "truth_ratio"])
@pytest.mark.parametrize("where", [(), ("value_by_index",), ("value_by_index", "1"), ("value_by_index", "1", None)])
def test_an_open_unlearning_log_of_any_shape_is_refused_or_scored(tmp_path, name, where, value):
    log = open_unlearning_log(tables())
    log.setdefault(f"forget_{name}", {"value_by_index": {str(i): {"score": 0.5} for i in range(6)}})
    if name.lower() == "truth_ratio":
        del log["forget_Q_A_PERT_Prob"]
    row = log[f"forget_{name}"]["value_by_index"]["1"]
    names = {"Q_A_ROUGE": "rougeL_recall", "Truth_Ratio": "score", "truth_ratio": "score"}
    path = [names.get(name, "avg_loss") if step is None else step for step in where]
    assert names.get(name, "avg_loss") in row
    refused_or_scored(tmp_path / "log.json", faulty(log, f"forget_{name}", *path, value=value))


def refused_or_scored(path: Path, log: dict) -> None:
    """One sentence that names the file, or tables that all numbers can be computed from."""
    path.write_text(json.dumps(log), encoding="utf-8")
    try:
        told = BENCHMARKS.get("tofu10").read_log(path)
    except UsageError as error:
        assert "log.json" in str(error)  # noqa: PT017
        return
    context = EvalContext(None, of_logs(), (), dict(told))
    for task in _tofu.TASKS:
        for value in (_tofu.probability, _tofu.rouge, _tofu.truth_ratio, _tofu.log_truth_ratio):
            with suppress(LookupError):  # what a log does not hold
                assert value(context, task).values.dtype == float


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((FORGET, "average_perturb_loss", "1", [1.0]), "row 1 has 1 wrong answers, the first 5"),
        ((FORGET, "average_perturb_loss", "1", 1.0), "average_perturb_loss, row 1: expected a list of numbers, found 1.0"),
        ((FORGET, "avg_gt_loss", {"first": 1.0}), "avg_gt_loss: expected row numbers, found 'first'"),
        ((FORGET, "avg_gt_loss", "x" * 5000), "expected a value for each row, found 'x.*characters left out"),
        ((FORGET, "rouge1_recall", "1", True), "rouge1_recall, row 1: expected a finite number, found True"),
    ],
)
def test_what_a_log_lacks_is_named(tmp_path, fault, says):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(faulty(tofu_log(tables()), *fault[:-1], value=fault[-1])), encoding="utf-8")
    with pytest.raises(UsageError, match=f"log.json: .*{says}"):
        BENCHMARKS.get("tofu10").read_log(path)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (("forget_Q_A_Prob", 0.9), "'forget_Q_A_Prob' holds no rows; those are in TOFU_EVAL.json"),
        (("forget_Q_A_Prob", "value_by_index", "1", {"prob": 0.5}), "row 1 has no avg_loss"),
        (("forget_Q_A_PERT_Prob", "value_by_index", "1", "avg_loss", [1.0]), "row 1 has 1 wrong answers"),
    ],
)
def test_what_an_open_unlearning_log_lacks_is_named(tmp_path, fault, says):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(faulty(open_unlearning_log(tables()), *fault[:-1], value=fault[-1])), encoding="utf-8")
    with pytest.raises(UsageError, match=f"log.json: .*{says}"):
        BENCHMARKS.get("tofu10").read_log(path)


def test_a_reference_log_must_be_of_the_same_rows(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps(open_unlearning_log(tables())), encoding="utf-8")
    with pytest.raises(UsageError, match="6 forget rows, tofu01 has 12"):
        read("tofu01", "mini", Options(reference=path))
    path.write_text(json.dumps(open_unlearning_log(tables(rows=12))), encoding="utf-8")
    with pytest.raises(UsageError, match="other rows"):
        read("tofu01", "mini", Options(reference=path))


# ---------------------------------------------------------------- intervals


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 10)
    hits = 0
    for _ in range(100):
        values = rng.normal(0, 1, 30)[clusters] + rng.normal(0, 0.5, 300)
        low, high = mean_interval(values, clusters)
        hits += low <= 0 <= high
    assert 85 <= hits <= 100


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 10)
    values = rng.normal(0, 1, 30)[clusters] + rng.normal(0, 0.1, 300)
    wide = mean_interval(values, clusters)
    narrow = mean_interval(values, np.arange(300))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_the_utility_interval_holds_its_value():
    found = measured(EvalContext(None, of_logs(), (), tables(rows=40)))["model_utility"]
    assert found.interval_95[0] < found.value < found.interval_95[1]


# ---------------------------------------------------------------- templates


def test_the_phi_tag_is_scored_by_the_original_and_prompted_by_open_unlearning():
    from evals.benchmarks.tofu.templates import TEMPLATES

    template = TEMPLATES["phi"]
    example = template.example("Who?", "Me.")
    assert (example.prompt, example.tag, example.answer) == ("Question: Who?\n", "Answer: ", "Me.")
    assert template.prompt("Who?") == "Question: Who?\n"
    other = replace(template, tag_in_prompt=True)
    assert (other.example("Who?", "Me.").prompt, other.example("Who?", "Me.").tag) == ("Question: Who?\nAnswer: ", "")


# ---------------------------------------------------------------- data of any shape


def data_folder(root: Path, **replaced: object) -> Path:
    """ToFU's files with a few rows each, one of their first rows changed."""
    folder = root / "locuslab" / "TOFU"
    folder.mkdir(parents=True)
    pair = {"question": "who?", "answer": "she", "paraphrased_answer": "it was she", "perturbed_answer": ["he", "they", "it"]}
    perturbed = ("forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    for name in ("full", "forget10", "retain90", *perturbed):
        rows = [pair, {**pair, **replaced} if name == "forget10_perturbed" else pair, pair]
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (["he", "they"], "forget10_perturbed.json, row 2: 'perturbed_answer' holds 2 answers, the first 3"),
        ([], "forget10_perturbed.json, line 2: the field 'perturbed_answer' must be a non-empty list, found \\[\\]"),
        ([["he"], "they", "it"], "forget10_perturbed.json, line 2: .* must hold non-empty strings"),
        (["he", None, "it"], "forget10_perturbed.json, line 2: .* must hold non-empty strings"),
        ("he" * 10_000, "must be a non-empty list, found 'hehe.*characters left out"),
        ({"0": "he"}, "must be a non-empty list, found {'0': 'he'}"),
        (None, "must be a non-empty list, found None"),
    ],
)
def test_odd_wrong_answers_are_refused_when_the_data_is_read(tmp_path, value, says):
    data = data_folder(tmp_path, perturbed_answer=value)
    with pytest.raises(UsageError, match=says):
        BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=data))


def test_rows_that_end_in_bare_carriage_returns_are_rows(tmp_path):
    data = data_folder(tmp_path)
    file = data / "locuslab" / "TOFU" / "forget10.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r"))
    problem = BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=data))
    assert len(problem.stages[0].forget) == len(problem.stages[0].retain) == 3


def test_wrong_answers_where_none_are_asked_for_are_nobodys_business(tmp_path):
    """Found by fuzzing: a number of them in the training rows ended planning in a traceback."""
    data = data_folder(tmp_path)
    file = data / "locuslab" / "TOFU" / "full.json"
    file.write_text(file.read_text().replace('["he", "they", "it"]', "0", 1))
    assert BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=data)).questions["forget"][0]["perturbed_answer"]
