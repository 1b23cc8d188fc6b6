"""A comparison at equal damage as tables: every budget, the three rules side by side, which contenders are told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.core.evaluator import metric_of, title_of
from harness.core.figure import Sheet
from harness.core.metric import in_text
from harness.reading.added import added
from harness.reading.budget_table import OWN, READING
from harness.reading.contenders import Contender
from harness.reading.differences import LEVEL
from harness.reading.equal_damage import EqualDamage, Middle
from harness.reading.formats import NO_NUMBER, arrow, interval, number, of_unit, p_value
from harness.reading.selection_rules import Agreement, Place, Ranking, agreements, rankings
from harness.reading.told_apart import Apart, shared_grid, told_apart
from harness.storage.store import Store

REFERENCE = "reference"
"""What stands for the budget of a model that others are compared with."""


def title_at(comparison: EqualDamage) -> str:
    """What it is about, as a heading."""
    identity = comparison.identity
    parts = [comparison.bench, f"model {identity['model']}"]
    parts += [f"{identity['variant']} definitions"] if identity["variant"] != "original" else []
    parts += [f"retain set {identity['retain set']}"] if identity["retain set"] != "all" else []
    parts += [f"{identity['rows per split']} rows per split"] if identity["rows per split"] != "all" else []
    return " · ".join(parts)


def shown_metrics(comparison: EqualDamage) -> list[str]:
    """The metrics that are shown at each budget: those that the benchmark names, or all; and those of plug-ins."""
    measured = comparison.metrics
    named = [metric for metric in comparison.roles.at_budgets if metric in measured]
    return list(dict.fromkeys([*named, *added(comparison.bench, measured)])) if named else measured


def equal_damage_sheets(comparison: EqualDamage, store: Store) -> dict[str, Sheet]:
    """A comparison's tables by name, those that its records allow.

    Args:
        comparison: which.
        store: where the rows lie by which contenders are told apart.
    """
    made = {
        "budgets": budgets_sheet(comparison),
        "rules": rules_sheet(comparison),
        "differences": differences_sheet(comparison, store),
    }
    return {name: sheet for name, sheet in made.items() if sheet}


# ---------------------------------------------------------------- every budget


def budgets_sheet(comparison: EqualDamage) -> Sheet:
    """A row a budget and contender, the best at each budget first; the references above and below them."""
    import pandas as pd

    metrics, roles = shown_metrics(comparison), comparison.roles
    ranking = roles.ranking or next(iter(roles.forgetting), "")
    rows = [_reference_row(comparison, name, metrics) for name in ("untouched", "retrained")]
    for budget in comparison.budgets:
        present = [each for each in comparison.contenders if comparison.of(each, budget)]
        present.sort(key=lambda each: _order(comparison.middle(each, budget, ranking)))
        rows += [_row(comparison, each, budget, metrics) for each in present]
        for each in comparison.contenders:
            if each not in present and (reasons := comparison.reasons(each, budget)):
                absent = f"absent: {'; '.join(reasons)}"
                rows.append(
                    _cells(f"{budget:g}", each.label, "", "", [absent, *[""] * (len(metrics) - 1)], comparison, metrics)
                )
    rows += [_row(comparison, each, None, metrics) for each in _at_own_damage(comparison)]
    caption = f"Every method at the same damage: {title_at(comparison)}"
    return Sheet(comparison.table(), pd.DataFrame([row for row in rows if row]), caption, _reading(comparison))


def _at_own_damage(comparison: EqualDamage) -> list[Contender]:
    """Models at a damage of their own; the untouched one has none, and stands above."""
    return [each for each in comparison.fixed if each.method != "untouched"]


def _order(middle: Middle | None) -> float:
    return middle.value if middle else math.inf


def _row(comparison: EqualDamage, contender: Contender, budget: float | None, metrics: Sequence[str]) -> dict[str, str]:
    n = len(comparison.of(contender, budget))
    values = [_cell(comparison.middle(contender, budget, metric), n) for metric in metrics]
    unmet = f" of {n + missing}" if budget is not None and (missing := _missing(comparison, contender, budget)) else ""
    damage = number(comparison.damage(contender, budget))
    at = OWN if budget is None else f"{budget:g}"
    return _cells(at, contender.label, f"{n}{unmet}", damage, values, comparison, metrics)


def _missing(comparison: EqualDamage, contender: Contender, budget: float) -> int:
    return sum(each.contender == contender and each.budget == budget for each in comparison.unmet)


def _reference_row(comparison: EqualDamage, name: str, metrics: Sequence[str]) -> dict[str, str]:
    middles = [comparison.reference(name, metric) for metric in metrics]
    n = max((each.n for each in middles if each), default=0)
    return _cells(REFERENCE, name, str(n), "", [_cell(each, n) for each in middles], comparison, metrics) if n else {}


def _cells(
    budget: str, label: str, n: str, damage: str, values: Sequence[str], comparison: EqualDamage, metrics: Sequence[str]
) -> dict[str, str]:
    heads = [f"{_short(metric)} {arrow(_better(comparison, metric))}".strip() for metric in metrics]
    return {"budget": budget, "method": label, "n": n, "damage": damage, **dict(zip(heads, values, strict=True))}


def _short(metric: str) -> str:
    match = metric_of(metric)
    return (match[1].short if match else "") or in_text(title_of(metric))


def _better(comparison: EqualDamage, metric: str) -> str | None:
    middles = (comparison.middle(each, budget, metric) for each in comparison.contenders for budget in comparison.budgets)
    return next((middle.example.better for middle in middles if middle), None)


def _cell(middle: Middle | None, n: int) -> str:
    """A number with its range, and how many have it where that is not all of a row's."""
    if middle is None:
        return NO_NUMBER
    text, low, high = (of_unit(end, middle.example.unit) for end in (middle.value, middle.low, middle.high))
    fewer = f"n = {middle.n}" if middle.n != n else ""
    if middle.n == 1 and middle.example.interval_95:
        text += f" [{interval(*middle.example.interval_95)}]"
    beside = "; ".join(filter(None, (f"{low} to {high}" if low != high else "", fewer)))
    return f"{text} ({beside})" if beside else text


