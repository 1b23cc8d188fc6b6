"""The smallest differences that a benchmark's metrics can show, given how many rows and clusters of rows there are.

A two-sample comparison, such as forget quality's Kolmogorov-Smirnov test, needs at 5 % what follows from the number of rows
alone. Means over rows and functions of such are compared row by row: the difference of two recorded runs is resampled by whole
clusters, and what is under half the width of its 95 % interval is not shown. (A true difference of just that size is shown
every second time; four times out of five takes 1.4 times as much.)
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from harness.core.benchmark import BENCHMARKS, roles_of
from harness.core.config import to_json
from harness.core.errors import UsageError
from harness.core.evaluator import metric_of
from harness.core.measurement import Absent, Measurement
from harness.core.metric import Metric, TwoSample
from harness.core.options import Options, Variant
from harness.core.problem import Problem
from harness.reading.differences import of_rows
from harness.reading.rows import REFERENCE_METHODS
from harness.statistics.bootstrap import FEWEST_CLUSTERS
from harness.statistics.paired import METHOD
from harness.statistics.two_sample import smallest_distance
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2


def smallest_differences(bench: str, model: str, store: Store, options: Options) -> Sequence[Measurement | Absent]:
    """Each metric's smallest difference that can be shown, `value` in the metric's own unit.

    Args:
        bench: the benchmark.
        model: what is unlearned.
        store: whose recorded rows are resampled: of each method the first run, at its last point; one seed, nothing corrected.
        options: rows, metric definitions, data folder.

    Raises:
        UsageError: if the benchmark cannot say.
    """
    BENCHMARKS.get(bench)  # says which there are
    if not roles_of(bench).power:
        raise UsageError(f"{bench} does not say what it can show.")
    problem = BENCHMARKS.get(bench).problem(model, options)
    base = problem.sources["base"].identity
    recorded: dict[str, pd.DataFrame] = {}
    for result in store.runs():
        spec = result.spec
        same = (spec.bench, spec.limit, spec.variant, spec.retain) == (bench, options.limit, options.variant, problem.retain)
        same = same and spec.template == to_json(problem.template) and spec.method not in REFERENCE_METHODS and not spec.budgets
        if same and spec.sources.get("base") == base and result.points and spec.method not in recorded:
            rows = store.rows(spec, result.points[-1].index)
            if rows is not None:
                recorded[spec.method] = rows
    return of_problem(problem, options.variant, list(recorded.values()))


def of_problem(problem: Problem, variant: Variant, recorded: Sequence[pd.DataFrame]) -> list[Measurement | Absent]:
    """The smallest differences of the metrics that the benchmark names, where the problem has questions for them.

    Args:
        problem: the benchmark with a model.
        variant: whose metric definitions.
        recorded: rows of runs of different methods, as the store keeps them.
    """
    smallest = []
    for name in roles_of(problem.bench).power:
        match = metric_of(name)
        if match is None:
            continue
        metric = match[1]
        if isinstance(metric.statistic, TwoSample):
            smallest.append(_of_test(metric, metric.statistic, problem))
        elif not metric.part or metric.part in problem.questions:
            smallest.append(of_pairs(metric, recorded, variant))
    return smallest


def _of_test(metric: Metric, statistic: TwoSample, problem: Problem) -> Measurement | Absent:
    """The smallest distance between two models' rows that can be shown."""
    rows = problem.questions[metric.part]
    clusters = len({row["cluster"] for row in rows})
    distance, at_worst = smallest_distance(len(rows), statistic.test), smallest_distance(clusters, statistic.test)
    worst = f"{at_worst:.3f}" if at_worst else "no distance"
    if distance is None:
        return Absent(metric=metric.name, reason=f"with {len(rows)} rows no distance reaches 5 %")
    note = (
        f"questions about one {metric.cluster} are not independent: if they rose and fell together, n would be {clusters} and "
        f"{worst} would be needed"
    )
    return _made(metric, distance, len(rows), "two-sample KS test, exact p ≤ 0.05", None, note)


def of_pairs(metric: Metric, recorded: Sequence[pd.DataFrame], variant: Variant) -> Measurement | Absent:
    """A metric's smallest difference that can be shown, paired."""
    pairs = of_rows({str(i): [rows] for i, rows in enumerate(recorded)}, [metric.name], variant)
    if not pairs:
        few = f"fewer than two methods with rows are recorded, or there are fewer than {FEWEST_CLUSTERS} {metric.clusters}"
        return Absent(metric=metric.name, reason=few)
    widths = [(each.high - each.low) / 2 for each in pairs]
    method = f"half a 95 % interval of the paired difference, {METHOD}, median over {len(widths)} pairs of methods"
    note = f"{pairs[0].clusters} {metric.clusters}; over the pairs from {min(widths):.4f} to {max(widths):.4f}"
    return _made(metric, median(widths), pairs[0].n, method, metric.clusters, note)


def _made(metric: Metric, value: float, n: int, method: str, resampled: str | None, note: str) -> Measurement:
    return Measurement(
        metric=metric.name,
        version=VERSION,
        value=value,
        unit=metric.unit,
        better=None,
        n=n,
        interval_method=method,
        resampled=resampled,
        note=note,
    )
