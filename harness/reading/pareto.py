"""The page's plot: what was kept against the metric that ranks, drawn as SVG's coordinates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.core.evaluator import title_of
from harness.core.measurement import Measurement
from harness.core.metric import in_text
from harness.core.options import Protocol
from harness.reading.cells import text_of
from harness.reading.formats import interval, number
from harness.reading.looks import look
from harness.reading.ranking import noise_floor
from harness.reading.rows import Row, Section, Value

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 48
"""Margins of the frame, in the plot's own units."""

PHONE = 2.0
"""How much larger letters are in the plot on a phone, where all of it is drawn smaller."""
MOST_LABELS = 40
"""With more points than these all are named on hover and focus alone."""

BESIDE = ((9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle"))
"""Where a label may stand: to the right, the left, above, below its point."""
Box = tuple[float, float, float, float]
Label = tuple[str, str, str, str]
"""Text, x, y and anchor."""


class Spot(NamedTuple):
    """A row with its two numbers."""

    row: Row
    """The row."""
    kept: Value
    """What it kept, across."""
    distance: Value
    """What ranks it, downwards."""


@dataclass(frozen=True)
class Axes:
    """Numbers → the plot's coordinates; what lies outside is put on the frame."""

    low: float
    """Of what was kept, at the left."""
    high: float
    """At the right."""
    deepest: float
    """Distance at the bottom; 0 is at the top."""

    def across(self, x: float) -> float:
        """A number of what was kept."""
        return LEFT + (min(max(x, self.low), self.high) - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """A distance."""
        return TOP + min(max(y, 0), self.deepest) / self.deepest * (HEIGHT - TOP - BOTTOM)


def pareto(section: Section) -> dict[str, Any] | None:
    """What was kept against the metric that ranks, drawn; None where a table lacks them.

    On ToFU the distance rather than its p-value, which crowds all good methods at one end of a logarithmic axis.
    """
    roles = section.roles
    names = (*roles.kept[:1], roles.ranking)
    spots = [spot for row in section.shown if roles.kept and roles.ranking and (spot := _spot(row, names))]
    if not spots:
        return None
    references = {
        name: {m: v.value for m, v in of.items() if isinstance(v, Measurement)} for name, of in section.references.items()
    }
    ends = [(name, values[names[0]], values[names[1]]) for name, values in references.items() if {*names} <= values.keys()]
    kept = [spot.kept.value for spot in spots] + [x for _, x, _ in ends]
    distances = [spot.distance.value for spot in spots] + [y for _, _, y in ends]
    axes = Axes(_tenth_below(min(kept)), _tenth_above(max(kept)), _tenth_above(max(distances)))
    at = [(axes.across(spot.kept.value), axes.down(spot.distance.value)) for spot in spots]
    ends_at = [(axes.across(x), axes.down(y)) for _, x, y in ends]
    titles = [in_text(title_of(name)) for name in names]
    named = [name for name, _, _ in ends] + [spot.row.method for spot in spots]
    labels, on_phone = (_labels(named, [*ends_at, *at], scale) for scale in (1.0, PHONE))
    crosses = [
        (name, _px(x), _px(y), label, small, f"{name}\n{titles[0]} {number(u)}\n{titles[1]} {number(d)}")
        for (name, u, d), (x, y), label, small in zip(ends, ends_at, labels, on_phone, strict=False)
    ]
    marks = [_mark(spot, place, axes, roles.forgetting) for spot, place in zip(spots, at, strict=True)]
    for mark, label, small in zip(marks, labels[len(ends) :], on_phone[len(ends) :], strict=True):
        mark |= {"label": label, "label_on_phone": small}
    floor = max((f for spot in spots if (f := noise_floor(spot.row, roles.ranking)) is not None), default=None)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "frame": [LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM],
        "titles": titles,
        "x_ticks": [(_px(axes.across(t)), f"{t:.1f}") for t in _ticks(axes.low, axes.high)],
        "y_ticks": [(_px(axes.down(t)), f"{t:.1f}") for t in _ticks(0, axes.deepest)],
        "floor": None if floor is None else {"height": _px(axes.down(floor) - TOP), "text": number(floor)},
        "front": " ".join(f"{_px(x)},{_px(y)}" for x, y in _front(at)),
        "references": crosses,
        "marks": marks,
    }


def _spot(row: Row, names: Sequence[str]) -> Spot | None:
    kept, distance = (row.values.get(metric) for metric in names)
    return Spot(row, kept, distance) if isinstance(kept, Value) and isinstance(distance, Value) else None


def _mark(spot: Spot, place: tuple[float, float], axes: Axes, forgetting: Sequence[str]) -> dict[str, Any]:
    row, kept, distance = spot
    return {
        "method": row.method,
        "protocol": row.protocol,
        "x": _px(place[0]),
        "y": _px(place[1]),
        "wide": [_px(axes.across(end)) for end in kept.interval] if kept.interval else None,
        "tall": [_px(axes.down(end)) for end in distance.across] if distance.across else None,
        "shape": _shape(row.protocol, *place),
        "colour": look(row.method).colour,
        "dark": look(row.method).on_dark,
        "name": _name(spot, forgetting),
    }


def _name(spot: Spot, forgetting: Sequence[str]) -> str:
    """What is said of a point on hover and focus."""
    row, kept, distance = spot
    settings = f", {row.settings}" if row.settings else ""
    ends = f" [{interval(*kept.interval)}]" if kept.interval else ""
    across, down = (in_text(title_of(value.example.metric)) for value in (kept, distance))
    beside = "".join(f", {in_text(title_of(metric))} {text_of(row.values.get(metric))}" for metric in forgetting)
    return (
        f"{row.method} ({row.protocol}{settings})\n{across} {number(kept.value)}{ends}\n"
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
    """An SVG path: published a circle, tuned a square, tuned2 and by hand triangles (tip down, tip up), others a diamond."""
    if protocol == "published":
        return f"M{_px(x - 5)},{_px(y)}a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z"
    if protocol == "tuned":
        return f"M{_px(x - 4.5)},{_px(y - 4.5)}h9v9h-9z"
    if protocol == "tuned2":
        return f"M{_px(x)},{_px(y + 5)}l5.5,-9.5h-11z"
    if protocol == "by hand":
        return f"M{_px(x)},{_px(y - 5.5)}l5.5,9.5h-11z"
    return f"M{_px(x)},{_px(y - 6)}l6,6l-6,6l-6,-6z"


def _labels(names: Sequence[str], points: Sequence[tuple[float, float]], scale: float) -> list[Label | None]:
    """The names beside their points, as far as they fit without covering anything."""
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    if len(points) > MOST_LABELS:
        return [None] * len(points)
    return [_place(name, *point, taken, scale) for name, point in zip(names, points, strict=True)]


def _place(text: str, x: float, y: float, taken: list[Box], scale: float) -> Label | None:
    """Where a label fits beside its point; None where it would cover something."""
    width, height = scale * 6.6 * len(text), scale * 12.0
    for across, down, anchor in BESIDE:
        left, bottom = x + scale * across, y + scale * down
        start = left - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
        box = (start, bottom - height + 2, start + width, bottom + 2)
        inside = box[0] >= LEFT and box[2] <= WIDTH - RIGHT and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return text, _px(left), _px(bottom), anchor
    return None
