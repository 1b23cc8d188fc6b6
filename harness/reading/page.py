"""The leaderboard's page: cells, tables and the plot of `templates/leaderboard.html.j2`, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from urllib.parse import quote

from harness.core.interfaces import Absent, Difference, Measurement, title_of
from harness.core.metric import in_text
from harness.reading.comparing import (
    DIRECTIONS,
    NAME,
    PROTOCOLS,
    Protocol,
    Row,
    Run,
    Section,
    Value,
    measured,
    noise_floor,
    protocol,
    single,
)
from harness.reading.differences import LEVEL

LEGEND = (
    "What stands for a run is its last point. Several seeds: the median, with the range over seeds below it; "
    "in square brackets the 95 % interval (for several seeds the medians of its ends); in round ones the range over the "
    "retrained models.",
    "Arrows: ↑ higher is better, ↓ lower is better, → best close to the retrained model's number.",
    "A KS distance at or under the noise floor (what two retrained models differ by) is a tie: not ranked further on forget "
    "quality. Ranks are within a protocol.",
    "* oracle: the point of the way with the largest forget quality × utility, found by looking at the rows that are reported; "
    "the papers' rule, and no fair one.",
    "Differences between methods are those on the same questions, by resampling whole authors (WMDP: groups of questions, "
    "single answers to instructions); how much seeds differ is not in their intervals. p-values are Holm-corrected for all "
    "comparisons of one form in one table.",
    "Time is unlearning alone with nothing cached; memory is the most that was held at once meanwhile.",
)


def number(value: float | None) -> str:
    """As pages and tables print it: three decimals, smaller ones in scientific notation."""
    if value is None:
        return "–"
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Seconds, with their unit."""
    return "–" if value is None else f"{value:.1f} s"


def gib(value: float | None) -> str:
    """Bytes in GiB, with the unit."""
    return "–" if value is None else f"{value / 2**30:.2f} GiB"


def told_cell(value: Value | Absent) -> str:
    """A number and what is needed to read it, in one line."""
    main, small = _texts(value)
    return " ".join((main, *small))


def told_oracle(oracle: tuple[str, tuple[float, ...]] | None) -> str:
    """The numbers at the oracle's point."""
    return f"{', '.join(map(number, oracle[1]))} at step {oracle[0]}" if oracle else "–"


def told_unfinished(run: Run) -> str:
    """A failed or interrupted run in one line."""
    return f"{run.status}: {run.spec.method}, seed {run.spec.seed}, {run.folder}" + (f": {run.error}" if run.error else "")


def told_differences(form: Protocol, found: Sequence[Difference]) -> str:
    """How many differences of a form are told apart from none, in one sentence."""
    apart = sum(each.p_corrected <= LEVEL for each in found)
    return (
        f"{form}: {apart} of {len(found)} differences between two methods (paired bootstrap) are told apart from "
        f"none at {100 * LEVEL:g} %, Holm-corrected for all {len(found)}."
    )


def headline(section: Section) -> list[str]:
    """The metrics that are always shown."""
    return [m for m in section.metrics if m in section.roles.headline] or section.metrics


def heading(section: Section, metric: str) -> str:
    """A metric's name and direction."""
    found = section.example(metric)
    title = section.title(metric) if metric in section.roles.headline else metric
    return f"{title} {DIRECTIONS[found.better] if found else ''}".strip()


def _texts(value: Value | Absent) -> tuple[str, list[str]]:
    """A cell: the number, and what is needed to read it."""
    if isinstance(value, Absent):
        return "absent", []
    small = []
    if value.seeds > 1:
        small.append(f"{value.seeds} seeds: {number(value.seed_low)} to {number(value.seed_high)}")
    if value.interval:
        small.append(f"[{number(value.interval[0])}, {number(value.interval[1])}]")
    # Only what is computed against each retrained model; others have a range of the references' own numbers.
    if value.across and value.found.reference is None and value.across[0] != value.across[1]:
        small.append(f"({number(value.across[0])} to {number(value.across[1])})")
    return number(value.value) + (" tie" if value.tie else ""), small


# ---------------------------------------------------------------- the tables


