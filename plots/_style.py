"""How everything looks: sizes, fonts, axes, what figures share. A method's colour and marker are `harness.reading.looks`'.

Figures are made for the width of a page of text (7.2 inches), so that their letters can still be read in a paper.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.reading.formats import known
from harness.reading.looks import Marker, look

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CATEGORIES = ("#0173b2", "#d55e00", "#029e73", "#cc78bc", "#de8f05", "#56b4e9", "#949494", "#7a3b78")
"""For what is no method: the values of a setting."""
MARKERS = "osD^vPX<>"
"""Likewise."""
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "text.parse_math": False,  # names from records are text, also where they hold a $
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "svg.hashsalt": "unlearning-harness",
}


WIDTH, LEGEND, LINE = 7.2, 1.5, 0.135
"""Inches: of a page of text, of the names beside the panels, of one line of notes."""
LETTERS, TITLE_LETTERS = 16.5, 12
"""An inch holds so many letters of the notes and of the title."""


@contextmanager
def style() -> Iterator[None]:
    """Inside, new figures look like this project's; nothing outside changes."""
    import matplotlib as mpl
    import seaborn as sns

    settings = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper", font_scale=0.9), **SETTINGS}
    with mpl.rc_context({key: value for key, value in settings.items() if key in mpl.rcParams}):
        yield


def figure(width: float, height: float, title: str = "", notes: Sequence[str] = ()) -> Figure:
    """An empty figure that belongs to no window and no global state, its title above and its notes below it.

    Args:
        width: inches; title and notes are broken to fit.
        height: of what is drawn, in inches; the notes' lines come on top.
        title: what it shows.
        notes: what a reader must know: n, intervals, rules, what was left out.
    """
    from matplotlib.figure import Figure

    lines = [line for note in notes for line in textwrap.wrap(note, int(width * LETTERS))]
    drawing = Figure(figsize=(width, height + LINE * len(lines)), layout="constrained")
    if title:
        broken = textwrap.fill(title, int((width - LEGEND) * TITLE_LETTERS))
        drawing.suptitle(broken, x=0.01, ha="left", fontsize=10)
    if lines:
        drawing.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="#333333")
    return drawing


def panels_width(panels: int) -> float:
    """Inches of a figure with so many panels side by side and a legend beside them: a page's width from two panels on."""
    return 5.8 if panels == 1 else WIDTH


# ---------------------------------------------------------------- axes

ZERO = 1e-300
"""A p-value that is 0 in floating point is drawn as one below all others."""
DECADES = 8
"""An axis of p-values reaches no further down: what lies below stands at its lower edge, with an arrow."""
BELOW = f"Values under 1e-{DECADES} stand at the lower edge with an arrow; the KS distance and the table tell them apart."
"""A note where that happens."""
STRETCHED, CLOSE = 0.25, 0.1
"""From this range on a score's axis is stretched; the share of the range within which it is about as it was."""
TICK = 0.13
"""Ticks of a stretched axis keep this share of its length apart."""


def log_axis(axes: Axes, values: Sequence[float], label: str) -> float:
    """A logarithmic vertical axis for p-values from 1 down to the lowest there is, `DECADES` at most.

    Returns:
        The lowest value that the axis shows; what lies below is drawn there.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    positive = [value for value in values if value > ZERO]
    decades = min(DECADES, max(2, math.ceil(-math.log10(min(positive, default=0.01)))))
    step = 1 if decades <= 5 else 2
    bottom = math.pow(10, -(decades + 0.4 * step))
    axes.set_yscale("log")
    axes.set_ylim(bottom / 10 ** (0.35 * step), 10 ** (0.3 * step))
    axes.yaxis.set_major_locator(FixedLocator([10.0**-k for k in range(0, decades + 1, step)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    axes.set_ylabel(label)
    return bottom


def score_axis(axes: Axes, values: Sequence[float]) -> bool:
    """A horizontal axis for scores of which the highest are best: where they lie far apart, the upper end gets more room.

    x ↦ −ln(1 + (x_best − x) / (c · range))      c = CLOSE

    Returns:
        Whether it is stretched, which the axis' label must say.
    """
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter

    low, high = min(values), max(values)
    margin = 0.04 * (high - low) + 0.005
    if high - low < STRETCHED:
        axes.set_xlim(low - margin, high + margin)
        return False
    unit = CLOSE * (high - low)

    def forward(x: np.ndarray) -> np.ndarray:
        return np.asarray(-np.log1p(np.maximum((high - np.asarray(x)) / unit, -0.9)))

    def back(x: np.ndarray) -> np.ndarray:
        return np.asarray(high - unit * np.expm1(-np.asarray(x)))

    axes.set_xscale("function", functions=(forward, back))
    axes.set_xlim(low - 2 * margin, high + 0.15 * unit)
    ends = forward(np.array([low, high]))
    ticks: list[float] = []
    for twentieth in range(math.floor(high * 20), math.ceil(low * 20) - 1, -1):
        at = float(forward(np.array(twentieth / 20)))
        if not ticks or float(forward(np.array(ticks[-1]))) - at >= TICK * float(ends[1] - ends[0]):
            ticks.append(twentieth / 20)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return True


def log_ticks(axes: Axes, values: Sequence[float], vertical: bool = False) -> None:
    """A logarithmic axis, the horizontal one if not said otherwise, whose ticks are plain numbers, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    # Where nothing that is drawn is above 0, the axis would have no place to begin.
    axes.update_datalim([(value, value) for value in values], updatex=not vertical, updatey=vertical)
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    axis = axes.yaxis if vertical else axes.xaxis
    decades = math.log10(max(values) / min(values))
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def power(value: float) -> str:
    """A power of ten as a tick says it."""
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


