"""Which rows are better: ranks within a protocol on the benchmark's ranking metric, ties at its noise floor, and the order."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from harness.core.metric import MetricRoles
from harness.core.options import Protocol
from harness.reading.compared import PROTOCOLS
from harness.reading.rows import REFERENCE_METHODS, Row, Value, measured
from harness.statistics.measurements import NOT_RANKED


def noise_floor(row: Row, ranking: str) -> float | None:
    """Of the metric that ranks."""
    value = row.values.get(ranking)
    return value.floor if isinstance(value, Value) else None


def rank(rows: Sequence[Row], ranking: str) -> str:
    """Give each row its rank among those of its protocol; says why where the measurements forbid it."""
    distances = [(row, v) for row in rows if isinstance(v := row.values.get(ranking), Value)]
    reasons = (m.note.partition(f"{NOT_RANKED}: ")[2] for row, _ in distances for m in measured(row, ranking) if m.note)
    why_not = next(filter(None, reasons), "")
    rivals: dict[Protocol, list[tuple[bool, float]]] = defaultdict(list)
    for row, distance in distances:
        if row.method not in REFERENCE_METHODS:
            rivals[row.protocol].append((not distance.tie, distance.value))
    for each in rivals.values():
        each.sort()
    for row, distance in distances:
        if row.method in REFERENCE_METHODS:
            row.rank = "reference"
        elif why_not:
            row.rank = "not ranked"
        else:
            row.rank = "tie" if distance.tie else str(1 + bisect_left(rivals[row.protocol], (True, distance.value)))
    return why_not


def order(row: Row, roles: MetricRoles) -> tuple[Any, ...]:
    """Ties are not ranked further, so that what was kept sorts them; others by distance."""
    value = row.values.get(roles.ranking)
    distance = value.value if isinstance(value, Value) else float("inf")
    tie = isinstance(value, Value) and value.tie
    kept = row.number(roles.kept[0]) if roles.ranking and roles.kept else None
    protocol = (*PROTOCOLS,).index(row.protocol)
    return (protocol, 0.0 if tie else 1 + distance, 0.0 if kept is None else -kept, row.method, row.runs[0].folder)
