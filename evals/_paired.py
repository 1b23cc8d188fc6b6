"""Differences between methods on the same rows, resampled by whole clusters: ToFU's authors, WMDP's groups of questions.

All methods are measured on the same questions, and a question that is hard for one is hard for all: what two methods share
cancels when both are recomputed on the same resampled clusters. Of several seeds a method's number is the mean; how much seeds
differ is not in the interval. The p-value is the two-sided one of the percentile interval: twice the smaller share of resamples
on either side of zero, (b + 1) / (B + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from evals import _tofu
from evals._bootstrap import FEWEST_CLUSTERS
from evals._scores import CHANCE, HAZARDOUS
from harness.core.interfaces import Better, Difference, Subject, Task, Template, Variant
from harness.core.streams import streams

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 20_000
"""So many that a p-value of 0.05 survives a correction for a few hundred comparisons."""

METHOD = f"percentile bootstrap, {RESAMPLES} resamples"
MANY = 1000
"""From this many clusters on they are drawn one by one: a third (1,500) to a seventh (30,000) of a multinomial draw's time."""
COUNTS_AT_ONCE = 20_000_000
"""Of draws that are weighted together, which bounds the memory."""

Group = tuple[np.ndarray, np.ndarray]
"""[n, k] values of one task's rows, and [n] which cluster each is in."""


@dataclass(frozen=True)
class Statistic:
    """How a metric follows from means over rows."""

    groups: Callable[[Subject], Sequence[Group]]
    """Its rows, task by task; each task's clusters are resampled on their own."""
    of_means: Callable[[np.ndarray], np.ndarray]
    """[k, resamples] means over rows, the tasks' one after another → [resamples] the metric."""
    better: Better
    """Which way is good."""


def harmonic(means: np.ndarray) -> np.ndarray:
    """[k, …] → […] the harmonic mean over the first axis; 0 where one is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(means.shape[0] / (1 / means).sum(axis=0))


def statistic(metric: str) -> Statistic:
    """How `model_utility`, a KL, or a mean over rows such as `retain_rouge` or `bio_accuracy` follows from rows."""
    if metric == "model_utility":
        return Statistic(_utility_rows, harmonic, "higher")
    if metric == "retain_kl":
        return Statistic(lambda subject: [_tofu.retain_kl(subject)], lambda means: means[0] / means[1], "lower")
    if metric == "alpaca_kl":
        return Statistic(lambda subject: [_completions(subject)], lambda means: means[0], "lower")
    task, _, kind = metric.rpartition("_")
    if kind == "accuracy":
        if task in HAZARDOUS:  # below chance nothing more is forgotten
            return Statistic(lambda subject: [_correct(subject, task)], lambda means: np.maximum(means[0], CHANCE), "lower")
        return Statistic(lambda subject: [_correct(subject, task)], lambda means: means[0], "higher")
    per_row = {"probability": _tofu.probability, "rouge": _tofu.rouge}[kind]

    def rows(subject: Subject) -> list[Group]:
        found = per_row(subject, task)
        return [(found.values[:, None], found.clusters)]

    return Statistic(rows, lambda means: means[0], "closer" if task == "forget" else "higher")


def _utility_rows(subject: Subject) -> list[Group]:
    parts = _tofu.utility_parts(subject).values()
    return [(np.column_stack([part.values for part in of_task]), of_task[0].clusters) for of_task in parts]


def _correct(subject: Subject, task: str) -> Group:
    rows = _tofu.rows_of(subject.tables["choices"], task, "correct")
    return rows["correct"].where(rows["choice"] >= 0).to_numpy(dtype=float)[:, None], rows["cluster"].to_numpy()


def _completions(subject: Subject) -> Group:
    rows = _tofu.rows_of(subject.tables["instructions"], "instructions", "kl_sum")
    return (rows["kl_sum"] / rows["kl_tokens"]).to_numpy(dtype=float)[:, None], rows["cluster"].to_numpy()


class Resampling:
    """The same resampled clusters for everything that is measured on the same rows.

    Args:
        seed: of the draws.
        resamples: how many.
    """

    def __init__(self, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._resamples, self._seed = resamples, seed
        self._counts: dict[tuple[int, int], np.ndarray] = {}

    def metric(self, groups: Sequence[Group], of_means: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
        """[1 + resamples] a metric on the rows as they are, then on each resample; None where clusters are too few."""
        means = []
        for place, (values, clusters) in enumerate(groups):
            _, index = np.unique(clusters, return_inverse=True)
            count = int(index.max()) + 1
            if count < FEWEST_CLUSTERS:
                return None
            sums = np.zeros((count, values.shape[1] + 1))
            np.add.at(sums, index, np.column_stack([values, np.ones(len(values))]))
            drawn, size = self._drawn(place, count), max(1, COUNTS_AT_ONCE // count)
            totals = np.concatenate([drawn[i : i + size].astype(float) @ sums for i in range(0, len(drawn), size)])
            means.append((totals[:, :-1] / totals[:, -1:]).T)
        return of_means(np.concatenate(means))

    def _drawn(self, place: int, count: int) -> np.ndarray:
        """[1 + resamples, count] how often each cluster is in a resample, in bytes; each once in the first."""
        if (place, count) not in self._counts:
            rng = streams(self._seed, "paired resamples", place, count).numpy()
            drawn = np.ones((1 + self._resamples, count), dtype=np.uint8)
            if count < MANY:
                drawn[1:] = rng.multinomial(count, np.full(count, 1 / count), size=self._resamples)
            else:
                for resample in drawn[1:]:
                    resample[:] = np.bincount(rng.integers(count, size=count, dtype=np.int32), minlength=count)
            self._counts[place, count] = drawn
        return self._counts[place, count]


def of_rows(
    measured: Mapping[str, Sequence[pd.DataFrame]], metrics: Sequence[str], variant: Variant, against: str | None = None
) -> list[Difference]:
    """The same as `differences`, from each run's rows as the store keeps them: all of its tables in one."""
    task = Task("", 0, "", (), {}, Template("rows"), {}, (), variant=variant)
    tables = ("likelihood", "answers", "divergence", "choices", "instructions")
    subjects = {
        method: [Subject(None, task, (), dict.fromkeys(tables, rows)) for rows in of_seeds]
        for method, of_seeds in measured.items()
    }
    return differences(subjects, metrics, against)


