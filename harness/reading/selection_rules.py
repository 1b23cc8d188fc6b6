"""The same runs ranked under three rules for the point that speaks, and how far the rankings agree (Kendall's τ-b).

A: forgetting at equal damage. B: damage at equal forgetting, the damage where no more is known than by the retrained model.
C: the papers' oracle, the best forget quality × utility on the way, picked by looking at the rows that are reported.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import harmonic_mean, median, median_high, median_low
from typing import NamedTuple

from harness.core.evaluator import metric_of, title_of
from harness.core.measurement import Measurement
from harness.core.metric import in_text
from harness.reading.contenders import Contender
from harness.reading.equal_damage import EqualDamage, Spot
from harness.reading.formats import number

FEWEST = 3
"""Contenders that a correlation of ranks takes."""


@dataclass(frozen=True)
class Place:
    """Where a contender stands under a rule."""

    value: float | None
    """Median over worlds × seeds; infinite where it never gets there, None where it has no number."""
    n: int
    """Worlds × seeds that have a number."""
    rank: int | None
    """1 for the best, equal ones alike; None without a value."""
    remark: str = ""
    """Why there is no number, or what its number is not."""


@dataclass(frozen=True)
class Ranking:
    """A rule with all its places."""

    name: str
    """A, B or C."""
    about: str
    """What it takes, in a sentence."""
    heading: str
    """Over a column of its numbers."""
    places: Sequence[Place]
    """In the order of the comparison's contenders."""


@dataclass(frozen=True)
class Agreement:
    """How far two rules rank alike."""

    first: str
    """One rule."""
    second: str
    """The other."""
    tau: float
    """Kendall's τ-b: 1 for the same order, 0 for none in common."""
    p: float
    """Of there being nothing in common."""
    n: int
    """Contenders that both rank."""


def rankings(comparison: EqualDamage) -> list[Ranking]:
    """The rules that the benchmark's metrics allow, in order."""
    made = [_at_equal_damage(comparison), _at_equal_forgetting(comparison), _oracle(comparison)]
    return [ranking for ranking in made if ranking and any(place.value is not None for place in ranking.places)]


def agreements(ranked: Sequence[Ranking]) -> list[Agreement]:
    """Each two rules, over the contenders that have a rank under both."""
    from scipy.stats import kendalltau

    made = []
    for one, other in combinations(ranked, 2):
        pairs = [(a.rank, b.rank) for a, b in zip(one.places, other.places, strict=True) if a.rank and b.rank]
        if len(pairs) < FEWEST:
            continue
        result = kendalltau(*zip(*pairs, strict=True))
        if math.isfinite(result.statistic):  # it is not where one of them ties all
            made.append(Agreement(one.name, other.name, float(result.statistic), float(result.pvalue), len(pairs)))
    return made


def _ranked(values: Sequence[tuple[float | None, int, str]], highest: bool = False) -> list[Place]:
    keys = sorted(-v if highest else v for v, _, _ in values if v is not None)
    return [Place(v, n, None if v is None else 1 + bisect_left(keys, -v if highest else v), remark) for v, n, remark in values]


def _of_all(n: int, tried: int, what: str) -> list[str]:
    """A remark where a number is over fewer worlds × seeds than a contender was run in: those that did well enough."""
    return [f"{n} of {tried} {what}"] * (n < tried)


# ---------------------------------------------------------------- A


def _at_equal_damage(comparison: EqualDamage) -> Ranking | None:
    """By the metric that ranks; what is at or under the noise floor is a tie."""
    roles, budget = comparison.roles, comparison.judged_at
    metric = roles.ranking or next(iter(roles.forgetting), "")
    if budget is None or not metric:
        return None
    match, floor = metric_of(metric), comparison.floor(metric)
    end, name, remarked = floor, "the noise floor", "a tie with retraining"
    if match and match[1].better == "lower" and match[1].chance is not None:
        end, name, remarked = match[1].chance, "chance", "at chance"
    values: list[tuple[float | None, int, str]] = []
    for contender in comparison.contenders:
        middle = comparison.middle(contender, budget, metric)
        if middle is None:
            values.append((None, 0, "; ".join(comparison.reasons(contender, budget)) or "not measured"))
            continue
        tie = end is not None and middle.value <= end
        remarks = [remarked] * tie + _of_all(middle.n, comparison.tried(contender), "met it")
        values.append((max(middle.value, end or 0.0), middle.n, "; ".join(remarks)))
    title = in_text(title_of(metric))
    floor_text = f"; at or under {number(end)}, {name}, all tie" if end is not None else ""
    return Ranking(
        "A",
        f"forgetting at equal damage: {title} at {budget:g} nats per token, lower is better{floor_text}",
        f"{title} at {budget:g}",
        _ranked(values),
    )


# ---------------------------------------------------------------- B


