"""How well a score tells two samples apart: the area under the ROC curve, as rows that can be resampled. Knows no metric.

    AUC = P(a < b) + ½ P(a = b)     a from the first sample, b from the second     (Mann-Whitney's U over n · m)

It is the mean of either sample's *placements* (DeLong et al. 1988, doi:10.2307/2531595): of each a the share of the second
sample above it, of each b the share of the first below it. To first order the AUC of resampled rows is the sum of both
placements' resampled means less the AUC itself; that is how its interval is made, whole clusters of each sample resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.core.metric import Interval, OfMeans, Rows
from harness.statistics.bootstrap import METHOD, interval

if TYPE_CHECKING:
    import numpy as np


def placements(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's share of the other sample on the far side of it, ties counted half; both have the AUC as their mean.

    Args:
        first: [n] scores.
        second: [m] scores, the larger ones if the samples can be told apart.

    Returns:
        ([n] in [0, 1], [m] in [0, 1]).

    >>> import numpy as np
    >>> [each.tolist() for each in placements(np.array([1.0, 2.0]), np.array([2.0, 3.0]))]
    [[1.0, 0.75], [0.75, 1.0]]
    """
    return _share_below(-second, -first), _share_below(first, second)


def _share_below(sample: np.ndarray, of: np.ndarray) -> np.ndarray:
    """[m] of each of the second the share of the first that is smaller, ties counted half."""
    import numpy as np

    ranked = np.sort(sample)
    return (np.searchsorted(ranked, of, "left") + np.searchsorted(ranked, of, "right")) / (2 * len(sample))


def _interval(groups: Sequence[Rows], auc: float) -> Interval:
    first, second = groups
    ends = interval(
        [(first.values[:, None], first.clusters), (second.values[:, None], second.clusters)],
        lambda means: (means[0] + means[1] - auc).clip(0, 1),
    )
    if ends is None:
        return Interval(None, "none: fewer than five clusters in one of the samples")
    return Interval(ends, f"{METHOD}, of placements", "clusters of each sample on its own")


AUC = OfMeans(of_columns=lambda columns: float(columns[0].mean()), interval=_interval)
"""Of two groups of rows: the first and the second sample's placements."""