def differences(
    measured: Mapping[str, Sequence[Subject]], metrics: Sequence[str], against: str | None = None
) -> list[Difference]:
    """Each metric's difference between each two methods, in the order of the methods.

    Args:
        measured: method → its rows, one subject for each seed.
        metrics: as for `statistic`.
        against: compare with this one alone; each with each if not given.

    Returns:
        `p_corrected` is left as `p`: who asks knows what is asked together. A method whose rows are missing, not finite or
        others than the first one's is in no difference; nor is a metric with fewer than five clusters.
    """
    resampling = Resampling()
    found = []
    for metric in metrics:
        how = statistic(metric)
        rows: tuple[tuple[str, ...], ...] | None = None
        drawn: dict[str, np.ndarray] = {}
        for method, subjects in measured.items():
            try:
                groups = [how.groups(subject) for subject in subjects]
            except LookupError:
                continue
            if not all(np.isfinite(values).all() for of_seed in groups for values, _ in of_seed):
                continue
            of_each = {tuple(tuple(map(str, clusters)) for _, clusters in of_seed) for of_seed in groups}
            rows = rows or next(iter(of_each), None)
            if of_each != {rows}:
                continue
            of_seeds = [resampling.metric(of_seed, how.of_means) for of_seed in groups]
            known = [values for values in of_seeds if values is not None]
            if known:
                drawn[method] = np.mean(known, axis=0)
        for one, other in combinations(drawn, 2):
            if against is None or against in (one, other):
                first, second = (other, one) if one == against else (one, other)
                found.append(_difference(metric, how.better, first, second, drawn[first] - drawn[second], rows or ()))
    return found


def _difference(
    metric: str, better: Better, first: str, second: str, drawn: np.ndarray, rows: Sequence[Sequence[str]]
) -> Difference:
    drawn = drawn.round(12)  # the last bits depend on the machine's order of addition, and 0 must be 0
    value, resampled = float(drawn[0]), drawn[1:]
    low, high = np.percentile(resampled, (2.5, 97.5))
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
    n, clusters = sum(map(len, rows)), sum(len(set(of_task)) for of_task in rows)
    return Difference(metric, first, second, value, float(low), float(high), p, p, better, n, clusters)