def _at_equal_forgetting(comparison: EqualDamage) -> Ranking | None:
    """By the damage at which what falls is where the retrained model's is."""
    metric = comparison.roles.level
    if not metric or comparison.reference("retrained", metric) is None:
        return None
    values: list[tuple[float | None, int, str]] = []
    for contender in comparison.contenders:
        crossings = [c for spots in _runs(comparison, contender) if (c := _damage_there(comparison, spots, metric)) is not None]
        damages = [crossing.damage for crossing in crossings]
        if not damages:
            values.append((None, 0, "not measured"))
            continue
        middle, arrived = median(damages), sum(map(math.isfinite, damages))
        remarks = [f"{arrived} of {len(damages)} get there"] * (arrived < len(damages))
        in_the_middle = (median_low(damages), median_high(damages))
        bounded = any(crossing.at_first and crossing.damage in in_the_middle for crossing in crossings)
        remarks += ["at most: there at the first budget"] * (not remarks and bounded)
        remarks += _of_all(len(damages), comparison.tried(contender), "met any budget")
        values.append((middle, len(damages), "; ".join(remarks)))
    title = in_text(title_of(metric))
    about = (
        f"damage at equal forgetting: the damage at which {title} falls to the retrained model's, in nats per token, lower is "
        "better; between two budgets interpolated in the logarithm of damage; who is there at no budget that it met is last"
    )
    return Ranking("B", about, f"damage at the retrained {title}", _ranked(values))


def _runs(comparison: EqualDamage, contender: Contender) -> list[list[Spot]]:
    """A contender's spots at budgets, by world and seed."""
    runs: dict[tuple[str, int], list[Spot]] = {}
    for spot in comparison.spots:
        if spot.contender == contender and spot.budget is not None:
            runs.setdefault((spot.world, spot.seed), []).append(spot)
    return [sorted(spots, key=lambda spot: spot.budget or 0.0) for spots in runs.values()]


class _Crossing(NamedTuple):
    """Where a run's number first is at or under the retrained model's."""

    damage: float
    """In nats per token; infinite if nowhere."""
    at_first: bool = False
    """Whether at the first budget that the run met: it may have been there earlier."""


def _damage_there(comparison: EqualDamage, spots: Sequence[Spot], metric: str) -> _Crossing | None:
    """The damage at which a run's number first is at or under the retrained model's; None if unknown.

    log B = log B₁ + (log B₂ − log B₁) (p₁ − p*) / (p₁ − p₂)      p*: the retrained model's, between the numbers at two budgets
    """
    wanted = comparison.references[spots[0].world].get("retrained", {}).get(metric)
    known = [(spot.budget, value) for spot in spots if spot.budget and (value := spot.number(metric)) is not None]
    if wanted is None or not known:
        return None
    before: tuple[float, float] | None = None
    for budget, value in known:
        if value <= wanted.value:
            if before is None:
                return _Crossing(budget, at_first=True)
            share = (before[1] - wanted.value) / (before[1] - value)
            return _Crossing(math.exp(math.log(before[0]) + share * math.log(budget / before[0])))
        before = budget, value
    return _Crossing(math.inf)


# ---------------------------------------------------------------- C


def _oracle(comparison: EqualDamage) -> Ranking | None:
    """By the largest product of the benchmark's oracle score over all of a run's budgets."""
    roles = comparison.roles
    spots = [spot for spot in comparison.spots if spot.budget is not None]
    if not roles.oracle_score or not roles.kept or not spots:
        return None
    whole = all(spot.number(roles.kept[0]) is not None for spot in spots)
    parts = [m for m in roles.kept_likelihoods if all(spot.number(m) is not None for spot in spots)]
    if not whole and not parts:
        return None
    others = [metric for metric in roles.oracle_score if metric != roles.kept[0]]
    values: list[tuple[float | None, int, str]] = []
    for contender in comparison.contenders:
        best = [
            max(scores)
            for run in _runs(comparison, contender)
            if (scores := _scores(run, others, [*roles.kept[:1]] if whole else parts))
        ]
        remark = "".join(_of_all(len(best), comparison.tried(contender), "met any budget"))
        values.append((median(best), len(best), remark) if best else (None, 0, "not measured"))
    names = " × ".join(in_text(title_of(metric)) for metric in others)
    kept = in_text(title_of(roles.kept[0])) if whole else "likelihood utility"
    of = ", ".join(in_text(title_of(metric)) for metric in parts)
    stands_in = "" if whole else f"; no answers were written at most points, so that utility is the harmonic mean of {of}"
    about = f"the papers' oracle: the largest {names} × {kept} over all budgets, higher is better{stands_in}"
    return Ranking("C", about, f"best {names} × {kept}", _ranked(values, highest=True))


def _scores(spots: Sequence[Spot], factors: Sequence[str], kept: Sequence[str]) -> list[float]:
    """The product at each of a run's points that has all of it."""
    scores = []
    for spot in spots:
        values = [spot.values.get(metric) for metric in (*factors, *kept)]
        numbers = [max(0.0, value.value) for value in values if isinstance(value, Measurement)]
        if len(numbers) == len(values):
            scores.append(math.prod(numbers[: len(factors)]) * harmonic_mean(numbers[len(factors) :]))
    return scores
