"""The smallest differences that metrics can show, given how many rows and clusters of rows there are.

Forget quality compares two models' truth ratios on the same n rows with a two-sample Kolmogorov-Smirnov test, so what it needs
at 5 % follows from n alone. Accuracies, other means over rows and model utility are compared row by row: the difference of two
recorded runs is resampled by whole authors or groups of questions, and what is under half the width of its 95 % interval is not
shown. (A true difference of just that size is shown every second time; four times out of five takes 1.4 times as much.)
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from evals._bootstrap import FEWEST_CLUSTERS
from evals._paired import METHOD, of_rows
from harness.core.interfaces import Absent, Measurement, Task, Variant

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
LEVEL = 0.05


def smallest_distance(n: int) -> float | None:
    """The smallest Kolmogorov-Smirnov distance between two samples of n whose p-value is at most 5 %; None if none is."""
    low, high = 1, n + 1  # D is a multiple of 1/n, and p falls with it
    while low < high:
        middle = (low + high) // 2
        first = np.arange(n, dtype=float)
        if _tofu.ks(first, first + middle - 0.5)[0] <= LEVEL:
            high = middle
        else:
            low = middle + 1
    return low / n if low <= n else None


def forget_quality(task: Task) -> Measurement | Absent:
    """The smallest distance between two models' truth ratios that can be shown."""
    rows = task.questions["forget"]
    authors = len({row["cluster"] for row in rows})
    distance, at_worst = smallest_distance(len(rows)), smallest_distance(authors)
    worst = f"{at_worst:.3f}" if at_worst else "no distance"
    if distance is None:
        return Absent(metric="forget_quality_d", reason=f"with {len(rows)} rows no distance reaches 5 %")
    note = (
        f"questions about one author are not independent: if they rose and fell together, n would be {authors} and "
        f"{worst} would be needed"
    )
    return _told("forget_quality_d", distance, "KS distance", len(rows), "two-sample KS test, exact p ≤ 0.05", None, note)


def smallest_differences(
    recorded: Sequence[pd.DataFrame], metrics: Sequence[str], variant: Variant, clusters: str
) -> list[Measurement | Absent]:
    """Each metric's smallest difference that can be shown, paired.

    Args:
        recorded: rows of runs of different methods, as the store keeps them.
        metrics: of those over rows, such as `model_utility` or `bio_accuracy`.
        variant: whose definitions.
        clusters: what is resampled, for readers.
    """
    return [_paired(metric, recorded, variant, clusters) for metric in metrics]


def _paired(metric: str, recorded: Sequence[pd.DataFrame], variant: Variant, clusters: str) -> Measurement | Absent:
    found = of_rows({str(i): [rows] for i, rows in enumerate(recorded)}, [metric], variant)
    if not found:
        few = f"fewer than two methods with rows are recorded, or there are fewer than {FEWEST_CLUSTERS} {clusters}"
        return Absent(metric=metric, reason=few)
    widths = [(each.high - each.low) / 2 for each in found]
    method = f"half a 95 % interval of the paired difference, {METHOD}, median over {len(widths)} pairs of methods"
    note = f"{found[0].clusters} {clusters}; over the pairs from {min(widths):.4f} to {max(widths):.4f}"
    unit = {"model_utility": "harmonic mean", "retain_kl": "nats per token", "alpaca_kl": "nats per token"}
    return _told(metric, median(widths), unit.get(metric, "mean over rows"), found[0].n, method, clusters, note)


def _told(metric: str, value: float, unit: str, n: int, method: str, resampled: str | None, note: str) -> Measurement:
    return Measurement(
        metric=metric,
        version=VERSION,
        value=value,
        unit=unit,
        better=None,
        n=n,
        interval_method=method,
        resampled=resampled,
        note=note,
    )
