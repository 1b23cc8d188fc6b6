"""Forget quality against model utility: every method's trajectory, from its first measured point to its last (figure 1).

Forget quality is a p-value and stands on a logarithmic axis. Underneath is the KS distance behind it, where the noise
floor has its place: two retrained models differ by as much, and what lies inside is a tie. Published and tuned presets stand
side by side and share their axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import number, p_value
from plots import _select, _style
from plots._select import BEST, LAST, MEDIAN, REFERENCE, Group
from plots._trajectories import draw_trajectories, legend

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

QUALITY, DISTANCE, UTILITY = "forget_quality", "forget_quality_d", "model_utility"


@figure("pareto")
def pareto(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table of its points for each group of comparable runs."""
    made: dict[str, Drawing | Sheet] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this figure", also=(DISTANCE,)):
        shown, protocols, left = _select.split(group.points)
        if shown.empty:
            continue
        notes = [*group.notes, *left]
        with _style.style():
            made[group.name] = _draw(group, shown, protocols, notes)
        made[f"{group.name}-points"] = _sheet(group, shown, notes)
    if not made:
        raise UsageError(f"there are only references. {_select.advice()}")
    return made


def _draw(group: Group, points: pd.DataFrame, protocols: Sequence[str], notes: Sequence[str]) -> Drawing:
    import pandas as pd

    references, floor = group.references, group.floor(DISTANCE)
    everything = pd.concat([points, references]) if len(references) else points
    notes = [*_reading(group, points, everything), *notes]
    drawing = _style.figure(_style.panels_width(len(protocols)), 5.4, f"Forgetting against utility: {group.title}", notes)
    panels = drawing.subplots(2, len(protocols), sharex=True, sharey="row", squeeze=False, height_ratios=(1, 1))
    label = "forget quality: KS p-value,\nlog scale  (↑ better)"
    lowest = _style.log_axis(panels[0, 0], [*everything[QUALITY].dropna()], label)
    for (top, bottom), protocol in zip(panels.T, protocols, strict=True):
        of_protocol = points[points["preset"] == protocol]
        for axes, metric, edge in ((top, QUALITY, lowest), (bottom, DISTANCE, None)):
            if metric in points:
                draw_trajectories(axes, of_protocol, references, UTILITY, metric, edge)
                _style.draw_references(axes, references.to_dict("records"), UTILITY, metric, edge)
        top.set_title(_select.heading(protocol))
        _style.significance(top, label=protocol == protocols[-1])
        if floor is not None:
            bottom.axhspan(0, floor, color="#2ca02c", alpha=0.13, zorder=0, linewidth=0)
    ends = [everything[c].dropna() for c in (UTILITY, f"{UTILITY}_low", f"{UTILITY}_high") if c in everything]
    stretched = _style.score_axis(panels[0, 0], [*pd.concat(ends)])
    for axes in panels[1]:
        axes.set_xlabel("model utility  (→ better)" + (",\naxis stretched to the right" if stretched else ""))
    _distances(panels[1, 0], everything, floor)
    legend(drawing, points, references)
    return drawing


def _distances(axes: Axes, points: pd.DataFrame, floor: float | None) -> None:
    """The axis of the KS distance and the name of the noise floor on it."""
    furthest = max(points[DISTANCE].max() if DISTANCE in points else 1.0, 0.05)
    axes.set_ylim(1.06 * furthest, -0.07 * furthest)  # upside down: up is better, as above
    axes.set_ylabel("KS distance D,\naxis reversed  (↑ better)")
    if floor is not None:
        text = f"D ≤ {number(floor)}: ties (noise floor)"
        axes.annotate(text, (0.02, 0), xycoords=("axes fraction", "data"), va="top", fontsize=7, color="#1b6e1b", zorder=7)


def _reading(group: Group, points: pd.DataFrame, everything: pd.DataFrame) -> list[str]:
    seeds = points.groupby(["method", "preset"])["seed"].nunique().max()
    several = f"Several seeds (up to {seeds}): hollow markers are their {LAST.name}s, the large one is the {MEDIAN}."
    return [
        "Line: a run's measured points in order, dotted from the untouched model to the first. "
        f"Large marker: its {LAST.name}; bar: 95 % interval of utility (bootstrap over authors). "
        + (several if seeds > 1 else "One seed each."),
        f"References: {group.named_references}. Forget quality compares with the "
        f"first retrained model on n = {group.n(QUALITY)} forget questions; no interval (resampled p-values are biased). "
        f"Utility: n = {group.n(UTILITY)} questions.",
        *([] if group.floor(DISTANCE) is not None else ["No noise floor is drawn: it takes two retrained models."]),
        *([_style.BELOW] if (everything[QUALITY] < 10.0**-_style.DECADES).any() else []),
        *_select.same_settings(points),
    ]


def _sheet(group: Group, points: pd.DataFrame, notes: Sequence[str]) -> Sheet:
    """The drawn points, and which of them each rule takes."""
    import pandas as pd

    chosen = {rule.name: {*map(tuple, rule.pick(points)[["folder", "index"]].to_numpy())} for rule in (LAST, BEST)}
    rows = []
    for point in points.sort_values(["method", "preset", "seed", "folder", "index"]).to_dict("records"):
        rules = [name for name, places in chosen.items() if (point["folder"], point["index"]) in places]
        keys = {key: point[key] for key in ("method", "preset", "seed", "run")}
        keys |= {"step": int(point["step"]), "rule": " and ".join(rules), "seconds": point["seconds"]}
        rows.append({**keys, **_numbers(point)})
    for point in group.references.to_dict("records"):
        rows.append({"method": point["arm"], "preset": REFERENCE, "rule": "", **_numbers(point)})
    numbers = pd.DataFrame(rows)
    numbers["step"] = numbers["step"].astype("Int64")
    numbers["seed"] = numbers["seed"].astype("Int64")
    shown = pd.DataFrame(
        {
            "method": numbers["method"],
            "preset": numbers["preset"],
            "seed": numbers["seed"].astype(str).replace("<NA>", "–"),
            "step": numbers["step"].astype(str).replace("<NA>", "–"),
            "forget quality ↑": numbers[QUALITY].map(p_value),
            "KS D ↓": numbers[DISTANCE].map(number),
            "utility ↑": numbers[UTILITY].map(number),
            "rule": numbers["rule"],
        }
    )
    rules = [f"{rule.name}: {rule.about}" for rule in (LAST, BEST)]
    return Sheet(numbers, shown, f"Every measured point: {group.title}", [*rules, *notes])


def _numbers(point: Mapping[str, Any]) -> dict[str, Any]:
    kept = [QUALITY, f"{QUALITY}_across_low", f"{QUALITY}_across_high", DISTANCE, f"{DISTANCE}_floor"]
    return {name: point.get(name) for name in (*kept, UTILITY, f"{UTILITY}_low", f"{UTILITY}_high")}