@dataclass(frozen=True)
class Cell:
    """One cell of the page's tables."""

    main: str
    """Its text."""
    sort: str = ""
    """What it is sorted by; empty ones come last."""
    small: Sequence[str] = ()
    """Lines below the text."""
    look: str = ""
    """Its style classes."""


def page(tables: Sequence[Section], published: Sequence[Mapping[str, Any]]) -> str:
    """The page: one file that needs no other."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("harness"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    methods = sorted({row.method for s in tables for row in s.rows} | {run.spec.method for s in tables for run in s.unfinished})
    seen = {row.protocol for s in tables for row in s.rows} | {protocol(run.selection) for s in tables for run in s.unfinished}
    hues = {method: round(360 * i / len(methods)) for i, method in enumerate(methods)}
    return environment.get_template("leaderboard.html.j2").render(
        sections=[_section(section, index, hues) for index, section in enumerate(tables, 1)],
        published=published,
        legend=LEGEND,
        methods=methods,
        protocols=[(name, about) for name, about in PROTOCOLS.items() if name in seen],
        directions=DIRECTIONS,
    )


def _section(section: Section, index: int, hues: Mapping[str, int]) -> dict[str, Any]:
    bench, model, *_ = section.name
    columns = [_column(section, metric) for metric in section.metrics]
    looks = {column["metric"]: column["look"] for column in columns}
    return {
        "id": f"table-{index}",
        "title": f"{bench} · {model}",
        "definitions": section.definitions,
        "identity": [(name, value) for name, value in section.identity.items() if name not in NAME],
        "columns": columns,
        "arms": [
            (arm, [_cell(single(found[m]) if m in found else None, looks[m]) for m in section.metrics])
            for arm, found in section.arms.items()
        ],
        "rows": [_row(row, section, looks) for row in section.rows],
        "unfinished": [(run, protocol(run.selection), told_unfinished(run)) for run in section.unfinished],
        "notes": section.notes,
        "differences": [_matrices(section, form, found) for form, found in section.differences.items()],
        "plot": pareto(section, hues),
    }


def _matrices(section: Section, form: Protocol, found: Sequence[Difference]) -> dict[str, Any]:
    """For each metric a square of the methods: the row's number minus the column's."""
    metrics = dict.fromkeys(each.metric for each in found)
    squares = []
    for metric in metrics:
        of_metric = [each for each in found if each.metric == metric]
        methods = list(dict.fromkeys(name for each in of_metric for name in (each.first, each.second)))
        cells = {(each.first, each.second): _difference(each, 1) for each in of_metric}
        cells |= {(each.second, each.first): _difference(each, -1) for each in of_metric}
        rows = [(one, [cells.get((one, other), Cell("")) for other in methods]) for one in methods]
        name = section.title(metric) if metric in section.roles.headline else metric
        title = f"{name} {DIRECTIONS[of_metric[0].better]}".strip()
        squares.append({"title": title, "methods": methods, "rows": rows})
    return {"form": form, "told": told_differences(form, found), "squares": squares}


def _difference(each: Difference, sign: int) -> Cell:
    low, high = sorted((sign * each.low, sign * each.high))
    apart = each.p_corrected <= LEVEL
    about = f"95 % interval {low:+.3f} to {high:+.3f}, p {each.p:.2g}, corrected {each.p_corrected:.2g}"
    return Cell(f"{sign * each.value:+.3f}", about, look="apart" if apart else "unsure")


def _column(section: Section, metric: str) -> dict[str, Any]:
    found = section.example(metric)
    return {
        "title": section.title(metric),
        "metric": metric,
        "arrow": DIRECTIONS[found.better] if found else "",
        "small": _below(section, metric),
        "first": "ascending" if found and found.better == "lower" else "descending",
        "look": "" if metric in headline(section) else "more",
        "about": _about(section, metric),
    }


def _below(section: Section, metric: str) -> str:
    """What stands below a column's title: what a reader must not miss."""
    found = section.example(metric)
    if metric == section.roles.ranking and (floors := _floors(section, metric)):
        return f"noise floor {floors}"
    return "best as retrained" if found and found.better == "closer" else ""


