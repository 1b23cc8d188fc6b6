"""Comparing two samples: the Kolmogorov-Smirnov test, and the smallest distance that it can show."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05


class Test(NamedTuple):
    """What a two-sample test says."""

    p: float
    """The p-value."""
    distance: float
    """The statistic."""
    note: str | None = None
    """What a reader must know of how it was computed."""


def ks(first: np.ndarray, second: np.ndarray) -> Test:
    """The two-sided two-sample Kolmogorov-Smirnov test, with a note if scipy fell back from the exact distribution."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ks_2samp(first, second)
    note = "asymptotic p-value: the exact one could not be computed" if caught else None
    return Test(float(result.pvalue), float(result.statistic), note)


def smallest_distance(n: int, test: Callable[[np.ndarray, np.ndarray], Test] = ks) -> float | None:
    """The smallest Kolmogorov-Smirnov distance between two samples of n whose p-value is at most 5 %; None if none is."""
    import numpy as np

    low, high = 1, n + 1  # D is a multiple of 1/n, and p falls with it
    while low < high:
        middle = (low + high) // 2
        first = np.arange(n, dtype=float)
        if test(first, first + middle - 0.5).p <= LEVEL:
            high = middle
        else:
            low = middle + 1
    return low / n if low <= n else None
