"""The area under the ROC curve against counting pairs, and its interval against resampling the scores themselves."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.metric import Rows
from harness.statistics.ranks import AUC, placements


def counted(first: np.ndarray, second: np.ndarray) -> float:
    pairs = [(a < b) + 0.5 * (a == b) for a in first for b in second]
    return float(np.mean(pairs))


@pytest.mark.parametrize("values", [3, 1000])
def test_both_placements_mean_the_share_of_pairs(values: int):
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, values, 17).astype(float), rng.integers(values // 3, values + 1, 23).astype(float)
    of_first, of_second = placements(first, second)
    assert (len(of_first), len(of_second)) == (17, 23)
    assert of_first.mean() == pytest.approx(counted(first, second), abs=1e-12)
    assert of_second.mean() == pytest.approx(counted(first, second), abs=1e-12)
    assert AUC.value([Rows(of_first, np.arange(17)), Rows(of_second, np.arange(23))]) == of_first.mean()


def test_the_interval_is_that_of_resampled_scores():
    rng = np.random.default_rng(1)
    of_first, of_second = rng.normal(0, 1, 20), rng.normal(0.7, 1, 30)
    first, second = np.repeat(of_first, 4) + rng.normal(0, 0.3, 80), np.repeat(of_second, 4) + rng.normal(0, 0.3, 120)
    clusters = np.repeat(np.arange(20), 4), np.repeat(np.arange(30), 4)
    groups = [Rows(values, of) for values, of in zip(placements(first, second), clusters, strict=True)]
    assert AUC.interval
    ends = AUC.interval(groups, AUC.value(groups)).ends
    drawn = []
    for _ in range(1000):
        a, b = rng.integers(0, 20, 20), rng.integers(0, 30, 30)
        drawn.append(np.mean(placements(first.reshape(20, 4)[a].ravel(), second.reshape(30, 4)[b].ravel())[0]))
    assert ends == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)


def test_few_clusters_give_no_interval():
    groups = [Rows(values, np.zeros(4)) for values in placements(np.arange(4.0), np.arange(4.0))]
    assert AUC.interval
    assert AUC.interval(groups, 0.5).ends is None
