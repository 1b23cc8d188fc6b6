"""The main table: forget quality, utility and ROUGE of every method, published, tuned and oracle side by side (table 2).

Two tables for each group of comparable runs: the full one, a row for every method and protocol, and the short one with the
protocols as columns. CSV holds every number in full, one a line, with the run it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, BEST, LAST, MEDIAN, ORACLE, OTHER, PROTOCOLS, Group, lower_median

if TYPE_CHECKING:
    import pandas as pd

QUALITY, DISTANCE, UTILITY = "forget_quality", "forget_quality_d", "model_utility"
HEADINGS = {
    QUALITY: "forget quality ↑ (over references)",
    DISTANCE: "KS D ↓",
    UTILITY: "utility ↑ (95 %)",
    "retain_rouge": "ROUGE retain ↑",
    "real_authors_rouge": "ROUGE authors ↑",
    "world_facts_rouge": "ROUGE world ↑",
    "forget_rouge": "ROUGE forget → retrained",
}
REFERENCE = "reference arm"
TIE = "≈"
"""Stands behind a KS distance at or under the noise floor."""


@figure("tables")
def tables(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Sheet]:
    """The full and the short table of each group of comparable runs."""
    made: dict[str, Sheet] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this table", also=tuple(HEADINGS)[1:]):
        numbers = _numbers(group)
        if numbers[numbers["protocol"] != REFERENCE].empty:
            continue
        notes = _reading(group, numbers)
        made[group.name] = Sheet(numbers, _full(numbers), f"Forgetting, utility and ROUGE: {group.title}", notes)
        made[f"{group.name}-protocols"] = _short(group, numbers, notes)
    if not made:
        raise UsageError(f"there are only reference arms and runs with settings by hand. {_select.advice()}")
    return made


def _numbers(group: Group) -> pd.DataFrame:
    """A line for every (method, protocol, metric)."""
    import pandas as pd

    points = group.points
    points = points[~points["method"].isin(ARMS)]
    formed = points[points["protocol"].isin(PROTOCOLS)]
    chosen = [*_spoken(LAST, LAST.pick(formed)), *_spoken(BEST, BEST.pick(points))] if len(points) else []
    lines = [_line(method, form, rule, metric, of) for method, form, rule, of in chosen for metric in HEADINGS]
    for arm in group.arms.to_dict("records"):
        alone = pd.DataFrame([arm])
        lines += [_line(arm["arm"], REFERENCE, "", metric, alone) for metric in HEADINGS]
    order = {name: i for i, name in enumerate(_select.in_order(line["method"] for line in lines))}
    ways = (*PROTOCOLS, OTHER, ORACLE, REFERENCE)
    lines.sort(key=lambda line: (order[line["method"]], ways.index(line["protocol"]), list(HEADINGS).index(line["metric"])))
    numbers = pd.DataFrame(lines)
    for name in ("seeds", "n", "step"):
        numbers[name] = numbers[name].astype("Int64")
    return numbers


def _spoken(rule: _select.Rule, points: pd.DataFrame) -> list[tuple[str, str, str, pd.DataFrame]]:
    return [(method, form, rule.name, of) for (method, form), of in points.groupby(["method", "protocol"], sort=True)]


def _line(method: str, form: str, rule: str, metric: str, points: pd.DataFrame) -> dict[str, Any]:
    """One number with what is needed to read it; of several seeds the lower median, and where all of them lie."""
    told: dict[str, Any] = {"method": method, "protocol": form, "rule": rule, "metric": metric}
    middle = lower_median(points, metric) if metric in points else None
    if middle is None:
        reasons = sorted(set(points[f"{metric}_absent"].dropna())) if f"{metric}_absent" in points else []
        return {**told, "seeds": 0, "absent": "; ".join(reasons) or "not measured"}
    fields = ("low", "high", "across_low", "across_high", "reference", "floor", "n")
    told |= {"value": middle[metric], **{name: middle.get(f"{metric}_{name}") for name in fields}}
    told |= {"seeds": int(points[metric].notna().sum()), "seed_low": points[metric].min(), "seed_high": points[metric].max()}
    return {**told, "run": middle["run"] if rule else "", "step": middle["step"] if rule else None, "absent": None}


def _cell(line: Mapping[str, Any]) -> str:
    value = line["value"]
    if not _style.known(value):
        return "absent"
    text, metric = _style.number(value), line["metric"]
    if metric == QUALITY and _style.known(line["across_low"]) and line["across_low"] != line["across_high"]:
        text += f" ({_style.number(line['across_low'])} to {_style.number(line['across_high'])})"
    if metric == UTILITY and _style.known(line["low"]):
        text += f" ({_style.number(line['low'])} to {_style.number(line['high'])})"
    if metric == DISTANCE and _style.known(line["floor"]) and value <= line["floor"]:
        text += f" {TIE}"
    return text


def _full(numbers: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (method, form), of in numbers.groupby(["method", "protocol"], sort=False):
        cells = {HEADINGS[line["metric"]]: _cell(line) for line in of.to_dict("records")}
        seeds = str(int(of["seeds"].max())) if form != REFERENCE else "–"
        rows.append({"method": method, "protocol": form, **cells, "seeds": seeds})
    return pd.DataFrame(rows)


def _short(group: Group, numbers: pd.DataFrame, notes: list[str]) -> Sheet:
    """A row for every method, and for every protocol forget quality and utility."""
    import pandas as pd

    kept = numbers[numbers["metric"].isin((QUALITY, UTILITY))]
    there = [form for form in (*PROTOCOLS, ORACLE) if (kept["protocol"] == form).any()]
    rows, full = [], []
    for method, of in kept.groupby("method", sort=False):
        cells: dict[str, str] = {"method": str(method)}
        values: dict[str, Any] = {"method": str(method)}
        arm = method in ARMS
        for form in there:
            for metric, heading in ((QUALITY, "forget quality ↑"), (UTILITY, "utility ↑")):
                found = of[(of["protocol"] == (REFERENCE if arm else form)) & (of["metric"] == metric)]
                cells[f"{form}: {heading}"] = _cell({**found.iloc[0], "across_low": None}) if len(found) else "–"
                values[f"{form}_{metric}"] = found["value"].iloc[0] if len(found) else None
        rows.append(cells)
        full.append(values)
    return Sheet(pd.DataFrame(full), pd.DataFrame(rows), f"The protocols side by side: {group.title}", notes)


def _tries(group: Group) -> str:
    """From how many points the oracle chose: more tries find better ones."""
    counts = group.points.groupby("method").size()
    by_count: dict[int, list[str]] = {}
    for method in _select.in_order(name for name in counts.index if name not in ARMS):
        by_count.setdefault(int(counts[method]), []).append(method)
    told = [f"{count} point{'s' * (count > 1)} of {', '.join(methods)}" for count, methods in sorted(by_count.items())]
    return "; ".join(told)


def _reading(group: Group, numbers: pd.DataFrame) -> list[str]:
    floor = group.floor(DISTANCE)
    notes = [
        "published, tuned: the two forms of a method; a run speaks with its last measured point",
        f"{ORACLE}: {BEST.about}; it chose from {_tries(group)}",
        f"forget quality: KS p-value against the first retrained model, n = {group.n(QUALITY)} questions; in brackets "
        "its range over all retrained models; no interval, since resampled p-values are biased",
        f"utility: n = {group.n(UTILITY)} questions; in brackets the 95 % interval, bootstrap over authors",
        "ROUGE-L recall of the answers; its intervals are in the CSV; on the forget questions the retrained model's is best",
    ]
    if floor is not None:
        notes.append(
            f"{TIE} KS D at or under the noise floor {_style.number(floor)}: two retrained models differ by as much; a tie"
        )
    if numbers["seeds"].max() > 1:
        notes.append(f"several seeds: {MEDIAN}, with that run's interval; the CSV has the lowest and highest seed")
    absent = numbers[numbers["absent"].notna()]
    reasons = sorted({f"{line['metric']} of {line['method']}: absent: {line['absent']}" for line in absent.to_dict("records")})
    return [*notes, *reasons, *group.notes]
