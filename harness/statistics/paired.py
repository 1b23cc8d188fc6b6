"""Differences between methods on the same rows, resampled by whole clusters: authors, groups of questions. Knows no metric.

All methods are measured on the same questions, and a question that is hard for one is hard for all: what two methods share
cancels when both are recomputed on the same resampled clusters. Of several seeds a method's number is the mean; how much seeds
differ is not in the interval. The p-value is the two-sided one of the percentile interval: twice the smaller share of resamples
on either side of zero, (b + 1) / (B + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from harness.core.streams import streams
from harness.statistics.bootstrap import FEWEST_CLUSTERS

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 20_000
"""So many that a p-value of 0.05 survives a correction for a few hundred comparisons."""

METHOD = f"percentile bootstrap, {RESAMPLES} resamples"
MANY = 1000
"""From this many clusters on they are drawn one by one: a third (1,500) to a seventh (30,000) of a multinomial draw's time."""
COUNTS_AT_ONCE = 20_000_000
"""Of draws that are weighted together, which bounds the memory."""

Group = tuple["np.ndarray", "np.ndarray"]
"""[n, k] values of one group's rows, and [n] which cluster each is in."""
OfMeans = Callable[["np.ndarray"], "np.ndarray"]
"""[k, resamples] means over rows, the groups' one after another → [resamples] a number."""


class Gap(NamedTuple):
    """By how much two methods differ."""

    first: str
    """One of the two."""
    second: str
    """The other."""
    value: float
    """The first one's number minus the second one's."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value of the difference being none."""
    n: int
    """Rows."""
    clusters: int
    """Of rows, resampled as wholes; of all the groups together."""


class Resampling:
    """The same resampled clusters for everything that is measured on the same rows.

    Args:
        seed: of the draws.
        resamples: how many.
    """

    def __init__(self, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._resamples, self._seed = resamples, seed
        self._counts: dict[tuple[int, int], np.ndarray] = {}

    def metric(self, groups: Sequence[Group], of_means: OfMeans) -> np.ndarray | None:
        """[1 + resamples] a number on the rows as they are, then on each resample; None where clusters are too few."""
        import numpy as np

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
        import numpy as np

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


def gaps(
    measured: Mapping[str, Sequence[Sequence[Group]]],
    of_means: OfMeans,
    resampling: Resampling,
    against: str | None = None,
) -> Iterator[Gap]:
    """One number's difference between each two methods, in the order of the methods.

    Args:
        measured: method → for each seed its groups of rows.
        of_means: how the number follows from means over rows.
        resampling: of the clusters; shared by all numbers of the same rows.
        against: compare with this one alone; each with each if not given.

    Yields:
        The differences. A method whose rows are not finite or others than the first one's is in none; nor is there any with
        fewer than five clusters.
    """
    import numpy as np

    rows: tuple[tuple[str, ...], ...] | None = None
    drawn: dict[str, np.ndarray] = {}
    for method, groups in measured.items():
        if not all(np.isfinite(values).all() for of_seed in groups for values, _ in of_seed):
            continue
        of_each = {tuple(tuple(map(str, clusters)) for _, clusters in of_seed) for of_seed in groups}
        rows = rows or next(iter(of_each), None)
        if of_each != {rows}:
            continue
        of_seeds = [resampling.metric(of_seed, of_means) for of_seed in groups]
        known = [values for values in of_seeds if values is not None]
        if known:
            drawn[method] = np.mean(known, axis=0)
    for one, other in combinations(drawn, 2):
        if against is None or against in (one, other):
            first, second = (other, one) if one == against else (one, other)
            yield _gap(first, second, drawn[first] - drawn[second], rows or ())


def _gap(first: str, second: str, drawn: np.ndarray, rows: Sequence[Sequence[str]]) -> Gap:
    import numpy as np

    drawn = drawn.round(12)  # the last bits depend on the machine's order of addition, and 0 must be 0
    value, resampled = float(drawn[0]), drawn[1:]
    low, high = np.percentile(resampled, (2.5, 97.5))
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
    n, clusters = sum(map(len, rows)), sum(len(set(of_group)) for of_group in rows)
    return Gap(first, second, value, float(low), float(high), p, n, clusters)
