"""Intervals by resampling whole clusters: questions about one author rise and fall together. Knows no metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.core.streams import streams

if TYPE_CHECKING:
    import numpy as np


RESAMPLES = 2000
METHOD = f"percentile bootstrap, {RESAMPLES} resamples"
DRAWN_AT_ONCE = 20_000_000
"""Clusters drawn together, which bounds the memory."""
FEWEST_CLUSTERS = 5
"""Under this many clusters there is no interval: resampling so few says nothing."""


def interval(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], of_means: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float] | None:
    """A 95 % interval of a function of several means, the clusters of each group resampled on their own.

    Args:
        groups: for each group ([n, k] values, [n] cluster of each row): k means over the same rows.
        of_means: takes the means, [k, resamples] of all groups one after another, and returns [resamples].
        seed: of the resampling.

    Returns:
        (lower, upper), or None where a group has fewer than `FEWEST_CLUSTERS` clusters.
    """
    import numpy as np
    from scipy.stats import bootstrap

    totals = []
    for values, clusters in groups:
        _, index = np.unique(clusters, return_inverse=True)
        count = index.max() + 1
        if count < FEWEST_CLUSTERS:
            return None
        sums = np.zeros((count, values.shape[1] + 1))
        np.add.at(sums, index, np.column_stack([values, np.ones(len(values))]))
        totals.append(sums)

    def of_clusters(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        means = []
        for sums, chosen in zip(totals, drawn, strict=True):
            picked = sums[chosen.astype(int)].sum(axis=-2)  # [..., k + 1]
            means += [picked[..., j] / picked[..., -1] for j in range(sums.shape[1] - 1)]
        return of_means(np.stack(means))

    result = bootstrap(
        [np.arange(len(sums)) for sums in totals],
        of_clusters,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        batch=max(1, DRAWN_AT_ONCE // sum(map(len, totals))),
        rng=streams(seed, "bootstrap").numpy(),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def mean_interval(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float] | None:
    """A 95 % interval of a mean over rows, whole clusters resampled; see `interval`."""
    return interval([(values[:, None], clusters)], lambda means: means[0])
