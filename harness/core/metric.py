"""What a metric is: declared once, beside its formula, by the evaluator that gives it. Imports nothing heavy.

An evaluator declares `Metric`s and gives for each one `Rows` (a value, or several, for each row) or a `Number`. All else
follows from the declaration: value, interval, the retrained models' numbers beside it and the noise floor
(`harness.statistics.measurements`), what two methods differ by on the same rows (`harness.reading.differences`), and how a
reader is shown it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Better = Literal["higher", "lower", "closer"]


# ---------------------------------------------------------------- what an evaluator gives


@dataclass(frozen=True)
class Rows:
    """One value for each row, or several, and what rises and falls together."""

    values: np.ndarray
    """[n], or [n, k] where the metric is a function of several means over the same rows."""
    clusters: np.ndarray
    """[n] which cluster a row is in, such as an author; clusters are resampled whole."""
    strata: np.ndarray | None = None
    """[n] which subject a row is of, for an interval that pools subjects."""
    note: str | None = None
    """What a reader could stumble over."""


@dataclass(frozen=True)
class Number:
    """A number that follows from no rows that could be resampled."""

    value: float
    """The number."""
    n: int
    """How many rows it rests on."""
    note: str | None = None
    """What a reader could stumble over."""


Given = Rows | Sequence[Rows] | Number
"""Rows of one set of questions; of several, each with clusters of its own; or one number."""


# ---------------------------------------------------------------- how a number follows from rows


class Interval(NamedTuple):
    """A 95 % interval, or why there is none."""

    ends: tuple[float, float] | None
    """Lower and upper end."""
    method: str
    """How it was made, or why there is none."""
    resampled: str | None = None
    """What was resampled."""
    note: str | None = None
    """What else it says."""


def first_mean(means: np.ndarray) -> np.ndarray:
    """[k, …] → […] the first mean itself."""
    return means[0]  # type: ignore[no-any-return]


def ratio_of_means(means: np.ndarray) -> np.ndarray:
    """[2, …] → […] the first mean over the second: of sums, since both are over the same rows."""
    return means[0] / means[1]  # type: ignore[no-any-return]


def harmonic(means: np.ndarray) -> np.ndarray:
    """[k, …] → […] the harmonic mean over the first axis; 0 where one is 0."""
    import numpy as np

    with np.errstate(divide="ignore"):
        return np.asarray(means.shape[0] / (1 / means).sum(axis=0))


def _mean_ratio(columns: Sequence[np.ndarray]) -> float:
    numerator, denominator = (column.sum() for column in columns)
    return float(numerator / denominator)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of non-negative numbers (scipy.stats.hmean); 0 if one of them is."""
    from scipy.stats import hmean

    return 0.0 if min(values) <= 0 else float(hmean(list(values)))


@dataclass(frozen=True)
class OfMeans:
    """A function of means over rows: the mean itself, a ratio of two, a harmonic mean of many."""

    of_means: Callable[[np.ndarray], np.ndarray] = first_mean
    """[k, …] means, those of one group of rows after the other's → […] the number; taken of every resample."""
    of_columns: Callable[[Sequence[np.ndarray]], float] | None = None
    """k columns of rows → the number, where it is not simply `of_means` of their means (to the last digit)."""
    interval: Callable[[Sequence[Rows], float], Interval] | None = None
    """Rows and the number → its interval, where that is no bootstrap."""

    def value(self, groups: Sequence[Rows]) -> float:
        """The number itself."""
        import numpy as np

        columns = [np.ascontiguousarray(column) for rows in groups for column in np.atleast_2d(rows.values.T)]
        if self.of_columns:
            return self.of_columns(columns)
        return float(self.of_means(np.array([column.mean() for column in columns])))


@dataclass(frozen=True)
class TwoSample:
    """A comparison of the rows with each reference's, such as a Kolmogorov-Smirnov test."""

    test: Callable[[np.ndarray, np.ndarray], Any]
    """[n] and [m] values → `p`, `distance` and a `note` on how they were computed; see `harness.statistics.two_sample.Test`."""
    takes: Literal["p", "distance"]
    """Which of the two the metric is. A distance has a noise floor: the largest between two references."""
    no_interval: str
    """Why there is no interval."""


@dataclass(frozen=True)
class Plain:
    """A number as the evaluator gives it."""

    no_interval: str
    """Why there is no interval."""
    compared: bool = True
    """Whether the references have the same number, to stand beside it."""


