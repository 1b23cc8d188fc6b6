"""What forgetting costs: seconds of unlearning against what was kept, where the texts are first forgotten (LoKU, figure 2).

LoKU (arXiv:2408.06621) draws floating-point operations against a mean over classification sets; here it is the seconds that the
records hold, against what the benchmark's roles name as kept. Where a benchmark has no mark of when enough was forgotten, it is
the last point, and what says how well was forgotten has a panel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.figure import FigureOptions, Sheet, figure
from harness.reading.looks import look
from plots import _select, _style
from plots._reached import REACHED, Marked, label, levels, marked, spread, wide_axis
from plots._select import lower_median

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SECONDS = "seconds of unlearning until there,\nlog scale  (← better)"


@figure("forgetting_cost")
def forgetting_cost(runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
    """One drawing and one table for each group of comparable runs."""
    made: dict[str, Drawing | Sheet] = {}
    for compared in marked(runs, "this figure", _select.advice):
        points, protocols, left = _select.split(compared.speaking)
        if points.empty:
            continue
        metrics = [*(() if compared.mark else compared.forgetting[:1]), *compared.kept]
        notes = [compared.rule, *_reading(compared), *compared.group.notes, *left]
        with _style.style():
            made[compared.group.name] = _draw(compared, points, protocols, metrics, notes)
        made[f"{compared.group.name}-points"] = _sheet(compared, points, notes)
    if not made:
        raise UsageError(f"there are only references. {_select.advice()}")
    return made


def _draw(
    compared: Marked, points: pd.DataFrame, protocols: Sequence[str], metrics: Sequence[str], notes: Sequence[str]
) -> Drawing:
    title = f"What forgetting costs: {compared.group.title}"
    width = _style.panels_width(len(protocols))
    drawing = _style.figure(width, 2.9 * len(metrics), title, notes)
    panels = drawing.subplots(len(metrics), len(protocols), sharey="row", sharex=True, squeeze=False)
    ways = compared.points[compared.points["folder"].isin(points["folder"])]
    for row, metric in zip(panels, metrics, strict=True):
        for axes, protocol in zip(row, protocols, strict=True):
            for method, of_method in points[points["preset"] == protocol].groupby("method", sort=True):
                _ways(axes, ways[ways["folder"].isin(of_method["folder"])], metric, str(method))
                _marks(axes, of_method, metric, str(method))
            levels(axes, compared.group, metric, named=axes is row[-1])
        row[0].set_ylabel(label(metric, points))
        wide_axis(row[0], ways[metric])
    for axes, protocol in zip(panels[0], protocols, strict=True):
        axes.set_title(_select.heading(protocol))
    for axes in panels[-1]:
        axes.set_xlabel(SECONDS)
    seconds = points["seconds"][points["seconds"] > 0]
    if len(seconds):
        _style.log_ticks(panels[0, 0], [*seconds])
    _legend(drawing, compared, points)
    return drawing


def _ways(axes: Axes, points: pd.DataFrame, metric: str, method: str) -> None:
    """Thin lines through all points of each run."""
    for _, run in points[points[metric].notna()].groupby("folder", sort=True):
        axes.plot(run["seconds"], run[metric], color=look(method).colour, linewidth=0.7, alpha=0.45, zorder=2)


def _marks(axes: Axes, points: pd.DataFrame, metric: str, method: str) -> None:
    """Small markers for runs, a large one for their median; hollow where enough was never forgotten."""
    drawn, measured = look(method), points[points[metric].notna()]
    for reached, of in measured.groupby(REACHED):
        if len(measured) > 1:
            _style.mark(axes, of["seconds"], of[metric], drawn.colour, drawn.marker, 12, hollow=not reached, zorder=4)
    along, up = lower_median(measured, "seconds"), lower_median(measured, metric)
    if along is not None and up is not None:
        hollow = not measured[REACHED].all()
        _style.mark(axes, along["seconds"], up[metric], drawn.colour, drawn.marker, 46, hollow, zorder=5)


def _legend(drawing: Drawing, compared: Marked, points: pd.DataFrame) -> None:
    """Names, and of how many runs enough was forgotten."""
    from matplotlib.lines import Line2D

    handles = []
    for method, of in points.groupby("method", sort=True):
        drawn, met = look(str(method)), int(of[REACHED].sum())
        name = f"{method} ({met} of {len(of)})" if compared.mark else str(method)
        edge = "white" if _style.filled(drawn.marker) else drawn.colour
        handles.append(
            Line2D([], [], color=drawn.colour, marker=drawn.marker, label=name, linewidth=0, markersize=6, markeredgecolor=edge)
        )
    title = f"{compared.mark} in so\nmany of the runs" if compared.mark else None
    drawing.legend(handles=handles, loc="outside right upper", frameon=False, title=title)


def _reading(compared: Marked) -> list[str]:
    seconds = "Seconds are those of the machine that made the records, measuring left out."
    references = f"References: {compared.group.named_references}."
    return [f"{compared.n()} Thin lines: all measured points of each run. {references} {seconds}"]


def _sheet(compared: Marked, points: pd.DataFrame, notes: Sequence[str]) -> Sheet:
    """The drawn points, and each method's median over seeds with the lowest and the highest."""
    metrics = [metric for metric in (*compared.forgetting, *compared.kept) if metric in points]
    numbers = points.sort_values(["method", "preset", "seed", "folder"])
    numbers = numbers[["method", "preset", "seed", "run", REACHED, "step", "seconds", *metrics]].reset_index(drop=True)
    rows = []
    for (method, preset), of in numbers.groupby(["method", "preset"], sort=True):
        of = of.assign(folder=of["run"], index=0)
        met = {f"{compared.mark}": f"{int(of[REACHED].sum())} of {len(of)}"} if compared.mark else {}
        cells = {name: spread(of, name) for name in ("step", "seconds", *metrics)}
        rows.append({"method": method, "preset": preset, **met, **cells})
    import pandas as pd

    return Sheet(numbers, pd.DataFrame(rows), f"Where it is forgotten: {compared.group.title}", notes)