def _reading(comparison: EqualDamage) -> list[str]:
    """What is needed to read the table."""
    floor = comparison.floor(comparison.roles.ranking) if comparison.roles.ranking else None
    return [
        READING,
        f"n: worlds × seeds; worlds: {', '.join(comparison.worlds)}. The median over them, in round brackets the lowest and "
        "the highest; of a single one its own 95 % interval in square brackets.",
        *(
            [f"{title_of(comparison.roles.ranking)}s at or under {number(floor)} are ties: retrained models differ by as much."]
            * (floor is not None)
        ),
        *(["own: a model at a damage of its own, which no budget decides"] if _at_own_damage(comparison) else []),
        *comparison.chosen,
        *comparison.uneven,
        *comparison.notes,
    ]


# ---------------------------------------------------------------- three rules


def rules_sheet(comparison: EqualDamage) -> Sheet | None:
    """Ranks under each rule, in the first one's order; None where no rule has a number."""
    import pandas as pd

    ranked = rankings(comparison)
    if not ranked:
        return None
    rows, full = [], []
    order = sorted(range(len(comparison.contenders)), key=lambda i: (ranked[0].places[i].rank or math.inf, i))
    for i in order:
        who = comparison.contenders[i]
        cells: dict[str, str] = {"method": who.label}
        values: dict[str, object] = {"contender": who.label, "method": who.method, "preset": who.protocol}
        for ranking in ranked:
            place = ranking.places[i]
            cells[f"{ranking.name}: {ranking.heading}"] = _value(place, ranking)
            cells[f"rank {ranking.name}"] = _rank(place)
            finite = place.value is not None and math.isfinite(place.value)
            values |= {f"{ranking.name}_value": place.value if finite else None, f"{ranking.name}_rank": place.rank}
            values |= {f"{ranking.name}_n": place.n, f"{ranking.name}_remark": place.remark}
        rows.append(cells)
        full.append(values)
    numbers = pd.DataFrame(full)
    for ranking in ranked:
        numbers[f"{ranking.name}_rank"] = numbers[f"{ranking.name}_rank"].astype("Int64")
    notes = [*(f"{each.name}: {each.about}." for each in ranked), *correlations(ranked, agreements(ranked))]
    counts = sorted({place.n for ranking in ranked for place in ranking.places if place.rank})
    over = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    notes.append(f"Ranks go by medians over n = {over} worlds × seeds: they do not say who is told apart from whom.")
    notes += comparison.uneven
    return Sheet(numbers, pd.DataFrame(rows), f"Three rules for the point that speaks: {title_at(comparison)}", notes)


