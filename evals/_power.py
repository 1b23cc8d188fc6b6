"""The smallest differences that ToFU's metrics can show, given how many rows and authors there are.

Forget quality compares two models' truth ratios on the same n rows with a two-sample Kolmogorov-Smirnov test, so what it needs
at 5 % follows from n alone. Means over rows and model utility are compared row by row: the difference of two recorded runs is
resampled by whole authors, and what is under half the width of its 95 % interval is not shown. (A true difference of just that
size is shown every second time; four times out of five takes 1.4 times as much.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from evals._bootstrap import FEWEST_CLUSTERS, METHOD, interval
from harness.interfaces import Absent, Measurement, Subject, Task

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
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


def smallest_differences(
    task: Task, recorded: Sequence[Mapping[str, pd.DataFrame]], metrics: Sequence[str]
) -> list[Measurement | Absent]:
    """Each metric's smallest difference that can be shown.

    Args:
        task: whose rows.
        recorded: tables of runs of different methods, as in `Subject.tables`.
        metrics: of those over rows, such as `model_utility` or `retain_rouge`.
    """
    rows = task.questions["forget"]
    authors = len({row["cluster"] for row in rows})
    distance, at_worst = smallest_distance(len(rows)), smallest_distance(authors)
    worst = f"{at_worst:.3f}" if at_worst else "no distance"
    found: list[Measurement | Absent] = []
    if distance is None:
        found.append(Absent(metric="forget_quality_d", reason=f"with {len(rows)} rows no distance reaches 5 %"))
    else:
        note = (
            f"questions about one author are not independent: if they rose and fell together, n would be {authors} and "
            f"{worst} would be needed"
        )
        found.append(
            _told("forget_quality_d", distance, "KS distance", len(rows), "two-sample KS test, exact p ≤ 0.05", None, note)
        )
    subjects = [Subject(None, task, (), dict(tables)) for tables in recorded]
    return found + [_paired(metric, subjects) for metric in metrics]


def _paired(metric: str, subjects: Sequence[Subject]) -> Measurement | Absent:
    groups_of = _groups(metric)
    known = []
    for subject in subjects:
        try:
            groups = groups_of(subject)
        except LookupError:
            continue
        if all(np.isfinite(values).all() for values, _ in groups):
            known.append(groups)
    widths = [width for one, other in combinations(known, 2) if (width := _half_width(one, other)) is not None]
    if not widths:
        few = f"fewer than two methods with rows are recorded, or there are fewer than {FEWEST_CLUSTERS} authors"
        return Absent(metric=metric, reason=few)
    n, authors = sum(len(values) for values, _ in known[0]), sum(len(np.unique(clusters)) for _, clusters in known[0])
    method = f"half a 95 % interval of the paired difference, {METHOD}, median over {len(widths)} pairs of methods"
    note = f"{authors} authors; over the pairs from {min(widths):.4f} to {max(widths):.4f}"
    unit = "harmonic mean" if metric == "model_utility" else "mean over rows"
    return _told(metric, median(widths), unit, n, method, "author", note)


Group = tuple[np.ndarray, np.ndarray]


def _groups(metric: str) -> Callable[[Subject], list[Group]]:
    """How a metric's rows are found: one group of [n, k] values for each task it takes means over."""
    if metric == "model_utility":
        return lambda subject: [
            (np.column_stack([part.values for part in parts]), parts[0].clusters)
            for parts in _tofu.utility_parts(subject).values()
        ]
    task, _, kind = metric.rpartition("_")
    per_row = {"probability": _tofu.probability, "rouge": _tofu.rouge}[kind]

    def of_task(subject: Subject) -> list[Group]:
        rows = per_row(subject, task)
        return [(rows.values[:, None], rows.clusters)]

    return of_task


def _half_width(one: Sequence[Group], other: Sequence[Group]) -> float | None:
    """Half the 95 % interval of a metric's difference between two models on the same rows; None where rows differ."""
    if any(len(a) != len(b) or not np.array_equal(ca, cb) for (a, ca), (b, cb) in zip(one, other, strict=True)):
        return None
    both = [(np.column_stack([a, b]), clusters) for (a, clusters), (b, _) in zip(one, other, strict=True)]
    widths = [a.shape[1] for a, _ in one]

    def difference(*means: np.ndarray) -> np.ndarray:
        first: list[np.ndarray] = []
        second: list[np.ndarray] = []
        at = 0
        for width in widths:
            first += means[at : at + width]
            second += means[at + width : at + 2 * width]
            at += 2 * width
        return np.asarray(_harmonic(np.stack(first)) - _harmonic(np.stack(second)))

    bounds = interval(both, difference)
    return None if bounds is None else (bounds[1] - bounds[0]) / 2


def _harmonic(means: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(means.shape[0] / (1 / means).sum(axis=0))


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
