"""What a number among the settings changes, adapters' rank above all: forgetting and what is kept (LoKU, figures 3 and 5).

Every line is one method with all its other settings the same; what lines differ by stands beside them. The number is the one
that `--by` names, else `rank` where it varies, else the only one that varies. LoKU (arXiv:2408.06621) has ranks 4 to 32: on
TDEC where the texts are first forgotten, on ToFU at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.core.config import written
from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.formats import known
from plots import _select, _style
from plots._reached import REACHED, STEP, Marked, label, levels, marked, spread, wide_axis
from plots._select import lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

USUAL = "rank"
AT, LINE = "at", "line"
"""Columns: the number, and the method with its other settings."""
MOST = 8
"""Lines of one drawing."""


@figure("ranks")
def ranks(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table for each group of comparable runs in which the number varies."""
    made: dict[str, Drawing | Sheet] = {}
    varying: set[str] = set()
    for compared in marked(runs, "this figure", _select.advice):
        points = compared.speaking
        numbers = _numbers(points)
        varying |= set(numbers)
        by = options.by or (USUAL if USUAL in numbers else numbers[0] if len(numbers) == 1 else "")
        if by not in numbers:
            continue
        lines = _lines(points, by)
        name = f"{compared.group.name}-{by}"
        notes = _reading(compared, lines, by)
        with _style.style():
            made[name] = _draw(compared, lines, by, notes)
        made[f"{name}-points"] = _sheet(compared, lines, by, notes)
    if made:
        return made
    if len(varying) > 1 and not options.by:
        raise UsageError(f"say which number is compared with --by. In these runs vary: {', '.join(sorted(varying))}.")
    raise UsageError(
        f"no method was run with several values of '{options.by or USUAL}' and all else the same. Make such runs: "
        f"harness sweep --method loku --bench {runs['bench'].iloc[0]} --grid rank=4,8,16,32"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rest(settings: Mapping[str, Any], but: str) -> str:
    """All other settings, as one text."""
    return repr(sorted((name, written(value)) for name, value in settings.items() if name != but))


def _numbers(points: pd.DataFrame) -> list[str]:
    """Settings that are numbers and have several values among runs of a method with all else the same."""
    lines_by_name: dict[str, dict[tuple[str, str], set[float]]] = {}
    for method, settings in zip(points["method"], _select.settings_of(points), strict=True):
        for name, value in settings.items():
            if _is_number(value):
                rest = _rest(settings, name)
                lines_by_name.setdefault(name, {}).setdefault((method, rest), set()).add(value)
    return sorted(name for name, lines in lines_by_name.items() if any(len(values) > 1 for values in lines.values()))


def _lines(points: pd.DataFrame, by: str) -> pd.DataFrame:
    """The points of lines with several values, with `at` and `line`, a name that says what sets it apart."""
    every = _select.settings_of(points)
    rests = [_rest(settings, by) for settings in every]
    points = points.assign(**{AT: [settings.get(by) for settings in every]}, rest=rests)
    points = points[[_is_number(value) for value in points[AT]]]
    several = points.groupby(["method", "rest"])[AT].transform("nunique") > 1
    points = points[several].reset_index(drop=True)
    return points.assign(**{LINE: _named(points, by)})


def _named(points: pd.DataFrame, by: str) -> list[str]:
    """Each point's method, with the settings that differ between the lines of that method."""
    every = _select.settings_of(points)
    differing: dict[str, list[str]] = {}
    for method in set(points["method"]):
        of = [settings for name, settings in zip(points["method"], every, strict=True) if name == method]
        keys = dict.fromkeys(key for settings in of for key in settings if key != by)
        differing[method] = [key for key in keys if len({written(settings.get(key)) for settings in of}) > 1]
    names = []
    for method, settings in zip(points["method"], every, strict=True):
        names.append("\n".join([method, *(f"{key}={written(settings.get(key))}" for key in sorted(differing[method]))]))
    return names


def _draw(compared: Marked, points: pd.DataFrame, by: str, notes: Sequence[str]) -> Drawing:
    steps = [STEP] * bool(compared.mark and points[STEP].nunique() > 1)
    forgetting = compared.forgetting if compared.mark else compared.forgetting[:1]
    metrics = [*steps, *(metric for metric in forgetting if metric in points), *compared.kept]
    columns = len(metrics)
    title = f"{', '.join(sorted(set(points['method'])))} by {by}: {compared.group.title}"
    drawing = _style.figure(_style.panels_width(columns) + 0.6 + 1.6 * max(0, columns - 2), 3.2, title, notes)
    panels = drawing.subplots(1, columns, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for number_of, (_, of) in enumerate(points.groupby(LINE, sort=True)):
            _line(axes, of, metric, number_of)
        if metric != STEP:
            wide_axis(axes, points[metric])
            levels(axes, compared.group, metric, named=True)
        axes.set_ylabel(f"steps until {compared.mark}\n(↓ better)" if metric == STEP else label(metric, points))
        axes.set_xlabel(f"{by}, log scale" if points[AT].min() > 0 else by)
        _axis(axes, sorted(set(points[AT])))
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
    return drawing


def _axis(axes: Axes, values: Sequence[float]) -> None:
    """The values themselves as ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if values[0] > 0:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(axes: Axes, points: pd.DataFrame, metric: str, number_of: int) -> None:
    """Medians joined in the number's order, a bar from the lowest to the highest seed; hollow where a seed never got there."""
    colour = _style.CATEGORIES[number_of % len(_style.CATEGORIES)]
    marker = _style.MARKERS[number_of % len(_style.MARKERS)]
    across, up, full = [], [], []
    for value, of in points.groupby(AT, sort=True):
        middle = lower_median(of, metric)
        if middle is None or not known(middle[metric]):
            continue
        across.append(float(value))
        up.append(float(middle[metric]))
        full.append(bool(of[REACHED].all()))
        if of["seed"].nunique() > 1:
            ends = [[up[-1] - of[metric].min()], [of[metric].max() - up[-1]]]
            axes.errorbar(across[-1], up[-1], yerr=ends, color=colour, linewidth=0.8, capsize=2, zorder=3)
    axes.plot(across, up, color=colour, linewidth=1.1, zorder=4)
    for x, y, filled in zip(across, up, full, strict=True):
        _style.mark(axes, [x], [y], colour, marker, 34, not filled, zorder=5)
    axes.plot([], [], color=colour, marker=marker, markeredgecolor="white", label=points[LINE].iloc[0])


def _reading(compared: Marked, points: pd.DataFrame, by: str) -> list[str]:
    seeds = points.groupby([LINE, AT])["seed"].nunique()
    count = f"n = {seeds.max()}" if seeds.min() == seeds.max() else f"n = {seeds.min()} to {seeds.max()}"
    bars = f"{count} seeds: markers are their {_select.MEDIAN}, bars go from the lowest to the highest."
    text = bars if seeds.max() > 1 else "One seed each."
    lines = f"Lines join runs of one method that differ in {by} alone. {text}"
    return [lines, compared.rule, f"References: {compared.group.named_references}.", *compared.group.notes]


def _sheet(compared: Marked, points: pd.DataFrame, by: str, notes: Sequence[str]) -> Sheet:
    """The drawn points, and the medians with the lowest and the highest."""
    import pandas as pd

    metrics = [metric for metric in (*compared.forgetting, *compared.kept) if metric in points]
    ordered = points.assign(**{LINE: points[LINE].str.replace("\n", ", ")}).sort_values([LINE, AT, "seed", "folder"])
    columns = ["method", LINE, AT, "seed", "run", REACHED, STEP, "seconds", *metrics]
    numbers = ordered[columns].rename(columns={AT: by}).reset_index(drop=True)
    rows = []
    for (line, value), of in ordered.groupby([LINE, AT], sort=True):
        met = {compared.mark: f"{int(of[REACHED].sum())} of {len(of)}"} if compared.mark else {}
        cells = {name: spread(of, name) for name in (STEP, "seconds", *metrics)}
        rows.append({"runs": line, by: f"{value:g}", **met, **cells})
    return Sheet(numbers, pd.DataFrame(rows), f"By {by}: {compared.group.title}", notes)
