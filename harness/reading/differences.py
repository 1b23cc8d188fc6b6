"""What methods differ by on the same rows, from the rows that the store holds; corrected for all that is asked together.

Which metrics are compared is the benchmark's word (`MetricRoles.compared`); how they follow from rows is the metrics' own. The
clusters of rows are resampled in `harness.statistics.paired`, p-values corrected here (Holm 1979). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.core.benchmark import roles_of
from harness.core.evaluator import EvalContext, EvalPlan, Evaluator, metric_of
from harness.core.measurement import Difference
from harness.core.metric import Metric, OfMeans
from harness.core.options import Variant
from harness.statistics.measurements import given_by, groups_of, matrix
from harness.statistics.paired import Group, Resampling, gaps
from harness.storage.frames import AllInOne
from harness.storage.records import RunSpec
from harness.storage.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

LEVEL = 0.05
"""A difference whose corrected p-value is at most this is told apart from none."""


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (step-down, Holm 1979)."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def differences(
    measured: Mapping[str, Sequence[tuple[RunSpec, int]]], store: Store, against: str | None = None
) -> list[Difference]:
    """Each two methods' differences on one benchmark and model, in one family of comparisons.

    Args:
        measured: method → the runs that stand for it, one for each seed, each with the index of the point.
        store: where their rows lie.
        against: compare with this one alone; each with each if not given.

    Returns:
        Metric by metric. Empty where the benchmark cannot say; a method of which a run has no rows is in none.
    """
    specs = [spec for runs in measured.values() for spec, _ in runs]
    recorded: dict[str, Sequence[pd.DataFrame]] = {}
    for method, runs in measured.items():
        rows = [store.rows(spec, point) for spec, point in runs]
        if all(of_run is not None and len(of_run) for of_run in rows):
            recorded[method] = [of_run for of_run in rows if of_run is not None]
    if len(recorded) < 2:
        return []
    pairs = of_rows(recorded, roles_of(specs[0].bench).compared, specs[0].variant, against)
    corrected = holm([each.p for each in pairs])
    return [replace(each, p_corrected=p) for each, p in zip(pairs, corrected, strict=True)]


def of_rows(
    recorded: Mapping[str, Sequence[pd.DataFrame]], metrics: Sequence[str], variant: Variant, against: str | None = None
) -> list[Difference]:
    """Each metric's difference between each two methods, in the order of the methods.

    Args:
        recorded: method → the rows of each of its seeds, as the store keeps them: all tables in one.
        metrics: by name; those that follow from no rows are passed over.
        variant: whose definitions.
        against: compare with this one alone; each with each if not given.

    Returns:
        `p_corrected` is left as `p`: who asks knows what is asked together. A method whose rows are missing, not finite or
        others than the first one's is in no difference; nor is a metric with fewer than five clusters.
    """
    plan = EvalPlan(variant=variant)
    contexts = {
        method: [EvalContext(None, plan, (), AllInOne(rows)) for rows in of_seeds] for method, of_seeds in recorded.items()
    }
    return list(of_contexts(contexts, metrics, against))


def of_contexts(
    measured: Mapping[str, Sequence[EvalContext]], metrics: Sequence[str], against: str | None = None
) -> Iterator[Difference]:
    """The same as `of_rows`, of contexts: one for each seed."""
    resampling = Resampling()
    for name in metrics:
        match = metric_of(name)
        if match is None or not isinstance(match[1].statistic, OfMeans):
            continue
        evaluator, metric = match
        assert metric.better, f"{name} has no better way, and methods are compared in it"
        groups = {
            method: of_seeds for method, of in measured.items() if (of_seeds := _groups(evaluator, metric, of)) is not None
        }
        for gap in gaps(groups, of_means(metric), resampling, against):
            yield Difference(name, *gap[:6], gap.p, metric.better, gap.n, gap.clusters)


def of_means(metric: Metric) -> Callable[[np.ndarray], np.ndarray]:
    """How a metric follows from means over rows; of one that is to fall, what is below chance counts as chance."""
    statistic, chance = metric.statistic, metric.chance
    assert isinstance(statistic, OfMeans)
    function = statistic.of_means
    if chance is None or metric.better != "lower":
        return function

    def clipped(means: np.ndarray) -> np.ndarray:
        return function(means).clip(min=chance)

    return clipped


def _groups(evaluator: Evaluator, metric: Metric, contexts: Sequence[EvalContext]) -> list[list[Group]] | None:
    try:
        return [[matrix(rows) for rows in groups_of(given_by(evaluator, context, metric))] for context in contexts]
    except LookupError:
        return None
