"""From an evaluator's rows to measurements: value, interval, references, noise floor, notes. Knows no metric by name.

The one place where a `Measurement` is made. A number that cannot be computed is `Absent` with its reason: the evaluator raises
LookupError, or its rows are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from harness.core.errors import UsageError
from harness.core.evaluator import EvalContext, Evaluator
from harness.core.measurement import Absent, Measurement
from harness.core.metric import Given, Interval, Metric, Number, OfMeans, Plain, Rows, TwoSample
from harness.statistics.bootstrap import FEWEST_CLUSTERS, METHOD, interval

if TYPE_CHECKING:
    import numpy as np

NOT_RANKED = "not to be ranked"
"""How a measurement's note begins where there are too few clusters for a ranking."""
NO_REFERENCE = "it compares with a retrained model, and this run has none; give one with --reference LOG"


def measurements(evaluator: Evaluator, context: EvalContext) -> list[Measurement | Absent]:
    """All of an evaluator's metrics, in the order they are declared.

    Raises:
        UsageError: for a reference with other rows, where a metric compares row sets.
    """
    context.evaluator = evaluator.name
    return [_Measuring(evaluator, metric, context).measured() for metric in evaluator.metrics_of(context.plan)]


def given_by(evaluator: Evaluator, context: EvalContext, metric: Metric) -> Given:
    """What an evaluator gives for a metric.

    Raises:
        LookupError: where it has nothing; why. A KeyError or IndexError inside an evaluator is a fault of it and no reason.
        UsageError: for what is neither rows nor a number, or not what the metric is declared to follow from.
    """
    try:
        given: object = evaluator.measure(context, metric)
    except (KeyError, IndexError) as error:
        raise RuntimeError(f"evaluator {evaluator.name}, metric {metric.name}: {type(error).__name__}: {error}") from error
    groups = [given] if isinstance(given, Rows | Number) else given
    if not isinstance(groups, list | tuple) or not groups or not all(isinstance(rows, Rows | Number) for rows in groups):
        what = type(given).__name__ + (f" of {type(groups[0]).__name__}" if isinstance(groups, list | tuple) and groups else "")
        raise _wrong(
            evaluator, metric, what, "give Rows, a value and a cluster for each row, or a Number (harness.core.metric)"
        )
    for rows in groups:
        _check_given(evaluator, metric, rows)
    return given  # type: ignore[return-value]


def _check_given(evaluator: Evaluator, metric: Metric, given: Rows | Number) -> None:
    """Refuse rows that are not of numpy, or lack clusters; and what a metric's statistic cannot be taken of."""
    import numpy as np

    statistic = type(metric.statistic)
    if isinstance(given, Number):
        if statistic is TwoSample:
            raise _wrong(evaluator, metric, "a Number", "a comparison of two samples needs Rows")
        return
    if statistic is Plain:
        raise _wrong(evaluator, metric, "Rows", "leave out statistic=Plain(…), or give a Number")
    for name, part in (("values", given.values), ("clusters", given.clusters)):
        if not isinstance(part, np.ndarray):
            raise _wrong(evaluator, metric, f"{name} of type {type(part).__name__}", "give numpy arrays, as by .to_numpy()")
    if len(given.values) != len(given.clusters):
        sizes = f"{len(given.values)} values and {len(given.clusters)} clusters"
        raise _wrong(evaluator, metric, sizes, "each row has one of both")


def _wrong(evaluator: Evaluator, metric: Metric, what: str, way_out: str) -> UsageError:
    return UsageError(f"the evaluator {evaluator.name} gives {what} for '{metric.name}': {way_out}.")


def groups_of(given: Given) -> Sequence[Rows]:
    """The rows, set by set; none of a number."""
    if isinstance(given, Number):
        return ()
    return (given,) if isinstance(given, Rows) else given


