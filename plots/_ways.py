"""Runs' ways through two metrics, from the first measured point to the last: what trade-off figures draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plots import _select, _style
from plots._select import ARMS, LAST, lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


def ways(axes: Axes, points: pd.DataFrame, arms: pd.DataFrame, across: str, up: str, lowest: float | None = None) -> None:
    """Each run's way with small markers, its end large; with several seeds their ends hollow and the median large.

    Args:
        axes: where.
        points: from `Group.points`.
        arms: from `Group.arms`: a dotted line goes from the untouched model to a way's first point.
        across: the metric of the horizontal axis.
        up: the metric of the vertical axis.
        lowest: the lowest value of a logarithmic vertical axis.
    """
    start = next((arm for arm in arms.to_dict("records") if arm["arm"] == "untouched" and _style.known(arm.get(up))), None)
    for method, of_method in points.dropna(subset=[up, across]).groupby("method", sort=True):
        look = _style.look(str(method))
        colour, marker = look.colour, look.marker
        several = of_method["folder"].nunique() > 1
        for _, way in of_method.sort_values(["folder", "index"]).groupby("folder", sort=True):
            xs, ys = [*way[across]], _style.raised(way[up], lowest)
            axes.plot(xs, ys, color=colour, linewidth=0.9, alpha=0.3 if several else 0.75, zorder=2)
            axes.scatter(xs, ys, s=9, marker=marker, color=colour, alpha=0.6, linewidth=0, zorder=3)
            if start:
                first = [start[across], xs[0]], [*_style.raised([start[up]], lowest), ys[0]]
                axes.plot(*first, color=colour, linewidth=0.7, alpha=0.3 if several else 0.5, linestyle=(0, (1, 2)), zorder=1)
        ends = LAST.pick(points[points["method"] == method]).dropna(subset=[up, across])
        if several:
            _style.mark(axes, ends[across], _style.raised(ends[up], lowest), colour, marker, 18, hollow=True, zorder=4)
        along, above = lower_median(ends, across), lower_median(ends, up)
        if along is None or above is None:
            continue
        x, y = along[across], _style.raised([above[up]], lowest)[0]
        _style.interval(axes, x, y, along[f"{across}_low"], along[f"{across}_high"], colour)
        _style.mark(axes, x, y, colour, marker, 62, zorder=5)
        if lowest is not None and above[up] < lowest:
            _style.below(axes, x, y, above[up])


def legend(drawing: Drawing, points: pd.DataFrame, arms: pd.DataFrame) -> None:
    """Names of the methods and reference arms beside the panels."""
    from matplotlib.lines import Line2D

    handles = []
    for name in _select.in_order([*points["method"], *arms.get("arm", [])]):
        look, arm = _style.look(name), name in ARMS
        handle = Line2D([], [], color=look.colour, marker=look.marker, label=name, linewidth=0 if arm else 0.9)
        handle.set_markersize(11 if name == "retrained" else 6.5)
        handle.set_markerfacecolor("white" if name == "untouched" else look.colour)
        handle.set_markeredgecolor(look.colour if name == "untouched" else "white")
        handles.append(handle)
    drawing.legend(handles=handles, loc="outside right upper", frameon=False)
