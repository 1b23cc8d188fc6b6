"""Means over sets of questions that are asked apart from one another, of which some may be missing.

    mean = 1/K Σ_k mean_k          s² = 1/K² Σ_k s_k²          K sets

Each set counts alike, however many rows it has, as papers report such means. The interval is mean ± 1.96 s, s_k the standard
error of a set's mean over its rows; resampling twenty thousand rows at each point would say the same and take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from harness.core.evaluator import EvalContext, EvalPlan
from harness.core.metric import Interval, Metric, OfMeans, Rows
from harness.models.small import trained_on_the_spot
from harness.statistics.standard_errors import standard_error

if TYPE_CHECKING:
    import pandas as pd

FEWEST_ROWS = 5
"""Under this many rows of a set there is no interval."""


def _interval(groups: Sequence[Rows], value: float) -> Interval:
    if min(len(rows.values) for rows in groups) < FEWEST_ROWS:
        return Interval(None, f"none: fewer than {FEWEST_ROWS} rows")
    errors = [standard_error(rows.values, rows.clusters)[0] for rows in groups]
    error = float(np.sqrt(np.square(errors).sum())) / len(groups)
    ends = max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)
    resampled = "row" + (", in each set on its own" if len(groups) > 1 else "")
    return Interval(ends, "normal", resampled, f"standard error {error:.4f}")


OVER_SETS = OfMeans(lambda means: means.mean(axis=0), interval=_interval)
"""The mean of sets' means, or of one set's rows; of numbers between 0 and 1."""


def metric(name: str, title: str, unit: str, about: str, part: str = "") -> Metric:
    """A share that is to be kept high: of one set, or (no `part`) the mean over all of them."""
    return Metric(name, title, unit, "higher", about, (0.0, 1.0), statistic=OVER_SETS, part=part, cluster="row")


def asks(plan: EvalPlan) -> bool:
    """Whether the plan's model may know what such sets ask: one that is trained on the spot knows its world alone."""
    return plan.of is not None and not trained_on_the_spot(plan.of)


def check_asked(context: EvalContext) -> None:
    """Raise LookupError, with the reason, for a model that can know nothing of such sets."""
    if context.plan.of and not asks(context.plan):
        raise LookupError(f"{context.problem.model} is trained on the spot and knows nothing that these sets ask")


def measured(
    table: pd.DataFrame, wanted: Metric, names: Sequence[str], column: str, missing: Mapping[str, str]
) -> Rows | list[Rows]:
    """A column of one set's rows, or of those of all sets that are there.

    Args:
        table: with rows of the sets that are there, their names in `task`.
        wanted: a metric of `metric`.
        names: of all sets.
        column: what the metric is a mean of; NaN where the model gave nothing finite.
        missing: set → why it is not there, as far as that is known.

    Raises:
        LookupError: for a set that is not there, or a row without a finite number.
    """
    known = set(table["task"]) if len(table) else set()
    present = [name for name in names if name in known]
    if wanted.part:
        if wanted.part not in present:
            raise LookupError(missing.get(wanted.part, f"there are no {wanted.part} rows"))
        return _of_set(table, wanted.part, column)
    if not present:
        raise LookupError(f"there are no rows of any of the {len(names)} sets")
    first, *others = (_of_set(table, name, column) for name in present)
    if len(present) < len(names):
        first = replace(first, note=f"of {len(present)} of {len(names)} sets: {', '.join(present)}")
    return [first, *others]


def _of_set(table: pd.DataFrame, name: str, column: str) -> Rows:
    rows = table[table["task"] == name]
    values = rows[column].to_numpy(dtype=float) if column in rows else np.full(len(rows), np.nan)
    if broken := int(np.isnan(values).sum()):
        raise LookupError(f"{broken} of {len(values)} {name} rows have likelihoods that are not finite")
    return Rows(values, rows["cluster"].to_numpy())
