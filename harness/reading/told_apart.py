"""Which contenders differ in how much they forgot at one damage, by resampling whole authors in every world.

The worlds' questions are others, so that the authors of each are resampled on their own, and a contender's number is the mean
over worlds and seeds. One family of comparisons, each with each, corrected by Holm. How much seeds differ is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from harness.core.evaluator import EvalContext, EvalPlan, Evaluator, metric_of
from harness.core.metric import Metric, OfMeans
from harness.core.options import Variant
from harness.reading.contenders import Contender
from harness.reading.differences import holm, of_means
from harness.reading.equal_damage import EqualDamage, Spot
from harness.statistics.measurements import given_by, groups_of, matrix
from harness.statistics.paired import Gap, Group, Resampling, gaps
from harness.storage.frames import AllInOne
from harness.storage.store import Store

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T", str, int)
MOST_SUBSETS = 6
"""Of more worlds or seeds than these only all of them together are looked at."""
MOST_COMPARED = 40
"""With more contenders than these nothing is compared each with each."""


class Apart(NamedTuple):
    """By how much two contenders differ."""

    gap: Gap
    """The difference, named by the contenders' labels."""
    p_corrected: float
    """Its p-value, corrected for all that were compared."""


def told_apart(comparison: EqualDamage, store: Store, metric: str, budget: float) -> list[Apart]:
    """Each two contenders' difference in a metric at a budget; empty where rows are not on record, or it follows from none.

    Args:
        comparison: whose contenders.
        store: where their rows lie.
        metric: by name.
        budget: one of the comparison's, in nats per token.

    Returns:
        In the contenders' order. Who was not measured in all of `shared_grid` is in none.
    """
    match = metric_of(metric)
    if match is None or not isinstance(match[1].statistic, OfMeans):
        return []
    spots = _spots(comparison, budget)
    grid = shared_grid(comparison, budget)
    if not grid or not 1 < len(spots) <= MOST_COMPARED:
        return []
    worlds, seeds = (sorted(set(part)) for part in zip(*grid, strict=True))
    reader = _Rows(store, *match, variant=comparison.identity["variant"])  # type: ignore[arg-type]
    measured: dict[str, list[list[Group]]] = {}
    for contender, of in spots.items():
        if grid <= of.keys():
            groups = [[reader.groups(of[world, seed]) for world in worlds] for seed in seeds]
            if all(each is not None for of_seed in groups for each in of_seed):
                measured[contender.label] = [[group for each in of_seed for group in each or ()] for of_seed in groups]
    differences = list(gaps(measured, _over_worlds(of_means(match[1]), len(worlds)), Resampling()))
    corrected = holm([gap.p for gap in differences])
    return [Apart(gap, p) for gap, p in zip(differences, corrected, strict=True)]


def _spots(comparison: EqualDamage, budget: float) -> dict[Contender, dict[tuple[str, int], Spot]]:
    return {each: {(s.world, s.seed): s for s in comparison.of(each, budget)} for each in comparison.contenders}


def shared_grid(comparison: EqualDamage, budget: float) -> frozenset[tuple[str, int]]:
    """The worlds, each with the same seeds, in which most is compared: pairs of contenders × worlds × seeds."""
    measured = [frozenset(of) for of in _spots(comparison, budget).values() if of]
    worlds, seeds = {world for of in measured for world, _ in of}, {seed for of in measured for _, seed in of}
    best, most = frozenset[tuple[str, int]](), 0
    for some, several in product(_subsets(worlds), _subsets(seeds)):
        grid = frozenset(product(some, several))
        compared = comb(sum(grid <= of for of in measured), 2) * len(grid)
        if compared > most:
            best, most = grid, compared
    return best


def _subsets(every: Collection[T]) -> list[tuple[T, ...]]:
    """All but the empty one, the largest first; where they are many, all of it alone."""
    whole = tuple(sorted(every))
    return (
        [part for size in range(len(whole), 0, -1) for part in combinations(whole, size)]
        if len(whole) <= MOST_SUBSETS
        else [whole]
    )


def _over_worlds(function: Callable[[np.ndarray], np.ndarray], worlds: int) -> Callable[[np.ndarray], np.ndarray]:
    """A number of several worlds' means, [k × worlds, resamples] one world after another: the mean of each world's number."""

    def averaged(means: np.ndarray) -> np.ndarray:
        of_worlds = [function(part) for part in means.reshape(worlds, -1, means.shape[-1])]
        total: np.ndarray = sum(of_worlds[1:], of_worlds[0])
        return total / worlds

    return averaged


class _Rows:
    """A metric's groups of rows, out of the records."""

    def __init__(self, store: Store, evaluator: Evaluator, metric: Metric, variant: Variant) -> None:
        self._store, self._evaluator, self._metric = store, evaluator, metric
        self._plan = EvalPlan(variant=variant)

    def groups(self, spot: Spot) -> Sequence[Group] | None:
        """Of one spot; None where they are not on record."""
        if self._metric.name not in spot.places:
            return None
        rows = self._store.rows(*spot.places[self._metric.name])
        if rows is None:
            return None
        try:
            given = given_by(self._evaluator, EvalContext(None, self._plan, (), AllInOne(rows)), self._metric)
        except LookupError:
            return None
        return [matrix(group) for group in groups_of(given)]
