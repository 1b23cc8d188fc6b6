"""What one setting of a method changes: forget quality against retain KL, against utility, against time (figure 3).

Runs of one method that differ in the chosen setting (`--by`); where one further number was varied with it (a step size, a KL
budget), the runs of one value are joined in its order. Where no two values were run with the same other settings, the figure
says so above and beside each value: what they differ by is then not due to the chosen setting alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.config import field_names, written
from harness.core.errors import UsageError, unknown
from harness.core.figure import FigureOptions, Sheet, figure
from harness.core.method import METHODS
from harness.reading.formats import number, p_value
from plots import _select, _style
from plots._select import LAST, MEDIAN, Group, lower_median, without_references

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

QUALITY, DISTANCE, UTILITY, KL = "forget_quality", "forget_quality_d", "model_utility", "retain_kl"
PANELS = (
    (KL, "KL to the untouched model\non retain rows, nats per\ntoken  (← better)"),
    (UTILITY, "model utility  (→ better)"),
    ("seconds", "unlearning time with\nnothing cached, seconds\n(← better)"),
)
SHOWN = {
    "forget quality ↑": QUALITY,
    "KS D ↓": DISTANCE,
    "utility ↑": UTILITY,
    "retain KL ↓, nats per token": KL,
    "seconds ↓": "seconds",
}
ARROW = "An arrow: the value lies below the axis."
FEWEST, MOST = 2, 12
"""Values of a setting that one figure can show."""


@figure("ablation")
def ablation(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table for each method and group of comparable runs in which the setting has several values."""
    made: dict[str, Drawing | Sheet] = {}
    varying: dict[str, set[str]] = {}
    for group in _select.groups(runs, (QUALITY, UTILITY), "this figure", also=(DISTANCE, KL)):
        ends = without_references(LAST.pick(group.points))
        for method, of_method in ends.groupby("method", sort=True):
            varied = _varied(of_method)
            varying.setdefault(str(method), set()).update(varied)
            by = options.by or (varied[0] if len(varied) == 1 else "")
            if by not in varied:
                continue
            others = [name for name in varied if name != by]
            table = _settled(of_method, by, others)
            if not FEWEST <= table["value"].nunique() <= MOST:
                continue
            compared = Compared(group, str(method), by, others, table)
            name = f"{group.name}-{method}-{by}"
            notes = _reading(compared)
            with _style.style():
                made[name] = _draw(compared, notes)
            made[f"{name}-points"] = _sheet(compared, notes)
    if made:
        return made
    raise _nothing(runs, varying, options)


def _nothing(runs: pd.DataFrame, varying: Mapping[str, set[str]], options: FigureOptions) -> UsageError:
    """Why nothing can be compared, and the command that makes such runs."""
    varied = "; ".join(f"{method}: {', '.join(sorted(names))}" for method, names in sorted(varying.items()) if names)
    if varied and not options.by:
        return UsageError(f"say which setting is compared with --by. In these runs vary: {varied}.")
    settings = {name for each in _select.settings_of(runs) for name in each}
    settings |= {name for method in METHODS.all().values() for name in field_names(method.config)}
    if options.by and options.by not in settings:
        return unknown("setting of a method", options.by, settings)
    values = f"several values of '{options.by}'" if options.by else "several settings"
    example = "estimator=kfac,ekfac,diagonal,identity" if options.by in ("", "estimator") else f"{options.by}=A,B"
    return UsageError(
        f"no method was run with {values}{f' (what varies: {varied})' if varied else ''}. Make such runs: harness sweep "
        f"--method kfade --bench {runs['bench'].iloc[0]} --model {runs['model'].iloc[0]} --grid {example}"
    )


@dataclass(frozen=True)
class Compared:
    """Runs of one method in one group that differ in the chosen setting."""

    group: Group
    """What they share."""
    method: str
    """Whose they are."""
    by: str
    """The chosen setting."""
    others: Sequence[str]
    """Further settings that vary."""
    table: pd.DataFrame
    """See `_settled`."""

    @property
    def alone(self) -> bool:
        """Whether at least two values were run with the same other settings."""
        return bool(self.table.groupby("inner")["value"].nunique().max() > 1)

    @property
    def title(self) -> str:
        """Above the drawing and the table."""
        beside = "" if self.alone else f" and {' and '.join(self.others)}, which differ together"
        return f"{self.method} by {self.by}{beside}: {self.group.title}"

    def label(self, value: str) -> str:
        """A value of the setting, with those of the others where it was never run with the same ones as another value."""
        if self.alone:
            return value
        of_value = self.table[self.table["value"] == value]
        beside = [f"{name} {' or '.join(dict.fromkeys(of_value[f'set_{name}']))}" for name in self.others]
        return "\n".join([value, *(f"({text})" for text in beside)])


def _varied(points: pd.DataFrame) -> list[str]:
    """The settings that differ between these runs."""
    every = _select.settings_of(points)
    names = sorted({name for settings in every for name in settings})
    return [name for name in names if len({written(settings.get(name)) for settings in every}) > 1]


def _settled(points: pd.DataFrame, by: str, others: Sequence[str]) -> pd.DataFrame:
    """The points with the setting's value, the other varied settings, and what is drawn, in a fixed order."""
    every = _select.settings_of(points)
    table = points.assign(value=[written(s.get(by)) for s in every])
    if KL not in table:
        table[KL] = float("nan")
    for name in others:
        table[f"set_{name}"] = [written(s.get(name)) for s in every]
    rank = {written(value): _order(value) for value in (s.get(by) for s in every)}
    table = table.assign(rank=table["value"].map(lambda v: rank[v]))
    order = table.assign(inner=[tuple(_order(s.get(name)) for name in others) for s in every])
    return order.sort_values(["rank", "inner", "seed", "folder"], ignore_index=True)


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by name."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if is_number else (1, 0.0, written(value))