def _row(row: Row, section: Section, looks: Mapping[str, str]) -> dict[str, Any]:
    full, own, peak = row.cost("full_seconds"), row.cost("seconds"), row.cost("peak_bytes")
    cached = own is not None and full is not None and full > own + 0.05
    oracle = Cell("–")
    if row.oracle:
        steps, values = row.oracle
        oracle = Cell(", ".join(map(number, values)), repr(prod(values)), [f"at step {steps}"])
    seeds = ", ".join(str(run.spec.seed) for run in row.runs)
    rank = "0" if row.rank == "tie" else row.rank if row.rank.isdecimal() else ""
    return {
        "method": row.method,
        "protocol": row.protocol,
        "settings": row.settings,
        "rank": Cell(row.rank or "–", rank, look="tie" if row.rank == "tie" else ""),
        "cells": [_cell(row.values.get(m), looks[m]) for m in section.metrics],
        "costs": [
            Cell(seconds(full), "" if full is None else repr(full), [f"{seconds(own)} with a cache"] if cached else []),
            Cell(gib(peak), "" if peak is None else repr(peak)),
        ],
        "oracle": oracle,
        "selection": row.runs[0].selection,
        "seeds": f"{len(row.runs)} ({'seed' if len(row.runs) == 1 else 'seeds'} {seeds})",
        "count": len(row.runs),
        "runs": [(run, f"../runs/{quote(run.link)}") for run in row.runs],
    }


def _cell(value: Value | Absent | None, look: str) -> Cell:
    if value is None:
        return Cell("–", look=look)
    main, small = _texts(value)
    if isinstance(value, Absent):
        return Cell(main, look=f"{look} absent".strip())
    return Cell(main, repr(value.value), small, f"{look} tie".strip() if value.tie else look)


def _floors(section: Section, metric: str) -> str:
    found = {v.floor for row in section.rows if isinstance(v := row.values.get(metric), Value) and v.floor is not None}
    return " to ".join(number(f) for f in sorted({min(found), max(found)})) if found else ""


def _about(section: Section, metric: str) -> list[str]:
    """Unit, range, rows, version, noise floor, and how the interval was made."""
    found = section.example(metric)
    if not found:
        return ["absent"] + [""] * 5
    counts = sorted({m.n for row in section.rows for m in measured(row, metric)})
    limits = " to ".join(f"{limit:g}" for limit in found.range) if found.range else "–"
    rows = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    how = (found.interval_method or "none") + (f", by {found.resampled}" if found.resampled else "")
    return [found.unit, limits, rows, str(found.version), _floors(section, metric) or "–", how]


# ---------------------------------------------------------------- the plot

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 48
"""Margins of the frame, in the plot's own units."""

MOST_LABELS = 40
"""With more points than these all are named on hover and focus alone."""

Box = tuple[float, float, float, float]


