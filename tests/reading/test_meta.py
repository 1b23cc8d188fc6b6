"""The meta-evaluation out of records: which models count, which way metrics lie, and what is said where there is no number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.config import to_json
from harness.core.measurement import Absent, Measurement
from harness.core.pools import DISTURBED_MODEL, POOL_MODEL, DisturbedModelConfig, PoolModelConfig
from harness.reading.leaderboard import build
from harness.reading.meta import MetaEvaluation, Trust, meta_evaluations
from harness.reading.meta_table import FOLDER, meta_sheets
from harness.statistics.trust import Estimate
from harness.storage.records import RunResult
from tests.records import number, run, write

SOURCES = {"base": {"kind": "trained"}, **{f"retain-{k}": {"kind": "trained", "seed": k} for k in range(3)}}
P, ES, KS = "forget_probability", "extraction_strength", "forget_quality_d"
METHODS = ("ga", "grad_diff", "idk", "kfade", "npo")


def pool(learnt: str, p: float, ks: tuple[float, float], world: str = "mini", **config: Any) -> RunResult:
    """A model of a pool; the distances are that to the first reference and to the closest of three."""
    measured = [number(P, p), number(KS, ks[0], across_references=(ks[1], 0.9)), Absent(metric=ES, reason="no tokens")]
    spec = {"method": POOL_MODEL, "model": world, "sources": SOURCES}
    return run(measured, spec={**spec, "config": to_json(PoolModelConfig(learnt=learnt, **config))})


def disturbed(method: str, p: tuple[float, float, float, float], utility: float = 0.8, world: str = "mini") -> RunResult:
    """A model with its probability at each disturbance."""
    ways = [[number(P, value), number("model_utility", utility)] for value in p]
    spec = {"method": DISTURBED_MODEL, "model": world, "sources": SOURCES}
    return run(*ways, spec={**spec, "config": to_json(DisturbedModelConfig(method=method))})


POOLS = [
    *(pool("full", p, (0.5, 0.4), number=n) for n, p in enumerate((0.9, 0.8, 0.7, 0.3, 0.6))),
    *(
        pool("retain", p, (0.2, ks), number=n)
        for n, (p, ks) in enumerate(((0.2, 0.1), (0.4, 0.6), (0.1, 0.1), (0.2, 0.1), (0.1, 0.1)))
    ),
]
DISTURBED = [
    disturbed("retrained", (0.2, 0.3, 0.2, 0.2), utility=0.9),
    *(disturbed(method, (0.1, 0.3, 0.1, 0.2)) for method in METHODS),
    disturbed("simnpo", (0.0, 0.0, 0.0, 0.0), utility=0.5),  # 0.56 of the untouched model's: it broke
]


def evaluation(*runs: RunResult) -> MetaEvaluation:
    (found,) = meta_evaluations(runs)
    return found


def trust(found: MetaEvaluation, metric: str, closest: bool = False) -> Trust:
    return next(each for each in found.trust if (each.judged.metric, each.judged.closest) == (metric, closest))


def value(estimate: Estimate | str) -> float:
    assert isinstance(estimate, Estimate)
    return estimate.value


def test_faithfulness_is_the_share_of_pairs_in_the_right_order():
    assert value(trust(evaluation(*POOLS), P).faithfulness) == pytest.approx(24 / 25)  # 0.3 knows, 0.4 never did


def test_a_metric_that_is_low_where_much_is_known_is_turned_round():
    records = [*(_with(each, number("forget_truth_ratio", 0.4)) for each in POOLS[:5])]
    records += [_with(each, number("forget_truth_ratio", 0.7)) for each in POOLS[5:]]
    assert value(trust(evaluation(*records), "forget_truth_ratio").faithfulness) == 1.0


def _with(record: RunResult, item: Measurement) -> RunResult:
    (point,) = record.points
    items = [*point.measurements, item]
    return run(items, spec={name: getattr(record.spec, name) for name in ("method", "model", "sources", "config")})


def test_distances_are_judged_with_one_reference_and_with_the_closest_of_three():
    found = evaluation(*POOLS)
    assert value(trust(found, KS).faithfulness) == 1.0
    assert value(trust(found, KS, closest=True).faithfulness) == pytest.approx(0.8)  # 0.6 of one that never did is above 0.4
    assert not [each for each in found.judged if each.closest and each.metric == P]


def test_models_that_learnt_the_answers_as_they_stand_are_judged_apart():
    """In other words or wrong: the metric sees nothing of the first, and takes the second for knowledge."""
    others = [pool("paraphrased", 0.0, (0.5, 0.4)), pool("wrong", 1.0, (0.2, 0.1))]
    told = trust(evaluation(*POOLS, *others), P)
    assert value(told.same_words) == pytest.approx(24 / 25)
    assert value(told.faithfulness) == pytest.approx(24 / 36)


def test_worlds_are_compared_each_with_itself():
    other = [
        pool(each.spec.config["learnt"], 0.01 * _p(each), (0.5, 0.4), "mini@2", number=int(each.spec.config["number"]))
        for each in POOLS
    ]  # type: ignore[arg-type]
    found = evaluation(*POOLS, *other)
    assert found.worlds == ["mini", "mini@2"]
    assert value(trust(found, P).faithfulness) == pytest.approx(24 / 25)
    assert (trust(found, P).known, trust(found, P).never) == (10, 10)


def _p(record: RunResult) -> float:
    return next(m.value for m in record.points[0].measurements if isinstance(m, Measurement) and m.metric == P)


def test_robustness_by_hand():
    """Relearning: +0.2 against +0.1 of a retrained model. 4 bits: 0.1 becomes 0.2; 8 bits: nothing."""
    found = trust(evaluation(*POOLS, *DISTURBED), P)
    expected = {"relearned": (2 / 3, 0.5), "8 bits": (1.0, 1.0), "4 bits": (2 / 3, 0.5), "robustness": (2 / 3, 0.5)}
    for what, both in expected.items():
        for form, number_of in zip(("symmetric", "one-sided"), both, strict=True):
            assert value(found.robustness[f"{what}, {form}"]) == pytest.approx(number_of), (what, form)
    assert found.unlearned == len(METHODS), "retrained ones and those that broke do not count"


def test_what_cannot_be_computed_is_absent_with_its_reason():
    found = evaluation(*POOLS, *DISTURBED)
    assert trust(found, ES).faithfulness == "no tokens"
    assert set(trust(found, ES).robustness.values()) == {"it was not measured"}
    assert set(trust(evaluation(*POOLS), P).robustness.values()) == {"it was not measured"}


def test_unfinished_records_and_other_runs_do_not_count():
    assert meta_evaluations([run([number(P, 0.5)])]) == []
    assert len(evaluation(*POOLS, run(spec={"method": POOL_MODEL}, status="failed")).pools) == len(POOLS)


# ---------------------------------------------------------------- shown


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for record in (*POOLS, *DISTURBED):
        write(tmp_path / FOLDER, record)
    write(tmp_path, run([number("forget_quality_d", 0.3), number("model_utility", 0.9)]))
    papers = tmp_path / "published" / "meta_evaluation"
    papers.mkdir(parents=True)
    paper = {"name": "UDS", "paper": "A paper", "source": "a file", "models": "some models", "notes": ["Mind this."]}
    values = {P: {"name": "Probability", "faithfulness": 0.816, "robustness": 0.7573}}
    (papers / "uds.json").write_text(json.dumps({**paper, "values": values}))
    return tmp_path


def test_the_table_has_a_row_a_metric_and_the_published_numbers_beside_ours(results: Path):
    (sheet,) = meta_sheets(results)
    row = sheet.shown[sheet.shown["metric"] == "P forget"].iloc[0]
    assert row["faithful (AUC)"].startswith("0.96 [")
    assert (row["UDS"], row["UDS, robust"]) == ("0.82", "0.76")
    assert row["n"] == "5 + 5, 5"
    said = " ".join(sheet.notes)
    assert "5 that know it (5 trained from their base) and 5 that never did (5 trained from their base)" in said
    assert "5 models; 1 more are left out, for they kept less than 80%" in said
    assert "Mind this." in said
    absent = sheet.numbers[sheet.numbers["metric"] == ES].iloc[0]
    assert (absent["faithfulness"], absent["absent"]) == ("", "no tokens; it was not measured")


def test_the_leaderboard_says_how_far_to_trust_each_column(results: Path):
    files = build(results)
    assert b"How far to trust each column: tofu10 on mini" in files["index.html"]
    assert b"## How far to trust each column: tofu10 on mini" in files["leaderboard.md"]
    assert files["meta.csv"].startswith(b"bench,variant,worlds,metric,")
    assert files == build(results), "an unchanged store changes no byte"
    assert b"pool_model" not in files["leaderboard.csv"]


def test_a_file_of_published_numbers_that_is_none_is_told_of(results: Path):
    (results / "published" / "meta_evaluation" / "odd.json").write_text('{"name": 3}')
    said: list[str] = []
    assert len(meta_sheets(results, said.append)) == 1
    assert len(said) == 1
    assert "odd.json" in said[0]


def test_a_clusters_models_are_resampled_together():
    twice = [
        pool(str(each.spec.config["learnt"]), _p(each), (0.5, 0.4), number=int(each.spec.config["number"]), tuned_on="retain")
        for each in POOLS
    ]  # type: ignore[arg-type]
    once, both = (trust(evaluation(*records), P).faithfulness for records in (POOLS, [*POOLS, *twice]))
    assert isinstance(once, Estimate)
    assert isinstance(both, Estimate)
    assert once.ends is not None
    assert both.ends == pytest.approx(once.ends)
    assert np.isclose(once.value, both.value)
