"""What one setting of a method changes: forget quality against retain KL, against utility, against time (figure 3).

Runs of one method that differ in the chosen setting (`--by`); where one further number was varied with it (a step size, a KL
budget), the runs of one value are joined in its order. Runs that never measured `retain_kl` have an empty panel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.interfaces import FigureOptions, Sheet, figure
from plots import _select, _style
from plots._select import ARMS, LAST, MEDIAN, Group, lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

QUALITY, DISTANCE, UTILITY, KL = "forget_quality", "forget_quality_d", "model_utility", "retain_kl"
PANELS = (
    (KL, "KL to the untouched model on retain rows,\nnats per token  (← better)"),
    (UTILITY, "model utility  (→ better)"),
    ("seconds", "unlearning time with nothing cached,\nseconds  (← better)"),
)
SHOWN = {
    "forget quality ↑": QUALITY,
    "KS D ↓": DISTANCE,
    "utility ↑": UTILITY,
    "retain KL ↓, nats per token": KL,
    "seconds ↓": "seconds",
}
FEWEST, MOST = 2, 12
"""Values of a setting that one figure can show."""


@figure("ablation")
def ablation(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table for each method and group of comparable runs in which the setting has several values."""
    made: dict[str, Drawing | Sheet] = {}
    found: dict[str, set[str]] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this figure", also=(DISTANCE, KL)):
        ends = LAST.pick(group.points)
        for method, of_method in ends[~ends["method"].isin(ARMS)].groupby("method", sort=True):
            varied = _varied(of_method)
            found.setdefault(str(method), set()).update(varied)
            by = options.by or (varied[0] if len(varied) == 1 else "")
            if by not in varied:
                continue
            others = [name for name in varied if name != by]
            table = _settled(of_method, by, others)
            if not FEWEST <= table["value"].nunique() <= MOST:
                continue
            name = f"{group.name}-{method}-{by}"
            notes = _reading(group, table, by, others)
            with _style.style():
                made[name] = _draw(group, str(method), table, by, others, notes)
            made[f"{name}-points"] = _sheet(group, str(method), table, by, others, notes)
    if made:
        return made
    varying = "; ".join(f"{method}: {', '.join(sorted(names))}" for method, names in sorted(found.items()) if names)
    if varying and not options.by:
        raise UsageError(f"say which setting is compared with --by. In these runs vary: {varying}.")
    values = f"several values of '{options.by}'" if options.by else "several settings"
    example = "estimator=kfac,ekfac,diagonal,identity" if options.by in ("", "estimator") else f"{options.by}=A,B"
    raise UsageError(
        f"no method was run with {values}{f' (what varies: {varying})' if varying else ''}. Make such runs: harness sweep "
        f"--method kfade --bench {runs['bench'].iloc[0]} --model {runs['model'].iloc[0]} --grid {example}"
    )


def _text(value: Any) -> str:
    """A setting's value for readers."""
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)


def _varied(points: pd.DataFrame) -> list[str]:
    """The settings that differ between these runs."""
    told = _select.settings_of(points)
    names = sorted({name for settings in told for name in settings})
    return [name for name in names if len({_text(settings.get(name)) for settings in told}) > 1]


def _settled(points: pd.DataFrame, by: str, others: Sequence[str]) -> pd.DataFrame:
    """The points with the setting's value, the other varied settings, and what is drawn, in a fixed order."""
    told = _select.settings_of(points)
    table = points.assign(value=[_text(s.get(by)) for s in told])
    if KL not in table:
        table[KL] = float("nan")
    for name in others:
        table[f"set_{name}"] = [_text(s.get(name)) for s in told]
    rank = {_text(value): _order(value) for value in (s.get(by) for s in told)}
    table = table.assign(rank=table["value"].map(lambda v: rank[v]))
    order = table.assign(inner=[tuple(_order(s.get(name)) for name in others) for s in told])
    return order.sort_values(["rank", "inner", "seed", "folder"], ignore_index=True)


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by name."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, _text(value))


def _colours(values: Sequence[str], numeric: bool) -> list[str]:
    """Shades in order for numbers, distinct hues for names."""
    if not numeric and len(values) <= len(_style.CATEGORIES):
        return list(_style.CATEGORIES[: len(values)])
    import seaborn as sns

    return [str(colour) for colour in sns.color_palette("flare" if numeric else "husl", len(values)).as_hex()]