def pareto(section: Section, hues: Mapping[str, int]) -> dict[str, Any] | None:
    """What was kept against the metric that ranks, drawn; None where a table lacks them.

    On ToFU the distance rather than its p-value, which crowds all good methods at one end of a logarithmic axis.
    """
    roles, points = section.roles, []
    axes = (*roles.kept[:1], roles.ranking)
    for row in section.rows if roles.kept and roles.ranking else ():
        utility, distance = (row.values.get(metric) for metric in axes)
        if isinstance(utility, Value) and isinstance(distance, Value):
            points.append((row, utility, distance))
    if not points:
        return None
    arms = {arm: {m: v.value for m, v in found.items() if isinstance(v, Measurement)} for arm, found in section.arms.items()}
    ends = [(arm, v[axes[0]], v[axes[1]]) for arm, v in arms.items() if {*axes} <= v.keys()]
    utilities = [u.value for _, u, _ in points] + [u for _, u, _ in ends]
    across_name, down_name = (in_text(title_of(metric)) for metric in axes)
    low, high = _tenth_below(min(utilities)), _tenth_above(max(utilities))
    deepest = _tenth_above(max([d.value for _, _, d in points] + [d for _, _, d in ends]))

    def across(x: float) -> float:
        return LEFT + (min(max(x, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return TOP + min(max(y, 0), deepest) / deepest * (HEIGHT - TOP - BOTTOM)

    at = [(across(u.value), down(d.value)) for _, u, d in points]
    arms_at = [(across(u), down(d)) for _, u, d in ends]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in (*at, *arms_at)]
    crosses = [
        (arm, _px(x), _px(y), _place(arm, x, y, taken), f"{arm}\n{across_name} {number(u)}\n{down_name} {number(d)}")
        for (arm, u, d), (x, y) in zip(ends, arms_at, strict=True)
    ]
    marks = []
    for (row, utility, distance), (x, y) in zip(points, at, strict=True):
        marks.append(
            {
                "method": row.method,
                "protocol": row.protocol,
                "x": _px(x),
                "y": _px(y),
                "wide": [_px(across(end)) for end in utility.interval] if utility.interval else None,
                "tall": [_px(down(end)) for end in distance.across] if distance.across else None,
                "shape": _shape(row.protocol, x, y),
                "hue": hues[row.method],
                "name": _name(row, utility, distance, roles.forgetting),
                "label": _place(row.method, x, y, taken) if len(points) <= MOST_LABELS else None,
            }
        )
    floor = max((f for row, _, _ in points if (f := noise_floor(row, roles.ranking)) is not None), default=None)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": [LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM],
        "x_ticks": [(_px(across(t)), f"{t:.1f}") for t in _ticks(low, high)],
        "y_ticks": [(_px(down(t)), f"{t:.1f}") for t in _ticks(0, deepest)],
        "floor": None if floor is None else {"height": _px(down(floor) - TOP), "text": number(floor)},
        "front": " ".join(f"{_px(x)},{_px(y)}" for x, y in _front(at)),
        "arms": crosses,
        "marks": marks,
    }


def _name(row: Row, utility: Value, distance: Value, forgetting: Sequence[str]) -> str:
    """What is said of a point on hover and focus."""
    settings = f", {row.settings}" if row.settings else ""
    interval = f" [{number(utility.interval[0])}, {number(utility.interval[1])}]" if utility.interval else ""
    across, down = (in_text(title_of(value.found.metric)) for value in (utility, distance))
    beside = "".join(f", {in_text(title_of(metric))} {number(row.number(metric))}" for metric in forgetting)
    return (
        f"{row.method} ({row.protocol}{settings})\n{across} {number(utility.value)}{interval}\n"
        f"{down} {number(distance.value)}{' (tie)' if distance.tie else ''}{beside}"
    )


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the staircase through the points that no other one beats both ways (right is good, up is good)."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (-p[0], p[1])):
        if not corners:
            corners.append((x, y))
        elif y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)]
    return corners


def _tenth_below(value: float) -> float:
    return max(0.0, (value * 10 - 0.2) // 1 / 10)


def _tenth_above(value: float) -> float:
    return ((value * 10 + 0.2) // 1 + 1) / 10


def _ticks(low: float, high: float) -> list[float]:
    first, last = round(low * 10), round(high * 10)
    step = max(1, -(-(last - first) // 8))
    return [t / 10 for t in range(first, last + 1) if t % step == 0]


def _px(value: float) -> str:
    return f"{value:.1f}"


def _shape(protocol: Protocol, x: float, y: float) -> str:
    """An SVG path: a circle for published, a square for tuned, a triangle for by hand, a diamond for others."""
    if protocol == "published":
        return f"M{_px(x - 5)},{_px(y)}a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
    if protocol == "tuned":
        return f"M{_px(x - 4.5)},{_px(y - 4.5)}h9v9h-9z"
    if protocol == "by hand":
        return f"M{_px(x)},{_px(y - 5.5)}l5.5,9.5h-11z"
    return f"M{_px(x)},{_px(y - 6)}l6,6l-6,6l-6,-6z"


def _place(text: str, x: float, y: float, taken: list[Box]) -> tuple[str, str, str, str] | None:
    """Where a label fits beside its point: text, x, y, anchor; None where it would cover something."""
    width, height = 6.6 * len(text), 12.0
    for dx, dy, anchor in ((9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle")):
        left = x + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
        box = (left, y + dy - height + 2, left + width, y + dy + 2)
        inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return text, _px(x + dx), _px(y + dy), anchor
    return None
