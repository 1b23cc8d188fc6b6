"""Forget quality against model utility: every method's way, from its first measured point to its last (figure 1).

Forget quality is a p-value and stands on a logarithmic axis. Underneath is the KS distance behind it, where the noise
floor has its place: two retrained models differ by as much, and what lies inside is a tie. Published and tuned forms stand
side by side and share their axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, BEST, LAST, MEDIAN, OTHER, PROTOCOLS, Group
from plots._ways import legend, ways

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing

QUALITY, DISTANCE, UTILITY = "forget_quality", "forget_quality_d", "model_utility"


@figure("pareto")
def pareto(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table of its points for each group of comparable runs."""
    made: dict[str, Drawing | Sheet] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this figure", also=(DISTANCE,)):
        points = group.points
        points = points[~points["method"].isin(ARMS)]
        if points.empty:
            continue
        forms = [form for form in PROTOCOLS if (points["protocol"] == form).any()] or [OTHER]
        shown = points[points["protocol"].isin(forms)]
        left = points.loc[~points["protocol"].isin(forms), "folder"].nunique()
        notes = [*group.notes, *([f"Not shown: {left} runs with settings by hand."] if left else [])]
        with _style.style():
            made[group.name] = _draw(group, shown, forms, notes)
        made[f"{group.name}-points"] = _sheet(group, shown, notes)
    if not made:
        raise UsageError(f"there are only reference arms. {_select.advice()}")
    return made


def _draw(group: Group, points: pd.DataFrame, forms: list[str], notes: list[str]) -> Drawing:
    import pandas as pd

    drawing = _style.figure(4.2 * len(forms) + (1.6 if len(forms) > 1 else 2.8), 7.6 + 0.11 * len(notes))
    panels = drawing.subplots(2, len(forms), sharex=True, sharey="row", squeeze=False, height_ratios=(1.15, 1))
    arms, floor = group.arms, group.floor(DISTANCE)
    everything = pd.concat([points, arms]) if len(arms) else points
    lowest = _style.log_axis(panels[0, 0], [*everything[QUALITY].dropna()], "forget quality: KS p-value, log scale  (↑ better)")
    for column, form in enumerate(forms):
        top, bottom = panels[0, column], panels[1, column]
        here = points[points["protocol"] == form]
        for axes, metric, edge in ((top, QUALITY, lowest), (bottom, DISTANCE, None)):
            if metric in points:
                ways(axes, here, arms, UTILITY, metric, edge)
                _style.references(axes, arms.to_dict("records"), UTILITY, metric, edge)
        top.set_title(f"{form} form" if form in PROTOCOLS else form)
        _style.significance(top, label=not column)
        bottom.set_xlabel("model utility  (→ better)")
        if floor is not None:
            bottom.axhspan(0, floor, color="#2ca02c", alpha=0.13, zorder=0, linewidth=0)
    utilities = pd.concat([everything[c] for c in (UTILITY, f"{UTILITY}_low", f"{UTILITY}_high") if c in everything]).dropna()
    margin = 0.06 * (utilities.max() - utilities.min()) + 0.01
    panels[0, 0].set_xlim(utilities.min() - margin, utilities.max() + margin)
    furthest = everything[DISTANCE].max() if DISTANCE in everything else 1.0
    panels[1, 0].set_ylim(1.06 * max(furthest, 0.05), -0.02)  # upside down: up is better, as above
    panels[1, 0].set_ylabel("KS distance D, axis reversed  (↑ better)")
    if floor is not None:
        told = f"noise floor, D ≤ {floor:.3f}: ties"
        panels[1, 0].annotate(told, (0.01, 0.004), xycoords=("axes fraction", "data"), va="top", fontsize=7, color="#1b6e1b")
    legend(drawing, points, arms)
    drawing.suptitle(f"Forgetting against utility: {group.title}", fontsize=11)
    _style.caption(drawing, [*_reading(group, points), *notes], width=72 * len(forms) + (24 if len(forms) == 1 else 8))
    return drawing


def _reading(group: Group, points: pd.DataFrame) -> list[str]:
    seeds = points.groupby(["method", "protocol"])["seed"].nunique().max()
    zero = (points[QUALITY] <= _style.ZERO).any()
    told = (
        "Line: a run's measured points in order, dotted from the untouched model to the first. "
        f"Large marker: its {LAST.name}; bar: 95 % interval of utility (bootstrap over authors). "
    )
    several = f"Several seeds (up to {seeds}): hollow markers are their {LAST.name}s, the large one is the {MEDIAN}."
    floor = group.floor(DISTANCE) is not None
    return [
        told + (several if seeds > 1 else "One seed each."),
        "Reference arms: untouched (before unlearning), retrained (never saw the forget set). Forget quality compares with "
        f"the first retrained model on n = {group.n(QUALITY)} forget questions; no interval (resampled p-values are biased). "
        f"Utility: n = {group.n(UTILITY)} questions.",
        *([] if floor else ["No noise floor is drawn: it takes two retrained models."]),
        *(["A p-value of 0 (smaller than any number of double precision) stands at the lower edge."] if zero else []),
    ]


def _sheet(group: Group, points: pd.DataFrame, notes: list[str]) -> Sheet:
    """The drawn points, and which of them each rule takes."""
    import pandas as pd

    last = {(r.folder, r.index_) for r in LAST.pick(points).rename(columns={"index": "index_"}).itertuples()}
    best = {(r.folder, r.index_) for r in BEST.pick(points).rename(columns={"index": "index_"}).itertuples()}
    rows = []
    for row in points.sort_values(["method", "protocol", "seed", "folder", "index"]).to_dict("records"):
        place = (row["folder"], row["index"])
        rules = [rule.name for rule, taken in ((LAST, last), (BEST, best)) if place in taken]
        told = {key: row[key] for key in ("method", "protocol", "seed", "run")}
        told |= {"step": int(row["step"]), "rule": " and ".join(rules), "seconds": row["seconds"]}
        rows.append({**told, **_numbers(row)})
    for arm in group.arms.to_dict("records"):
        rows.append({"method": arm["arm"], "protocol": "reference arm", "rule": "", **_numbers(arm)})
    numbers = pd.DataFrame(rows)
    numbers["step"] = numbers["step"].astype("Int64")
    numbers["seed"] = numbers["seed"].astype("Int64")
    shown = pd.DataFrame(
        {
            "method": numbers["method"],
            "protocol": numbers["protocol"],
            "seed": numbers["seed"].astype(str).replace("<NA>", "–"),
            "step": numbers["step"].astype(str).replace("<NA>", "–"),
            "forget quality ↑": numbers[QUALITY].map(_style.number),
            "KS D ↓": numbers[DISTANCE].map(_style.number),
            "utility ↑": numbers[UTILITY].map(_style.number),
            "rule": numbers["rule"],
        }
    )
    rules = [f"{rule.name}: {rule.about}" for rule in (LAST, BEST)]
    return Sheet(numbers, shown, f"Every measured point: {group.title}", [*rules, *notes])


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = [QUALITY, f"{QUALITY}_across_low", f"{QUALITY}_across_high", DISTANCE, f"{DISTANCE}_floor"]
    return {name: row.get(name) for name in (*kept, UTILITY, f"{UTILITY}_low", f"{UTILITY}_high")}
