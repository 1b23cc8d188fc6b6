"""Differences between methods on the same rows, resampled by whole authors.

All methods are measured on the same questions, and a question that is hard for one is hard for all: what two methods share
cancels when both are recomputed on the same resampled authors. Of several seeds a method's number is the mean; how much seeds
differ is not in the interval. The p-value is the two-sided one of the percentile interval: twice the smaller share of resamples
on either side of zero, (b + 1) / (B + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evals import _tofu
from evals._bootstrap import FEWEST_CLUSTERS
from harness.interfaces import Better, Difference, Subject

RESAMPLES = 20_000
"""So many that a p-value of 0.05 survives a correction for a few hundred comparisons."""

METHOD = f"percentile bootstrap, {RESAMPLES} resamples"

Group = tuple[np.ndarray, np.ndarray]
"""[n, k] values of one task's rows, and [n] which author each is about."""


@dataclass(frozen=True)
class Statistic:
    """How a metric follows from means over rows."""

    groups: Callable[[Subject], Sequence[Group]]
    """Its rows, task by task; each task's authors are resampled on their own."""
    of_means: Callable[[np.ndarray], np.ndarray]
    """[k, resamples] means over rows, the tasks' one after another → [resamples] the metric."""
    better: Better
    """Which way is good."""


def harmonic(means: np.ndarray) -> np.ndarray:
    """[k, …] → […] the harmonic mean over the first axis; 0 where one is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(means.shape[0] / (1 / means).sum(axis=0))


def statistic(metric: str) -> Statistic:
    """How `model_utility`, `retain_kl` or a mean over rows such as `retain_rouge` follows from rows."""
    if metric == "model_utility":
        return Statistic(_utility_rows, harmonic, "higher")
    if metric == "retain_kl":
        return Statistic(lambda subject: [_tofu.retain_kl(subject)], lambda means: means[0] / means[1], "lower")
    task, _, kind = metric.rpartition("_")
    per_row = {"probability": _tofu.probability, "rouge": _tofu.rouge}[kind]

    def rows(subject: Subject) -> list[Group]:
        found = per_row(subject, task)
        return [(found.values[:, None], found.clusters)]

    return Statistic(rows, lambda means: means[0], "closer" if task == "forget" else "higher")


def _utility_rows(subject: Subject) -> list[Group]:
    parts = _tofu.utility_parts(subject).values()
    return [(np.column_stack([part.values for part in of_task]), of_task[0].clusters) for of_task in parts]


class Resampling:
    """The same resampled authors for everything that is measured on the same rows.

    Args:
        seed: of the draws.
        resamples: how many.
    """

    def __init__(self, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._resamples, self._seed = resamples, seed
        self._counts: dict[tuple[int, int], np.ndarray] = {}

    def metric(self, groups: Sequence[Group], of_means: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | None:
        """[1 + resamples] a metric on the rows as they are, then on each resample; None where authors are too few."""
        means = []
        for place, (values, clusters) in enumerate(groups):
            _, index = np.unique(clusters, return_inverse=True)
            authors = int(index.max()) + 1
            if authors < FEWEST_CLUSTERS:
                return None
            sums = np.zeros((authors, values.shape[1] + 1))
            np.add.at(sums, index, np.column_stack([values, np.ones(len(values))]))
            totals = self._drawn(place, authors) @ sums
            means.append((totals[:, :-1] / totals[:, -1:]).T)
        return of_means(np.concatenate(means))

    def _drawn(self, place: int, authors: int) -> np.ndarray:
        """[1 + resamples, authors] how often each author is in a resample; each once in the first."""
        if (place, authors) not in self._counts:
            rng = np.random.default_rng([self._seed, place, authors])
            drawn = rng.multinomial(authors, np.full(authors, 1 / authors), size=self._resamples)
            self._counts[place, authors] = np.vstack([np.ones((1, authors)), drawn])
        return self._counts[place, authors]


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
        others than the first one's is in no difference; nor is a metric with fewer than five authors.
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
            of_each = {tuple(tuple(map(str, authors)) for _, authors in of_seed) for of_seed in groups}
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
    n, authors = sum(map(len, rows)), sum(len(set(of_task)) for of_task in rows)
    return Difference(metric, first, second, value, float(low), float(high), p, p, better, n, authors)
