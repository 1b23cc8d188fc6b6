"""Runs' trajectories through two metrics, from the first measured point to the last: what trade-off figures draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.reading.formats import known
from harness.reading.looks import Look, look
from plots import _select, _style
from plots._select import LAST, REFERENCES, lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


def draw_trajectories(
    axes: Axes, points: pd.DataFrame, references: pd.DataFrame, across: str, up: str, lowest: float | None = None
) -> None:
    """Each run's trajectory with small markers, its end large; with several seeds their ends hollow and the median large.

    Args:
        axes: where.
        points: from `Group.points`.
        references: from `Group.references`: a dotted line goes from the untouched model to a trajectory's first point.
        across: the metric of the horizontal axis.
        up: the metric of the vertical axis.
        lowest: the lowest value of a logarithmic vertical axis: lines go on below it, ends stand at it.
    """
    untouched = [point for point in references.to_dict("records") if point["arm"] == "untouched" and known(point.get(up))]
    start = (untouched[0][across], untouched[0][up]) if untouched else None
    for method, of_method in points.dropna(subset=[up, across]).groupby("method", sort=True):
        drawn = look(str(method))
        several = of_method["folder"].nunique() > 1
        for _, run in of_method.sort_values(["folder", "index"]).groupby("folder", sort=True):
            _run(axes, [*run[across]], _positive(run[up], lowest), start, drawn, several)
        ends = LAST.pick(points[points["method"] == method]).dropna(subset=[up, across])
        if several:
            raised = _style.raised(ends[up], lowest)
            _style.mark(axes, ends[across], raised, drawn.colour, drawn.marker, 13, hollow=True, zorder=4)
        along, above = lower_median(ends, across), lower_median(ends, up)
        if along is None or above is None:
            continue
        x, y = along[across], _style.raised([above[up]], lowest)[0]
        _style.interval(axes, x, y, along[f"{across}_low"], along[f"{across}_high"], drawn.colour)
        _style.mark(axes, x, y, drawn.colour, drawn.marker, 42, zorder=5)
        if lowest is not None and above[up] < lowest:
            _style.below(axes, x, y)


def _positive(values: pd.Series, lowest: float | None) -> list[float]:
    """Values that a logarithmic axis, where there is one, can draw a line to."""
    return _style.raised(values, None if lowest is None else _style.ZERO)


def _run(axes: Axes, xs: list[float], ys: list[float], start: tuple[float, float] | None, drawn: Look, several: bool) -> None:
    """One run's line, its small markers, and where it came from."""
    axes.plot(xs, ys, color=drawn.colour, linewidth=0.8, alpha=0.35 if several else 0.75, zorder=2)
    axes.scatter(xs, ys, s=6, marker=drawn.marker, color=drawn.colour, alpha=0.5, linewidth=0, zorder=3)
    if start:
        came = [start[0], xs[0]], [max(start[1], _style.ZERO), ys[0]]
        axes.plot(*came, color=drawn.colour, linewidth=0.6, alpha=0.3 if several else 0.5, linestyle=(0, (1, 2)), zorder=1)


def legend(drawing: Drawing, points: pd.DataFrame, references: pd.DataFrame) -> None:
    """Names of the methods and references beside the panels."""
    from matplotlib.lines import Line2D

    handles = []
    for name in _select.in_order([*points["method"], *references.get("arm", [])]):
        drawn = look(name)
        handle = Line2D([], [], color=drawn.colour, marker=drawn.marker, label=name)
        handle.set_linewidth(0 if name in REFERENCES else 0.9)
        handle.set_markersize(10 if name == "retrained" else 6)
        handle.set_markerfacecolor("white" if name == "untouched" else drawn.colour)
        handle.set_markeredgecolor(drawn.colour if name == "untouched" or not _style.filled(drawn.marker) else "white")
        handles.append(handle)
    drawing.legend(handles=handles, loc="outside right upper", frameon=False)