def _draw(group: Group, method: str, table: pd.DataFrame, by: str, others: Sequence[str], notes: Sequence[str]) -> Drawing:
    drawing = _style.figure(12.4, 4.7 + 0.12 * len(notes))
    panels = drawing.subplots(1, len(PANELS), sharey=True)
    values = list(dict.fromkeys(table["value"]))
    colours = _colours(values, numeric=all(rank[0] == 0 for rank in table["rank"]))
    arms = group.arms.to_dict("records")
    lowest = _style.log_axis(panels[0], [*table[QUALITY].dropna()], "forget quality: KS p-value, log scale  (↑ better)")
    for axes, (column, label) in zip(panels, PANELS, strict=True):
        for value, colour, marker in zip(values, colours, _style.MARKERS * 2, strict=False):
            _line(axes, table[table["value"] == value], column, others, lowest, colour, marker, value)
        axes.set_xlabel(label)
        _style.significance(axes, label=axes is panels[0])
        if column == UTILITY:
            _style.references(axes, arms, UTILITY, QUALITY, lowest)
        there = table[column].dropna()
        if there.empty:
            axes.text(0.5, 0.5, "not measured in these runs", transform=axes.transAxes, ha="center", color="#555555")
            axes.set_xticks([])
        elif column != UTILITY and there.min() > 0 and there.max() / there.min() > 10:
            _style.log_ticks(axes, [*there])
    handles, labels = panels[1].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, title=by)
    drawing.suptitle(f"{method} by {by}: {group.title}", fontsize=11)
    _style.caption(drawing, notes, width=175)
    return drawing


def _line(
    axes: Axes, points: pd.DataFrame, column: str, others: Sequence[str], lowest: float, colour: str, marker: str, label: str
) -> None:
    """The runs of one value; where one further number varies they are joined in its order, at the median over seeds."""
    points = points[points[column].notna() & points[QUALITY].notna()]
    if points.empty:
        return
    if points["seed"].nunique() > 1:
        _style.mark(axes, points[column], _style.raised(points[QUALITY], lowest), colour, marker, 16, hollow=True, zorder=3)
    across, up = [], []
    for _, same in points.groupby("inner", sort=True):
        x, y = lower_median(same, column), lower_median(same, QUALITY)
        if x is not None and y is not None:
            across.append(float(x[column]))
            up.append(_style.raised([y[QUALITY]], lowest)[0])
            if column == UTILITY:
                _style.interval(axes, across[-1], up[-1], x[f"{UTILITY}_low"], x[f"{UTILITY}_high"], colour)
    joined = column != "seconds" and len(others) == 1 and all(inner[0][0] == 0 for inner in points["inner"])
    line = axes.plot(across, up, color=colour, marker=marker, linewidth=1.1 if joined else 0, label=label, zorder=5)[0]
    line.set_markersize(6.5)
    line.set_markeredgecolor("white")


def _reading(group: Group, table: pd.DataFrame, by: str, others: Sequence[str]) -> list[str]:
    seeds = table["seed"].nunique()
    told = f"Each marker is a run at its {LAST.name}; bars: 95 % interval of utility (bootstrap over authors). "
    told += f"{seeds} seeds: hollow markers are runs, filled ones the {MEDIAN}." if seeds > 1 else "One seed."
    notes = [told]
    if len(others) == 1:
        values = list(dict.fromkeys(value for value in table.sort_values("inner")[f"set_{others[0]}"]))
        notes.append(f"{by} is compared; lines join runs in the order of {others[0]} = {', '.join(values)}.")
    elif others:
        notes.append(f"Besides {by} vary {', '.join(others)}: differences are not due to {by} alone, and nothing is joined.")
    notes.append(f"Forget quality: n = {group.n(QUALITY)} questions, no interval. Utility: n = {group.n(UTILITY)} questions.")
    return [*notes, *group.notes]


def _sheet(group: Group, method: str, table: pd.DataFrame, by: str, others: Sequence[str], notes: Sequence[str]) -> Sheet:
    import pandas as pd

    told: dict[str, Any] = {"method": table["method"], by: table["value"]}
    told |= {name: table[f"set_{name}"] for name in others}
    told |= {"protocol": table["protocol"], "seed": table["seed"], "run": table["run"], "step": table["step"].astype(int)}
    told |= {name: table.get(name) for name in (QUALITY, DISTANCE, UTILITY, f"{UTILITY}_low", f"{UTILITY}_high", KL, "seconds")}
    numbers = pd.DataFrame(told)
    shown = numbers[[by, *others]].astype(str).assign(seed=numbers["seed"].astype(str))
    for heading, name in SHOWN.items():
        shown[heading] = numbers[name].map(_style.number)
    return Sheet(numbers, shown, f"{method} by {by}: {group.title}", notes)