def correlations(ranked: Sequence[Ranking], agreeing: Sequence[Agreement]) -> list[str]:
    """How far each two rules rank alike, in sentences."""
    every = len(ranked[0].places)
    lines = [
        f"Kendall's τ-b between {a.first} and {a.second}: {number(a.tau, 2, signed=True)} over {a.n}"
        f"{'' if a.n == every else f' of {every}'} methods, those that both rank (p {p_value(a.p)})."
        for a in agreeing
    ]
    possible = len(ranked) * (len(ranked) - 1) // 2
    return lines + ["No τ where a rule tells fewer than two of the methods apart."] * (len(lines) < possible)


def _rank(place: Place) -> str:
    """Who never gets there is last, also where nobody does and all share the first rank."""
    if place.value is not None and math.isinf(place.value):
        return "last"
    return str(place.rank) if place.rank else NO_NUMBER


def _value(place: Place, ranking: Ranking) -> str:
    if place.value is None:
        return f"absent: {place.remark}"
    if math.isinf(place.value) and place.remark.startswith("0 "):
        return "never"
    text = "never" if math.isinf(place.value) else number(place.value)
    return f"{text} ({place.remark})" if place.remark else text


# ---------------------------------------------------------------- told apart


def differences_sheet(comparison: EqualDamage, store: Store) -> Sheet | None:
    """Each two contenders' difference in what falls, where contenders are ranked; None where it cannot be said."""
    import pandas as pd

    metric, budget = comparison.roles.level, comparison.judged_at
    if not metric or budget is None or not (pairs := told_apart(comparison, store, metric, budget)):
        return None
    names = ("first", "second", "value", "low", "high", "p", "n", "clusters")
    full = [{name: _six(getattr(a.gap, name)) for name in names} | {"p_holm": _six(a.p_corrected)} for a in pairs]
    numbers = pd.DataFrame(full).rename(columns={"value": "difference"}).assign(metric=metric, budget=budget)
    shown = pd.DataFrame([_in_words(each) for each in pairs])
    caption = f"Differences in {in_text(title_of(metric))} at a damage of {budget:g}: {title_at(comparison)}"
    return Sheet(numbers, shown, caption, _reading_of_differences(comparison, pairs, metric, budget))


def _reading_of_differences(comparison: EqualDamage, pairs: Sequence[Apart], metric: str, budget: float) -> list[str]:
    worlds, seeds = (sorted(set(part)) for part in zip(*shared_grid(comparison, budget), strict=True))
    compared = {name for each in pairs for name in (each.gap.first, each.gap.second)}
    others = [each.label for each in comparison.contenders if each.label not in compared]
    return [
        differences_in_words(pairs, metric, budget),
        f"Worlds: {', '.join(worlds)}; seeds: {', '.join(map(str, seeds))}; {pairs[0].gap.n} rows of {pairs[0].gap.clusters} "
        f"{_clusters(metric)}.",
        *([f"Not compared, since not measured in all of them: {', '.join(others)}."] if others else []),
    ]


def _six(value: object) -> object:
    """What is behind six digits depends on the machine."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _in_words(each: Apart) -> dict[str, str]:
    gap = each.gap
    ends = interval(gap.low, gap.high, signed=True)
    return {
        "method": gap.first,
        "minus": gap.second,
        "difference": f"{number(gap.value, signed=True)} [{ends}]",
        "p, corrected": p_value(each.p_corrected),
        "told apart": "yes" if each.p_corrected <= LEVEL else "no",
    }


def differences_in_words(pairs: Sequence[Apart], metric: str, budget: float) -> str:
    """How many differences are told apart from none."""
    apart = sum(each.p_corrected <= LEVEL for each in pairs)
    return (
        f"{apart} of {len(pairs)} differences in {in_text(title_of(metric))} at a damage of {budget:g} are told apart from "
        f"none at {100 * LEVEL:g} % ({_clusters(metric)} resampled as wholes in every world, mean over worlds and seeds, "
        f"Holm-corrected for all {len(pairs)}); how much seeds differ is not in it."
    )


def _clusters(metric: str) -> str:
    """What is resampled whole."""
    match = metric_of(metric)
    return match[1].clusters if match else "groups of rows"