def matrix(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """[n, k] values and [n] clusters, as the bootstrap takes them."""
    return (rows.values if rows.values.ndim == 2 else rows.values[:, None]), rows.clusters


class _Beside(NamedTuple):
    """What the references say."""

    reference: float | None = None
    """The headline one's number."""
    across: tuple[float, float] | None = None
    """Smallest and largest over all of them."""
    floor: float | None = None
    """What they differ by at most."""


@dataclass(frozen=True)
class _Measuring:
    """One metric of what one evaluator sees."""

    evaluator: Evaluator
    metric: Metric
    context: EvalContext

    def measured(self) -> Measurement | Absent:
        """The measurement, or why there is none."""
        try:
            given = given_by(self.evaluator, self.context, self.metric)
            statistic = self.metric.statistic
            if isinstance(statistic, TwoSample):
                return self._compared(given, statistic)
            if isinstance(given, Number):
                return self._number(given)
            assert isinstance(statistic, OfMeans), f"{self.metric.name} is a number, and rows were given"
            return self._of_means(groups_of(given), statistic)
        except LookupError as error:
            return Absent(metric=self.metric.name, reason=str(error))

    def _of_means(self, groups: Sequence[Rows], statistic: OfMeans) -> Measurement:
        check_finite(groups)
        value = statistic.value(groups)
        if not math.isfinite(value):
            raise LookupError("it is not finite")
        interval = statistic.interval(groups, value) if statistic.interval else self._bootstrap(groups, statistic)
        return self._made(
            value=value,
            n=sum(len(rows.values) for rows in groups),
            notes=[*(rows.note for rows in groups), interval.note],
            interval=interval,
            beside=self._beside(),
            within=all(self._in_range(rows) for rows in groups),
        )

    def _bootstrap(self, groups: Sequence[Rows], statistic: OfMeans) -> Interval:
        ends = interval([matrix(rows) for rows in groups], statistic.of_means)
        if ends is None:
            return Interval(None, f"none: fewer than five {self.metric.clusters}")
        return Interval(ends, METHOD, self.metric.cluster + (", in each task on its own" if len(groups) > 1 else ""))

    def _in_range(self, rows: Rows) -> bool:
        limits = self.metric.range
        return limits is None or bool(((rows.values >= limits[0]) & (rows.values <= limits[1])).all())

    def _number(self, given: Number) -> Measurement:
        if not math.isfinite(given.value):
            raise LookupError("it is not finite")
        statistic = self.metric.statistic
        why, compared = getattr(statistic, "no_interval", "it follows from no rows"), getattr(statistic, "compared", True)
        return self._made(
            value=given.value,
            n=given.n,
            notes=[given.note],
            interval=Interval(None, f"none: {why}"),
            beside=self._beside() if compared else _Beside(),
        )

    def _beside(self) -> _Beside:
        """The same number of every reference; nothing where one has nothing to compute it from."""
        values: list[float] = []
        for reference in self.context.references:
            try:
                given = given_by(self.evaluator, self.context.of(reference), self.metric)
            except LookupError:
                return _Beside()
            if isinstance(given, Number):
                values.append(given.value)
            else:
                assert isinstance(self.metric.statistic, OfMeans)
                values.append(self.metric.statistic.value(groups_of(given)))
        if not values or not all(map(math.isfinite, values)):
            return _Beside()
        return _Beside(values[0], (min(values), max(values)), max(values) - min(values) if len(values) > 1 else None)

    def _compared(self, given: Given, statistic: TwoSample) -> Measurement:
        (rows,) = groups_of(given)
        others = []
        for reference in self.context.references:
            (of,) = groups_of(given_by(self.evaluator, self.context.of(reference), self.metric))
            others.append(of)
        if not others:
            raise LookupError(NO_REFERENCE)
        for reference, other in zip(self.context.references, others, strict=True):
            if len(other.values) != len(rows.values):
                raise UsageError(
                    f"the reference {reference.name} has {len(other.values)} {self.metric.part} rows, this model "
                    f"{len(rows.values)}: {self.evaluator.name.replace('_', ' ')} needs the same rows."
                )
        check_finite((rows, *others))
        tests = [statistic.test(rows.values, other.values) for other in others]
        between = [statistic.test(a.values, b.values).distance for a, b in combinations(others, 2)]
        floor = max(between, default=None)
        values = [getattr(test, statistic.takes) for test in tests]
        notes = [rows.note, tests[0].note]
        if floor is not None and tests[0].distance <= floor:
            notes.append("a tie with retraining: D is at or under the noise floor")
        if len(set(rows.clusters)) < FEWEST_CLUSTERS:
            notes.append(f"{NOT_RANKED}: fewer than five {self.metric.part} {self.metric.clusters}")
        return self._made(
            value=values[0],
            n=len(rows.values),
            notes=notes,
            interval=Interval(None, f"none: {statistic.no_interval}"),
            beside=_Beside(None, (min(values), max(values)), floor if statistic.takes == "distance" else None),
        )

    def _made(
        self,
        value: float,
        n: int,
        notes: Sequence[str | None],
        interval: Interval,
        beside: _Beside,
        within: bool = True,
    ) -> Measurement:
        metric, chance = self.metric, self.metric.chance
        if chance is not None:
            ends = ", where forgetting ends: below it is no better" if metric.better == "lower" else ""
            notes = [*notes, f"chance is {chance}{ends}"]
        return Measurement(
            metric=metric.name,
            version=self.evaluator.version_for(self.context.plan) if metric.version is None else metric.version,
            value=value,
            unit=metric.unit,
            better=metric.better if beside.across or not metric.better_alone else metric.better_alone,
            n=n,
            range=metric.range if within else None,
            interval_95=interval.ends,
            interval_method=interval.method,
            resampled=interval.resampled,
            note="; ".join(filter(None, notes)) or None,
            reference=beside.reference,
            across_references=beside.across,
            floor=beside.floor,
        )


def of_summary(name: str, value: float, version: int, metric: Metric | None, reference: float | None) -> Measurement:
    """A number as another program's summary has it, which says nothing of the rows behind it.

    Args:
        name: the metric's, as it is called here, or by that program where it is none of ours.
        value: the number.
        version: of our definition.
        metric: ours; None where that program's number is none of ours.
        reference: the same number in a retrained model's summary.
    """
    return Measurement(
        metric=name,
        version=version,
        value=value,
        unit=metric.unit if metric else "as that program has it",
        better=(metric.better_alone or metric.better if reference is None else metric.better) if metric else None,
        n=0,
        range=metric.range if metric else None,
        reference=reference,
        selection="as logged",
        interval_method="none: a summary holds no rows",
        note=None if metric else "none of this project's metrics",
    )


def check_finite(groups: Sequence[Rows]) -> None:
    """Refuse rows that are not finite.

    Raises:
        LookupError: saying how many.
    """
    import numpy as np

    n = sum(len(rows.values) for rows in groups)
    broken = sum(int((~np.isfinite(rows.values.reshape(len(rows.values), -1)).all(axis=1)).sum()) for rows in groups)
    if broken:
        raise LookupError(f"{broken} of {n} rows are not finite")