Statistic = OfMeans | TwoSample | Plain
MEAN = OfMeans()
RATIO = OfMeans(ratio_of_means, _mean_ratio)
HARMONIC = OfMeans(harmonic, lambda columns: harmonic_mean([float(column.mean()) for column in columns]))


# ---------------------------------------------------------------- the metric


@dataclass(frozen=True)
class Metric:
    """A number that an evaluator gives, and all that is needed to compute, compare and read it."""

    name: str
    """As recorded, such as `forget_quality`."""
    title: str
    """A short heading."""
    unit: str
    """Such as `p-value`, `probability`, `nats per token`."""
    better: Better | None
    """Which way is good; `closer` means closer to the reference."""
    about: str
    """One sentence for a glossary."""
    range: tuple[float, float] | None = None
    """The values it can take."""
    chance: float | None = None
    """What guessing gives; of a metric that is to fall, below it nothing more is gained."""
    digits: int = 3
    """Decimals that a reader is shown."""
    statistic: Statistic = MEAN
    """How the number follows from rows."""
    part: str = ""
    """Which of its evaluator's rows it is made of: a set of questions, a column."""
    cluster: str = "group of rows"
    """What a cluster is called in its notes, such as `author`."""
    better_alone: Better | None = None
    """Which way is good where there is no reference to come close to, if that is not `better`."""
    version: int | None = None
    """Its definition's, where that is not the evaluator's."""
    contains: Sequence[str] = ()
    """Metrics that it is made of, and that say little beside it."""
    short: str = ""
    """A heading where there is little room; the title if empty."""

    @property
    def clusters(self) -> str:
        """Several of its clusters."""
        word, *rest = self.cluster.split(" ", 1)
        return " ".join((f"{word}s", *rest)) if rest and rest[0].startswith("of ") else f"{self.cluster}s"


def in_text(title: str) -> str:
    """A heading within a sentence: `Forget quality` as `forget quality`, `KS distance` as it is."""
    return title if title[1:2].isupper() or title[1:2] == " " else title[:1].lower() + title[1:]


def metrics_by_name(metrics: Sequence[Metric]) -> Callable[[str], Metric | None]:
    """A look-up of metrics that do not depend on the problem."""
    return {metric.name: metric for metric in metrics}.get


@dataclass(frozen=True)
class MetricRoles:
    """Which metrics of a benchmark play which part, by name; the kernel reads these and knows none itself."""

    headline: Sequence[str] = ()
    """Those that are always shown, in this order; others are shown on request."""
    brief: Sequence[str] = ()
    """Those that are shown where several runs stand side by side on a terminal; all that was measured if empty."""
    trajectory: Sequence[str] = ()
    """Those that are shown of every measured point; all that was measured if empty."""
    forgetting: Sequence[str] = ()
    """Those that say how well was forgotten."""
    kept: Sequence[str] = ()
    """Those that say what was kept; the first one orders what ties in `ranking`."""
    ranking: str = ""
    """The one that ranks; nothing is ranked if empty."""
    oracle_score: Sequence[str] = ()
    """Those whose product finds the best point of a run by looking at the reported numbers."""
    selection: str = ""
    """The one that settings are chosen by on rows that are not reported; its evaluator has its name."""
    likelihood_evaluators: Sequence[str] = ()
    """The evaluators that need no answer of the model."""
    compared: Sequence[str] = ()
    """Those that methods are compared in, row by row."""
    power: Sequence[str] = ()
    """Those whose smallest difference that can be shown is told."""
    at_budgets: Sequence[str] = ()
    """Those that are shown at each budget of damage; all that was measured if empty."""
    reached: str = ""
    """The one that is 1 where enough was forgotten: the first such point of a run is marked on its trajectory."""
    level: str = ""
    """The one that falls as forgetting goes on, down to where the retrained model's is."""
    knowledge: Mapping[str, Literal["higher", "lower"]] = field(default_factory=dict)
    """Those that say whether what is to be forgotten is known, and which way they lie where it is: `harness meta` says of each
    how far it is to be trusted."""
    kept_likelihoods: Sequence[str] = ()
    """Parts of what was kept that need no answers; their harmonic mean stands in for `kept` where none were written."""


NO_ROLES = MetricRoles()
"""Of a benchmark that is not installed: its records are shown by what their measurements say."""