# ---------------------------------------------------------------- what figures share


def mark(axes: Axes, x: Any, y: Any, colour: str, marker: Marker, size: float, hollow: bool = False, **more: Any) -> None:
    """Markers with an edge: white round full ones, so that they stand apart; of their own colour round hollow ones.

    Those that consist of lines have neither face nor edge; the hollow ones are thinner then.
    """
    if not filled(marker):
        axes.scatter(x, y, s=size, marker=marker, color=colour, linewidth=0.8 if hollow else 1.4, **more)
        return
    face, edge = ("white", colour) if hollow else (colour, "white")
    axes.scatter(x, y, s=size, marker=marker, facecolor=face, edgecolor=edge, linewidth=0.9, **more)


def filled(marker: Marker) -> bool:
    """Whether a marker has a face; one that consists of lines would vanish in an edge of the background's colour."""
    from matplotlib.markers import MarkerStyle

    return MarkerStyle(marker).is_filled()


def interval(axes: Axes, x: float, y: float, low: Any, high: Any, colour: str) -> None:
    """A horizontal 95 % interval, where there is one."""
    if known(low) and known(high):
        axes.errorbar(x, y, xerr=[[max(0.0, x - low)], [max(0.0, high - x)]], color=colour, linewidth=1, capsize=2, zorder=4)


def draw_references(axes: Axes, points: Iterable[Mapping[str, Any]], across: str, up: str, lowest: float | None) -> None:
    """The references as black markers with their intervals.

    Args:
        axes: where.
        points: from `Group.references`.
        across: the metric of the horizontal axis.
        up: the metric of the vertical axis.
        lowest: the lowest value of a logarithmic vertical axis.
    """
    for point in points:
        if known(point.get(across)) and known(point.get(up)):
            drawn, hollow = look(point["arm"]), point["arm"] == "untouched"
            x, y = point[across], raised([point[up]], lowest)[0]
            interval(axes, x, y, point.get(f"{across}_low"), point.get(f"{across}_high"), drawn.colour)
            mark(axes, x, y, drawn.colour, drawn.marker, 32 if hollow else 130, hollow, zorder=6, label=point["arm"])
            if lowest is not None and point[up] < lowest:
                below(axes, x, y)


def below(axes: Axes, x: float, y: float) -> None:
    """An arrow under a marker that stands at the lower edge since its value lies below the axis."""
    axes.annotate("↓", (x, y), xytext=(0, -4), textcoords="offset points", ha="center", va="top", fontsize=7)


def significance(axes: Axes, label: bool) -> None:
    """The line at p = .05, below which a model can be told apart from a retrained one."""
    line(axes, 0.05, "p = 0.05" if label else "")


def line(axes: Axes, height: float, label: str = "") -> None:
    """A dashed line across with its name at its right end, outside the panel, where nothing can hide it."""
    axes.axhline(height, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if label:
        place = ("axes fraction", "data")
        text = axes.annotate(label, (1, height), xycoords=place, xytext=(3, 0), textcoords="offset points", va="center")
        text.set(fontsize=7, color="#333333", annotation_clip=False)


def raised(values: Iterable[Any], lowest: float | None) -> list[float]:
    """Values as they are drawn: on a logarithmic axis a 0 stands at the lower edge."""
    return [float(value) if lowest is None else max(float(value), lowest) for value in values]
