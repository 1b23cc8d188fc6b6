"""What a benchmark can show: the distances that a textbook gives, and intervals that shrink with what two runs share."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.core.benchmark import BENCHMARKS
from harness.core.evaluator import metric_of
from harness.core.measurement import Absent, Measurement
from harness.core.options import Options
from harness.reading.power import of_pairs, of_problem, smallest_differences
from harness.running.plan import plan
from harness.statistics.two_sample import ks, smallest_distance
from tests.cli.test_cli import Harness, harness  # noqa: F401


@pytest.mark.parametrize(
    ("n", "d"), [(12, 0.58), (40, 0.325), (60, 0.25), (120, 0.18), (200, 0.14), (300, 0.113), (400, 0.0975)]
)
def test_the_distance_that_is_significant_at_five_percent(n: int, d: float):
    found = smallest_distance(n)
    assert found == pytest.approx(d, abs=0.0051)
    first, steps = np.arange(n, dtype=float), round(found * n)
    assert ks(first, first + steps - 0.5)[:2] == (pytest.approx(0.05, abs=0.05), pytest.approx(found))
    assert ks(first, first + steps - 0.5)[0] <= 0.05 < ks(first, first + steps - 1.5)[0]


def test_so_few_that_nothing_is_significant():
    assert smallest_distance(3) is None


def rows(shift: float, noise: float, seed: int) -> pd.DataFrame:
    """Ten authors of six questions whose ROUGE they share, and what a run adds to it."""
    of_authors = np.repeat(np.random.default_rng(7).uniform(0.2, 0.8, 10), 6)
    own = np.random.default_rng(seed).normal(shift, noise, 10).repeat(6)
    return pd.DataFrame(
        {
            "task": "forget",
            "row": range(60),
            "cluster": np.repeat([f"a{i}" for i in range(10)], 6),
            "rougeL_recall": of_authors + own,
        }
    )


def test_a_paired_difference_needs_only_what_the_runs_do_not_share():
    match = metric_of("forget_rouge")
    assert match

    def needed(noise: float) -> Measurement:
        found = of_pairs(match[1], [rows(0.0, 0.0, 1), rows(0.1, noise, 2)], "original")
        assert isinstance(found, Measurement)
        return found

    alike, unlike = needed(0.001), needed(0.2)
    assert alike.value < 0.005, "two runs that differ by the same everywhere can be told apart however authors differ"
    assert 0.5 * 1.96 * 0.2 / 10**0.5 < unlike.value < 1.5 * 1.96 * 0.2 / 10**0.5, "about 1.96 σ/√authors"
    assert (unlike.n, unlike.resampled) == (60, "authors")
    assert "10 authors" in str(unlike.note)


def test_without_rows_to_compare_it_says_so(nano_problem):
    first, *others = of_problem(replace(nano_problem, bench="tofu10"), "original", [rows(0, 0, 1)])
    assert isinstance(first, Measurement | Absent)
    assert all(isinstance(found, Absent) and "fewer than two methods" in found.reason for found in others)


def test_rows_that_were_asked_for_in_another_template_are_no_pair():
    """A published model has the same weights whatever it was asked in."""
    specs = {method: plan("tofu10", "mini", method, {}, Options()).spec for method in ("ga", "npo")}
    results = [SimpleNamespace(spec=spec, points=[SimpleNamespace(index=0)]) for spec in specs.values()]
    tables = dict(zip(specs, (rows(0.0, 0.0, 1), rows(0.1, 0.2, 2)), strict=True))
    store: Any = SimpleNamespace(runs=lambda: results, rows=lambda spec, index: tables[spec.method])

    def shown() -> bool:
        found = {each.metric: each for each in smallest_differences("tofu10", "mini", store, Options())}
        return isinstance(found["forget_rouge"], Measurement)

    assert shown()
    results[1].spec = replace(specs["npo"], template={**specs["npo"].template, "name": "other"})
    assert not shown()


def test_an_accuracy_needs_what_the_paired_standard_error_says():
    """Two methods that are right on other questions half of the time: 1.96 √(σ² / groups) of the groups' mean differences."""
    rng = np.random.default_rng(0)
    told = {"task": "bio", "row": range(400), "cluster": np.repeat([f"e{i}" for i in range(100)], 4), "choice": 0.0}
    tables = [pd.DataFrame({**told, "correct": rng.integers(0, 2, 400).astype(float)}) for _ in range(2)]
    problem = BENCHMARKS.get("wmdp").problem("mini", Options())
    found = {each.metric: each for each in of_problem(problem, "original", tables)}
    assert list(found) == [*(f"{name}_accuracy" for name in ("bio", "cyber", "neighbours", "general")), "alpaca_kl"]
    bio = found["bio_accuracy"]
    assert isinstance(bio, Measurement)
    apart = (tables[0]["correct"] - tables[1]["correct"]).groupby(tables[0]["cluster"]).mean()
    assert bio.value == pytest.approx(1.96 * apart.std() / 100**0.5, rel=0.05)
    assert (bio.n, bio.resampled) == (400, "groups of questions")
    assert isinstance(found["alpaca_kl"], Absent)
    assert "completions" in found["alpaca_kl"].reason


def test_the_command_says_n_authors_and_how(harness: Harness, tmp_path):  # noqa: F811
    told = harness("power", "--bench", "tofu10", "--results", tmp_path / "r")
    assert told.code == 0, told
    for word in ("forget_quality_d", "0.18", "120", "two-sample KS test", "absent", "model_utility"):
        assert word in told.out
