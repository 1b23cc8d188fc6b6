"""The main table: forget quality, utility and ROUGE of every method, published, tuned and oracle side by side (table 2).

Two tables for each group of comparable runs: the full one, a row for every method and preset, and the short one with the
presets as columns. CSV holds every number in full, one a line, with the run it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import interval, known, number, p_value
from plots import _select
from plots._select import BEST, LAST, ORACLE, ORDER, PRESETS, REFERENCE, REFERENCES, Group, without_references

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
TIE = "≈"
"""Stands behind a KS distance at or under the noise floor."""


@figure("tables")
def tables(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Sheet]:
    """The full and the short table of each group of comparable runs."""
    made: dict[str, Sheet] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this table", also=tuple(HEADINGS)[1:]):
        numbers = _numbers(group)
        if numbers[numbers["preset"] != REFERENCE].empty:
            continue
        notes = _reading(group, numbers)
        made[group.name] = Sheet(numbers, _full(numbers), f"Forgetting, utility and ROUGE: {group.title}", notes)
        made[f"{group.name}-protocols"] = _short(group, numbers, notes)
    if not made:
        raise UsageError(f"there are only references and runs with settings by hand. {_select.advice()}")
    return made


FIELDS = ("low", "high", "across_low", "across_high", "reference", "floor", "n")
"""What the CSV has of each number."""


def _numbers(group: Group) -> pd.DataFrame:
    """A line for every (method, protocol, metric)."""
    import pandas as pd

    points = without_references(group.points)
    of_presets = points[points["preset"].isin(PRESETS)]
    chosen = [*_spoken(LAST, LAST.pick(of_presets)), *_spoken(BEST, BEST.pick(points))] if len(points) else []
    lines = [_line(method, protocol, rule, metric, of) for method, protocol, rule, of in chosen for metric in HEADINGS]
    for point in group.references.to_dict("records"):
        alone = pd.DataFrame([point])
        lines += [_line(point["arm"], REFERENCE, "", metric, alone) for metric in HEADINGS]
    order = {name: i for i, name in enumerate(_select.in_order(line["method"] for line in lines))}
    lines.sort(key=lambda line: (order[line["method"]], ORDER.index(line["preset"]), list(HEADINGS).index(line["metric"])))
    numbers = pd.DataFrame(lines)
    for name in ("seeds", "n", "step"):
        numbers[name] = numbers[name].astype("Int64")
    return numbers


def _spoken(rule: _select.Rule, points: pd.DataFrame) -> list[tuple[str, str, str, pd.DataFrame]]:
    return [(method, protocol, rule.name, of) for (method, protocol), of in points.groupby(["method", "preset"], sort=True)]


def _line(method: str, protocol: str, rule: str, metric: str, points: pd.DataFrame) -> dict[str, Any]:
    """One number with what is needed to read it."""
    keys: dict[str, Any] = {"method": method, "preset": protocol, "rule": rule, "metric": metric}
    value = _select.value_of(points, metric, FIELDS)
    if value is None:
        return {**keys, "seeds": 0, "absent": _select.absence(points, metric)}
    return {**keys, **value, **({} if rule else {"run": "", "step": None}), "absent": None}


def _cell(line: Mapping[str, Any]) -> str:
    value = line["value"]
    if not known(value):
        return "absent"
    metric = line["metric"]
    text = p_value(value) if metric == QUALITY else number(value)
    if metric == QUALITY and known(line["across_low"]) and line["across_low"] != line["across_high"]:
        text += f" ({p_value(line['across_low'])} to {p_value(line['across_high'])})"
    if metric == UTILITY and known(line["low"]):
        text += f" ({interval(line['low'], line['high'])})"
    if metric == DISTANCE and known(line["floor"]) and value <= line["floor"]:
        text += f" {TIE}"
    return text


def _full(numbers: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for (method, protocol), of in numbers.groupby(["method", "preset"], sort=False):
        cells = {HEADINGS[line["metric"]]: _cell(line) for line in of.to_dict("records")}
        seeds = str(int(of["seeds"].max())) if protocol != REFERENCE else "–"
        rows.append({"method": method, "preset": protocol, **cells, "seeds": seeds})
    return pd.DataFrame(rows)


def _short(group: Group, numbers: pd.DataFrame, notes: list[str]) -> Sheet:
    """A row for every method, and for each preset and the oracle forget quality and utility."""
    import pandas as pd

    kept = numbers[numbers["metric"].isin((QUALITY, UTILITY))]
    protocols = [name for name in (*PRESETS, ORACLE) if (kept["preset"] == name).any()]
    rows, full = [], []
    for method, of in kept.groupby("method", sort=False):
        cells: dict[str, str] = {"method": str(method)}
        values: dict[str, Any] = {"method": str(method)}
        for protocol in protocols:
            own = of[of["preset"] == (REFERENCE if method in REFERENCES else protocol)]
            for metric, heading in ((QUALITY, "forget quality ↑"), (UTILITY, "utility ↑")):
                lines = own[own["metric"] == metric]
                cells[f"{protocol}: {heading}"] = _cell({**lines.iloc[0], "across_low": None}) if len(lines) else "–"
                values[f"{protocol}_{metric}"] = lines["value"].iloc[0] if len(lines) else None
        rows.append(cells)
        full.append(values)
    return Sheet(pd.DataFrame(full), pd.DataFrame(rows), f"Presets and oracle side by side: {group.title}", notes)


def _tries(group: Group) -> str:
    """From how many points the oracle chose: more tries find better ones."""
    counts = group.points.groupby("method").size()
    by_count: dict[int, list[str]] = {}
    for method in _select.in_order(name for name in counts.index if name not in REFERENCES):
        by_count.setdefault(int(counts[method]), []).append(method)
    parts = [f"{count} point{'s' * (count > 1)} of {', '.join(methods)}" for count, methods in sorted(by_count.items())]
    return "; ".join(parts)


def _reading(group: Group, numbers: pd.DataFrame) -> list[str]:
    floor = group.floor(DISTANCE)
    notes = [
        "published, tuned, tuned2: the presets of a method; a run speaks with its last measured point",
        f"{ORACLE}: {BEST.about}; it chose from {_tries(group)}",
        f"forget quality: KS p-value against the first retrained model, n = {group.n(QUALITY)} questions; in brackets "
        "its range over all retrained models; no interval, since resampled p-values are biased",
        f"utility: n = {group.n(UTILITY)} questions; in brackets the 95 % interval, bootstrap over authors",
        "ROUGE-L recall of the answers; its intervals are in the CSV; on the forget questions the retrained model's is best",
    ]
    if floor is not None:
        notes.append(f"{TIE} KS D at or under the noise floor {number(floor)}: two retrained models differ by as much; a tie")
    notes += [*_select.seeds_note(numbers), *_select.same_settings(group.points)]
    absent = numbers[numbers["absent"].notna()]
    reasons = sorted({f"{line['metric']} of {line['method']}: absent: {line['absent']}" for line in absent.to_dict("records")})
    return [*notes, *reasons, *group.notes]
