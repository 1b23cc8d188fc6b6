"""Standard errors of means over rows that come in groups, pooled over subjects. Knows no metric.

    s² = G/(G − 1) Σ_g (Σ_{i in g} (x_i − mean))² / n²             G groups of n rows
    s² = Σ_k (n_k − 1) n_k s_k² / (n − K) / n                      K subjects of n_k rows

The first counts rows of one group as one draw (arXiv:2411.00640); the second pools subjects as lm-eval's groups do
(`weight_by_size`, `lm_eval.api.metrics.pooled_sample_stderr`): by how much subjects differ is no chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def standard_error(values: np.ndarray, clusters: np.ndarray) -> tuple[float, int]:
    """The standard error of a mean over rows that come in groups, and how many groups there are.

    Args:
        values: [n] numbers, such as 0 or 1.
        clusters: [n] each row's group.

    Returns:
        (error, groups); 0 for a single group.
    """
    import numpy as np

    _, group = np.unique(clusters, return_inverse=True)
    groups = int(group.max()) + 1
    sums = np.bincount(group, weights=values - values.mean())
    variance = groups / max(1, groups - 1) * float((sums**2).sum()) / len(values) ** 2
    return variance**0.5, groups


def pooled_standard_error(values: np.ndarray, clusters: np.ndarray, strata: np.ndarray) -> tuple[float, int]:
    """The standard error of a mean over rows of several subjects, and how many groups of rows there are.

    Args:
        values: [n] numbers, such as 0 or 1.
        clusters: [n] each row's group.
        strata: [n] each row's subject.

    Returns:
        (error, groups); NaN where every subject has one row, which says nothing of its spread.
    """
    parts = [(values[strata == name], clusters[strata == name]) for name in dict.fromkeys(strata)]
    errors = [(len(of), *standard_error(of, groups)) for of, groups in parts]
    n, groups = len(values), sum(groups for _, _, groups in errors)
    if n == len(errors):
        return float("nan"), groups
    squares = sum((size - 1) * size * error**2 for size, error, _ in errors)
    return (squares / (n - len(errors)) / n) ** 0.5, groups
