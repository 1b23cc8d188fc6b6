"""How everything looks: one colour and marker for a method in every figure, fonts, numbers as readers want them.

Kin share a hue and differ in lightness; every method has a marker of its own, so that a figure can be read in grey and by
colour-blind readers. The hues are seaborn's `colorblind` (after Okabe and Ito).
"""

from __future__ import annotations

import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Marker: TypeAlias = "str | tuple[int, Literal[0, 1, 2], int]"


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    """As hexadecimal."""
    marker: Marker
    """In matplotlib's alphabet; stars of so many points for methods that are not listed here."""


LOOKS = {
    "kfade": Look("#d55e00", "D"),
    "ga": Look("#0173b2", "o"),
    "grad_diff": Look("#56b4e9", "s"),
    "kl_min": Look("#08306b", "^"),
    "npo": Look("#029e73", "v"),
    "simnpo": Look("#66c2a5", "P"),
    "dpo": Look("#cc78bc", "<"),
    "idk": Look("#7a3b78", ">"),
    "soul": Look("#de8f05", "X"),
    "loku": Look("#8c510a", "p"),
    "rmu": Look("#949494", "h"),
    "elm": Look("#b8a600", "d"),
    "checkpoint": Look("#4d4d4d", "8"),
    "untouched": Look("#000000", "s"),
    "retrained": Look("#000000", "*"),
}
_FURTHER = tuple(
    Look(colour, (points, 1, 0))
    for points, colour in zip((4, 6, 7, 3, 8), ("#e7298a", "#66a61e", "#1f78b4", "#6a3d9a", "#b15928"), strict=True)
)
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


def look(method: str) -> Look:
    """A method's colour and marker; one that is not listed here gets some by its name, whatever else is in the figure."""
    return LOOKS.get(method) or _FURTHER[zlib.crc32(method.encode()) % len(_FURTHER)]


@contextmanager
def style() -> Iterator[None]:
    """Inside, new figures look like this project's; nothing outside changes."""
    import matplotlib as mpl
    import seaborn as sns

    told = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper"), **SETTINGS}
    with mpl.rc_context({key: value for key, value in told.items() if key in mpl.rcParams}):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window and no global state. Inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def caption(drawing: Figure, lines: Iterable[str], width: int = 150) -> None:
    """What a reader must know, under the figure: n, intervals, rules, what was left out."""
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    drawing.supxlabel(text, x=0.01, ha="left", fontsize=7, color="#333333")


# ---------------------------------------------------------------- forget quality's axis

ZERO = 1e-300
"""A p-value that is 0 in floating point is drawn as one below all others."""


def log_axis(axes: Axes, values: Sequence[float], label: str) -> float:
    """A logarithmic vertical axis for p-values from 1 down to whatever there is.

    Returns:
        The lowest value that the axis shows; zeros are drawn there.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    there = [value for value in values if value > ZERO]
    decades = max(2, math.ceil(-math.log10(min(there, default=0.01))))
    step = next(s for s in (1, 2, 3, 5, 10, 20, 50, 100) if decades / s <= 7)
    bottom = math.pow(10, -(decades + 0.4 * step))
    axes.set_yscale("log")
    axes.set_ylim(bottom / 10 ** (0.2 * step), 10 ** (0.3 * step))
    axes.yaxis.set_major_locator(FixedLocator([10.0**-k for k in range(0, decades + 1, step)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    axes.set_ylabel(label)
    return bottom


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


def number(value: Any, digits: int = 3) -> str:
    """A number as a reader wants it: small ones with an exponent, others with fixed decimals; a dash where there is none."""
    if value is None or value != value:
        return "–"
    if value != 0 and abs(value) < 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


# ---------------------------------------------------------------- what figures share


def mark(axes: Axes, x: Any, y: Any, colour: str, marker: Marker, size: float, hollow: bool = False, **more: Any) -> None:
    """Markers with an edge: white round full ones, so that they stand apart; of their own colour round hollow ones."""
    face, edge = ("white", colour) if hollow else (colour, "white")
    axes.scatter(x, y, s=size, marker=marker, facecolor=face, edgecolor=edge, linewidth=0.9, **more)


def interval(axes: Axes, x: float, y: float, low: Any, high: Any, colour: str) -> None:
    """A horizontal 95 % interval, where there is one."""
    if known(low) and known(high):
        axes.errorbar(x, y, xerr=[[max(0.0, x - low)], [max(0.0, high - x)]], color=colour, linewidth=1, capsize=2, zorder=4)


def references(axes: Axes, arms: Iterable[Mapping[str, Any]], across: str, up: str, lowest: float | None) -> None:
    """The reference arms as black markers with their intervals.

    Args:
        axes: where.
        arms: from `Group.arms`.
        across: the metric of the horizontal axis.
        up: the metric of the vertical axis.
        lowest: the lowest value of a logarithmic vertical axis.
    """
    for arm in arms:
        if known(arm.get(across)) and known(arm.get(up)):
            drawn, hollow = look(arm["arm"]), arm["arm"] == "untouched"
            x, y = arm[across], raised([arm[up]], lowest)[0]
            interval(axes, x, y, arm.get(f"{across}_low"), arm.get(f"{across}_high"), drawn.colour)
            mark(axes, x, y, drawn.colour, drawn.marker, 45 if hollow else 190, hollow, zorder=6, label=arm["arm"])
            if lowest is not None and arm[up] < lowest:
                below(axes, x, y, arm[up])


def below(axes: Axes, x: float, y: float, value: float) -> None:
    """The number of a marker that stands at the lower edge since it lies below the axis."""
    axes.annotate(f"{number(value)} ↓", (x, y), xytext=(-7, 4), textcoords="offset points", ha="right", fontsize=7)


def significance(axes: Axes, label: bool) -> None:
    """The line at p = .05, below which a model can be told apart from a retrained one."""
    axes.axhline(0.05, color="#555555", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    if label:
        where = ("axes fraction", "data")
        axes.annotate("p = .05", (0.01, 0.04), xycoords=where, va="top", fontsize=7, color="#555555")


def raised(values: Iterable[Any], lowest: float | None) -> list[float]:
    """Values as they are drawn: on a logarithmic axis a 0 stands at the lower edge."""
    return [float(value) if lowest is None else max(float(value), lowest) for value in values]


def known(value: Any) -> bool:
    """Whether there is a number."""
    return value is not None and value == value
