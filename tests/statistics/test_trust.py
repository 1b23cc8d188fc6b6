"""How far a metric is to be trusted, against numbers worked out by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hmean, mannwhitneyu

from harness.statistics.trust import Pool, faithfulness, mean, relearning, robustness, rounding

RNG = np.random.default_rng(0)


def pool(values: list[float] | np.ndarray, clusters: int = 5) -> Pool:
    values = np.array(values, dtype=float)
    return Pool(values, np.array([f"cluster {i % clusters}" for i in range(len(values))]))


def test_one_world_s_faithfulness_is_the_area_by_mann_whitney():
    known, never = RNG.normal(1.0, 1.0, 25).round(1), RNG.normal(0.0, 1.0, 20).round(1)  # with ties
    expected = mannwhitneyu(known, never).statistic / (25 * 20)
    assert faithfulness([(pool(known), pool(never))]).value == pytest.approx(expected, abs=1e-12)


def test_a_metric_that_lies_the_other_way_has_less_than_a_half():
    assert faithfulness([(pool([1.0, 2.0]), pool([3.0, 4.0]))]).value == 0.0
    assert faithfulness([(pool([1.0, 2.0]), pool([1.0, 2.0]))]).value == 0.5


def test_worlds_are_averaged_and_their_values_never_compared():
    apart, alike = (pool([1.0, 2.0]), pool([0.0, 0.5])), (pool([100.0, 101.0]), pool([100.0, 101.0]))
    assert faithfulness([apart, alike]).value == 0.75


def test_the_interval_resamples_whole_clusters():
    """Five models that were each made four times over know as much as five, not as twenty."""
    known, never = np.array([0.1, 0.4, 0.5, 0.9, 1.2]), np.array([0.0, 0.3, 0.45, 0.6, 0.8])
    few = faithfulness([(pool(known), pool(never))]).ends
    many = faithfulness([(pool(np.tile(known, 4)), pool(np.tile(never, 4)))]).ends
    alone = faithfulness([(pool(np.tile(known, 4), 20), pool(np.tile(never, 4), 20))]).ends
    assert few
    assert alone
    assert many == pytest.approx(few)
    assert alone[1] - alone[0] < 0.7 * (few[1] - few[0])


def test_too_few_clusters_have_no_interval():
    assert faithfulness([(pool(RNG.normal(size=8), 4), pool(RNG.normal(size=8), 5))]).ends is None
    assert mean(np.ones(4), np.array(list("aabb"))).ends is None


@pytest.mark.parametrize(
    ("change", "of_retrained", "symmetric", "one_sided"),
    [
        (0.4, 0.2, 1 - 0.2 / 0.6, 0.5),  # twice as much came back as a retrained model learns
        (0.1, 0.2, 1 - 0.1 / 0.3, 1.0),
        (0.2, 0.2, 1.0, 1.0),
        (-0.1, 0.2, 0.0, 1.0),  # relearning took something away
        (0.1, -0.2, 0.0, 0.0),
        (0.0, 0.2, 0.0, 1.0),
        (0.0, 0.0, 1.0, 1.0),
    ],
)
def test_relearning_by_hand(change: float, of_retrained: float, symmetric: float, one_sided: float):
    given = np.array([change]), np.array([of_retrained])
    assert relearning(*given, symmetric=True)[0] == pytest.approx(symmetric)
    assert relearning(*given, symmetric=False)[0] == pytest.approx(one_sided)


@pytest.mark.parametrize(
    ("before", "after", "symmetric", "one_sided"),
    [
        (0.2, 0.4, 1 - 0.2 / 0.6, 0.5),  # it came back
        (0.4, 0.2, 1 - 0.2 / 0.6, 1.0),  # it was lost
        (0.0, 0.3, 0.0, 0.0),
        (0.3, 0.0, 0.0, 1.0),
        (0.0, 0.0, 1.0, 1.0),
        (0.3, 0.3, 1.0, 1.0),
    ],
)
def test_rounding_by_hand(before: float, after: float, symmetric: float, one_sided: float):
    given = np.array([before]), np.array([after])
    assert rounding(*given, symmetric=True)[0] == pytest.approx(symmetric)
    assert rounding(*given, symmetric=False)[0] == pytest.approx(one_sided)


def test_robustness_is_the_harmonic_mean_of_both_means():
    relearned, rounded = np.array([0.2, 0.4, 0.6, 0.8, 1.0]), np.array([0.9, 0.9, 0.8, 0.8, 0.7])
    found = robustness(relearned, rounded, np.array(list("abcde")))
    assert found.value == pytest.approx(hmean([0.6, 0.82]))
    assert found.ends
    assert found.ends[0] < found.value < found.ends[1]
    assert robustness(np.zeros(5), rounded, np.array(list("abcde"))).value == 0.0
