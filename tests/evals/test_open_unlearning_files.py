"""open-unlearning's evaluation files, read and written: laid out as its code writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS, LOG_MARK
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Absent, Measurement
from harness.running.logs import score_log
from harness.statistics.measurements import measurements
from harness.storage.frames import in_one
from tests.evals.test_open_unlearning_score import tables as all_tables
from tests.evals.test_tofu import open_unlearning_log, tables

TOFU = BENCHMARKS.get("tofu10")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def by_index(values: Any, field: str = "score") -> dict[str, Any]:
    return {"agg_value": float(np.mean(values)), "value_by_index": {str(i): {field: float(v)} for i, v in enumerate(values)}}


def log_of(seed: int) -> dict[str, Any]:
    """A whole TOFU_EVAL.json: `mia_auc` of its src/evals/metrics/mia/utils.py keeps both samples and their area."""
    rng = np.random.default_rng(seed)
    log = open_unlearning_log(tables(seed=seed))
    log["extraction_strength"] = by_index(rng.uniform(size=6))
    log["exact_memorization"] = by_index(rng.uniform(size=6))
    log["forget_Q_A_PARA_ROUGE"] = by_index(rng.uniform(size=6), "rougeL_recall")
    for attack in ATTACKS:
        forget, holdout = rng.normal(0, 1, 6), rng.normal(0.5, 1, 8)
        area = float(np.mean([(a < b) + 0.5 * (a == b) for a in forget for b in holdout]))
        samples = {"forget": by_index(forget), "holdout": by_index(holdout)}
        log[f"mia_{attack}"] = {**samples, "auc": area, "agg_value": area}
    return log


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return path


def scored(*paths: Path) -> tuple[str, Mapping[str, Any]]:
    """Heading and measurements of the first log."""
    name, found = next(iter(score_log(TOFU, paths[0], paths[1] if paths[1:] else None, "open-unlearning").items()))
    return name, {m.metric: m for m in found}


# ---------------------------------------------------------------- reading


def test_its_rows_give_its_own_aggregated_numbers(tmp_path: Path):
    log = log_of(0)
    heading, found = scored(written(tmp_path / "TOFU_EVAL.json", log))
    assert heading == "TOFU_EVAL (open-unlearning)"
    names = {"extraction_strength": "extraction_strength", "exact_memorization": "exact_memorisation"}
    names |= {f"mia_{attack}": f"membership_{attack}" for attack in ATTACKS}
    names |= {"forget_Q_A_PARA_ROUGE": "paraphrased_answer_rouge"}
    for theirs, ours in names.items():
        assert found[ours].value == pytest.approx(log[theirs]["agg_value"], rel=1e-12), theirs
    losses = [row["avg_loss"] for row in log["forget_Q_A_PARA_Prob"]["value_by_index"].values()]
    assert found["paraphrased_answer_probability"].value == pytest.approx(np.exp(-np.array(losses)).mean(), rel=1e-12)
    assert found["membership_loss"].n == 14
    assert isinstance(found["open_unlearning_memorisation"], Measurement)
    assert isinstance(found["open_unlearning_utility"], Absent)


def test_a_retrained_models_log_normalises_the_areas(tmp_path: Path):
    log, retrained = log_of(0), log_of(1)
    _, found = scored(written(tmp_path / "a.json", log), written(tmp_path / "b.json", retrained))
    for attack in ATTACKS:
        area, target = (of[f"mia_{attack}"]["auc"] for of in (log, retrained))
        expected = min(1, max(0, 1 - abs(area - target) / target))
        assert found[f"membership_{attack}_normalised"].value == pytest.approx(expected, rel=1e-12)


def test_an_answer_of_no_token_has_no_score(tmp_path: Path):
    """Its `exact_memorization` keeps None for such a row."""
    log = log_of(0)
    log["exact_memorization"]["value_by_index"]["2"]["score"] = None
    _, found = scored(written(tmp_path / "TOFU_EVAL.json", log))
    assert "1 of 6 rows are not finite" in found["exact_memorisation"].reason


def test_a_log_without_them_shows_nothing_more(tmp_path: Path):
    _, found = scored(written(tmp_path / "TOFU_EVAL.json", open_unlearning_log(tables())))
    assert not [name for name in found if name.startswith(("membership", "extraction", "exact"))]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mia_loss": {"forget": {"value_by_index": {"0": {}}}}}, "mia_loss, forget: row 0 has no score"),
        (
            {"extraction_strength": {"value_by_index": {"0": {"score": "x"}}}},
            "extraction_strength, 0: expected a finite number",
        ),
        ({"mia_zlib": {"holdout": {"value_by_index": 3}}}, "mia_zlib, holdout: expected a value for each row"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], says: str):
    with pytest.raises(UsageError, match=says):
        scored(written(tmp_path / "TOFU_EVAL.json", {**log_of(0), **change}))


SUMMARY = {
    "exact_memorization": 0.7,
    "extraction_strength": 0.1,
    "forget_Q_A_Prob": 0.2,
    "forget_Q_A_ROUGE": 0.4,
    "forget_quality": 1e-5,
    "forget_truth_ratio": 0.6,
    "mia_min_k": 0.5,
    "model_utility": 0.61,
    "privleak": -21.5,
    "ra_Q_A_Prob_normalised": 0.45,
}


def test_a_summary_is_read_under_our_names_and_says_whose_it_is(tmp_path: Path):
    path = written(tmp_path / "TOFU_SUMMARY.json", SUMMARY)
    heading, found = scored(path, written(tmp_path / "retain.json", {**SUMMARY, "model_utility": 0.6}))
    assert heading == "TOFU_SUMMARY (open-unlearning)"
    assert {name: m.value for name, m in found.items()} == {
        "exact_memorisation": 0.7,
        "extraction_strength": 0.1,
        "forget_probability": 0.2,
        "forget_rouge": 0.4,
        "forget_quality": 1e-5,
        "forget_truth_ratio": 0.6,
        "membership_min_k": 0.5,
        "model_utility": 0.61,
        "privleak": -21.5,
        "real_authors_probability": 0.45,
    }
    utility = found["model_utility"]
    assert (utility.reference, utility.interval_95, utility.interval_method, utility.selection) == (
        0.6,
        None,
        "none: a summary holds no rows",
        "as logged",
    )
    assert found["privleak"].note == "none of this project's metrics"
    alone = scored(path)[1]
    assert [m["extraction_strength"].better for m in (found, alone)] == ["closer", "lower"]


def test_a_summary_and_rows_are_not_compared(tmp_path: Path):
    summary, log = written(tmp_path / "TOFU_SUMMARY.json", SUMMARY), written(tmp_path / "TOFU_EVAL.json", log_of(0))
    with pytest.raises(UsageError, match="give the retrained model's summary"):
        scored(summary, log)
    with pytest.raises(UsageError, match="not in its summary"):
        scored(log, summary)


# ---------------------------------------------------------------- writing


def numbers_of(found: dict[str, pd.DataFrame]) -> dict[str, float]:
    plan = EvalPlan(evaluators=TOFU.evaluators(), variant="open-unlearning")
    context = EvalContext(None, plan, (), found)
    extra = [EVALUATORS.get(name) for name in TOFU.in_logs]  # type: ignore[attr-defined]
    every = [m for e in (*plan.evaluators, *extra) for m in measurements(e, context)]
    return {m.metric: m.value for m in every if isinstance(m, Measurement)}


def test_what_is_written_is_read_again_as_the_same_numbers(tmp_path: Path):
    found = all_tables(3, 0.5)
    told = found["likelihood"]
    short = told["task"].isin(["real_authors", "world_facts"])  # they have no paraphrase: it is the answer itself
    told.loc[short, "avg_paraphrased_loss"] = told.loc[short, "avg_gt_loss"]
    rows, numbers = in_one(found.values()), numbers_of(found)
    files = TOFU.write_log(rows, numbers, "open-unlearning")  # type: ignore[attr-defined]
    assert set(files) == {"TOFU_EVAL.json", "TOFU_SUMMARY.json"}
    ours = {LOG_MARK: "unlearning-harness, run abc"}
    paths = {name: written(tmp_path / name, {**content, **ours}) for name, content in files.items()}
    heading, again = scored(paths["TOFU_EVAL.json"])
    assert heading == "TOFU_EVAL (unlearning-harness, run abc)"
    same = {m.metric: m.value for m in again.values() if isinstance(m, Measurement)}
    assert same == {name: pytest.approx(value, rel=1e-12) for name, value in numbers.items() if name in same}
    assert set(numbers) - set(same) <= {"forget_quality", "retain_kl", "paraphrased_answer_rouge"}
    heading, summed_up = scored(paths["TOFU_SUMMARY.json"])
    assert heading == "TOFU_SUMMARY (unlearning-harness, run abc)"
    for name in ("model_utility", "forget_truth_ratio", "real_authors_probability", "membership_zlib", "extraction_strength"):
        assert summed_up[name].value == pytest.approx(numbers[name], rel=1e-12), name


def test_the_written_form_is_theirs():
    found = all_tables(3, 0.5)
    log = TOFU.write_log(in_one(found.values()), numbers_of(found), "open-unlearning")["TOFU_EVAL.json"]  # type: ignore[attr-defined]
    assert list(log) == sorted(log)
    assert set(log["forget_Q_A_Prob"]) == {"agg_value", "value_by_index"}
    assert set(log["forget_Q_A_Prob"]["value_by_index"]["0"]) == {"prob", "avg_loss"}
    assert [len(log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"][key]) for key in ("prob", "avg_loss")] == [5, 5]
    assert set(log["mia_loss"]) == {"forget", "holdout", "auc", "agg_value"}
    assert set(log["model_utility"]) == {"agg_value"}
    assert set(log["ra_Q_A_Prob_normalised"]["value_by_index"]["0"]) == {"prob"}


def test_a_run_in_tofus_definitions_is_not_written_as_open_unlearnings():
    found = all_tables(3, 0.5)
    with pytest.raises(UsageError, match="--variant open-unlearning"):
        TOFU.write_log(in_one(found.values()), {}, "original")  # type: ignore[attr-defined]