def _colours(values: Sequence[str], numeric: bool) -> list[str]:
    """Shades in order for numbers, distinct hues for names."""
    if not numeric and len(values) <= len(_style.CATEGORIES):
        return list(_style.CATEGORIES[: len(values)])
    import seaborn as sns

    return [str(colour) for colour in sns.color_palette("flare" if numeric else "husl", len(values)).as_hex()]


def _draw(compared: Compared, notes: Sequence[str]) -> Drawing:
    table = compared.table
    drawing = _style.figure(_style.WIDTH + 1, 3.4, compared.title, notes)
    panels = drawing.subplots(1, len(PANELS), sharey=True)
    values = list(dict.fromkeys(table["value"]))
    colours = _colours(values, numeric=all(rank[0] == 0 for rank in table["rank"]))
    references = compared.group.references.to_dict("records")
    label = "forget quality: KS p-value,\nlog scale  (↑ better)"
    lowest = _style.log_axis(panels[0], [*table[QUALITY].dropna()], label)
    for axes, (column, title) in zip(panels, PANELS, strict=True):
        for value, colour, marker in zip(values, colours, _style.MARKERS * 2, strict=False):
            line = _line(axes, table[table["value"] == value], column, compared.others, lowest, colour)
            if line is not None:
                line.set(marker=marker, label=compared.label(value), markersize=6, markeredgecolor="white")
        axes.set_xlabel(title)
        _style.significance(axes, label=axes is panels[-1])
        if column == UTILITY:
            _style.draw_references(axes, references, UTILITY, QUALITY, lowest)
        measured = table[column].dropna()
        if measured.empty:
            axes.text(0.5, 0.5, "not measured\nin these runs", transform=axes.transAxes, ha="center", color="#555555")
            axes.set_xticks([])
        elif column != UTILITY and measured.min() > 0 and measured.max() / measured.min() > 10:
            _style.log_ticks(axes, [*measured])
    handles, labels = panels[1].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, title=compared.by)
    return drawing


def _line(axes: Axes, points: pd.DataFrame, column: str, others: Sequence[str], lowest: float, colour: str) -> Line2D | None:
    """The runs of one value; where one further number varies they are joined in its order, at the median over seeds."""
    points = points[points[column].notna() & points[QUALITY].notna()]
    if points.empty:
        return None
    if points["seed"].nunique() > 1:
        _style.mark(axes, points[column], _style.raised(points[QUALITY], lowest), colour, "o", 12, hollow=True, zorder=3)
    across, up = [], []
    for _, same in points.groupby("inner", sort=True):
        x, y = lower_median(same, column), lower_median(same, QUALITY)
        if x is not None and y is not None:
            across.append(float(x[column]))
            up.append(_style.raised([y[QUALITY]], lowest)[0])
            if column == UTILITY:
                _style.interval(axes, across[-1], up[-1], x[f"{UTILITY}_low"], x[f"{UTILITY}_high"], colour)
    joined = column != "seconds" and len(others) == 1 and all(inner[0][0] == 0 for inner in points["inner"])
    return axes.plot(across, up, color=colour, linewidth=1.1 if joined else 0, zorder=5)[0]


def _reading(compared: Compared) -> list[str]:
    table, by, others, group = compared.table, compared.by, compared.others, compared.group
    seeds = table["seed"].nunique()
    text = f"Each marker is a run at its {LAST.name}; bars: 95 % interval of utility (bootstrap over authors). "
    text += f"{seeds} seeds: hollow markers are runs, filled ones the {MEDIAN}." if seeds > 1 else "One seed."
    notes = [text]
    if not compared.alone:
        notes.append(
            f"No two values of {by} were run with the same {' and '.join(others)}: what they differ by is not due to {by} "
            "alone; read them at the same KL, or run a sweep that varies one setting."
        )
    elif len(others) == 1:
        values = list(dict.fromkeys(value for value in table.sort_values("inner")[f"set_{others[0]}"]))
        notes.append(f"{by} is compared; lines join runs in the order of {others[0]} = {', '.join(values)}.")
    elif others:
        notes.append(f"Besides {by} vary {', '.join(others)}: differences are not due to {by} alone, and nothing is joined.")
    notes.append(
        f"Forget quality: n = {group.n(QUALITY)} questions, no interval. Utility: n = {group.n(UTILITY)} questions. "
        f"References: {group.named_references}."
    )
    lowest = min([*table[QUALITY].dropna(), *group.references.get(QUALITY, table[QUALITY]).dropna()], default=1.0)
    return [*notes, *([ARROW] if lowest < table[QUALITY].min() or lowest < 10.0**-_style.DECADES else []), *group.notes]


def _sheet(compared: Compared, notes: Sequence[str]) -> Sheet:
    import pandas as pd

    table, by, others = compared.table, compared.by, compared.others
    columns: dict[str, Any] = {"method": table["method"], by: table["value"]}
    columns |= {name: table[f"set_{name}"] for name in others}
    columns |= {"preset": table["preset"], "seed": table["seed"], "run": table["run"], "step": table["step"].astype(int)}
    metrics = (QUALITY, DISTANCE, UTILITY, f"{UTILITY}_low", f"{UTILITY}_high", KL, "seconds")
    numbers = pd.DataFrame(columns | {name: table.get(name) for name in metrics})
    shown = numbers[[by, *others]].astype(str).assign(seed=numbers["seed"].astype(str))
    for heading, name in SHOWN.items():
        shown[heading] = numbers[name].map(p_value if name == QUALITY else number)
    return Sheet(numbers, shown, compared.title, notes)
