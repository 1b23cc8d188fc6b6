"""A row is a method with its settings, its runs differ in the seed alone; a table holds what may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Literal

from harness.core.benchmark import roles_of
from harness.core.evaluator import title_of
from harness.core.measurement import Absent, Difference, Measurement
from harness.core.metric import MetricRoles
from harness.core.options import Protocol
from harness.reading.compared import Run, protocol
from harness.storage.identity import NAME

REFERENCE_METHODS = ("untouched", "retrained")
"""Measured beside every run, and methods too: the two ends that others stand between. They are shown and never ranked."""


@dataclass(frozen=True)
class Value:
    """One metric of a row: the median over its seeds."""

    example: Measurement
    """One of the seeds' measurements, for what they share: direction, unit, version, n."""
    value: float
    """The median."""
    seeds: int
    """How many seeds have it."""
    seed_low: float
    """Smallest over the seeds."""
    seed_high: float
    """Largest over the seeds."""
    interval: tuple[float, float] | None
    """The medians over the seeds of both ends of the 95 % interval."""
    across: tuple[float, float] | None
    """Smallest and largest over references and seeds."""
    floor: float | None
    """The noise floor, the largest of the seeds'."""
    tie: bool
    """Whether it is at or under the floor, where that makes a tie (KS distances)."""


@dataclass
class Row:
    """A method with its settings."""

    runs: Sequence[Run]
    """One for each seed, sorted by seed."""
    values: Mapping[str, Value | Absent]
    """By metric."""
    settings: str = ""
    """What tells it from the other rows of its method in the same table."""
    rank: str = ""
    """On the benchmark's ranking metric, within its protocol."""

    @property
    def method(self) -> str:
        """The method."""
        return self.runs[0].spec.method

    @cached_property
    def protocol(self) -> Protocol:
        """How its settings were chosen."""
        return protocol(self.runs[0].selection)

    def number(self, metric: str) -> float | None:
        """The metric's value, if it has one."""
        value = self.values.get(metric)
        return value.value if isinstance(value, Value) else None

    def cost(self, what: Literal["seconds", "full_seconds", "peak_bytes"]) -> float | None:
        """The median over the seeds."""
        costs = [getattr(run.cost, what) for run in self.runs if run.cost]
        return median(costs) if costs else None

    @property
    def oracle(self) -> tuple[str, tuple[float, ...]] | None:
        """Steps, and the medians over the seeds of the numbers at each run's best point."""
        oracles = [run.oracle for run in self.runs if run.oracle]
        if not oracles:
            return None
        steps = sorted({step for step, _ in oracles})
        span = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return span, tuple(median(of) for of in zip(*(numbers for _, numbers in oracles), strict=True))


@dataclass
class Section:
    """One table: everything in it may be compared."""

    identity: Mapping[str, object]
    """What all its runs share; two sections differ in at least one of these."""
    rows: Sequence[Row]
    """Methods with their settings; by protocol, then the best of the ranking metric first."""
    references: Mapping[str, Mapping[str, Measurement | Absent]]
    """The two references."""
    unfinished: Sequence[Run]
    """Failed and interrupted runs."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know."""
    index: int = 0
    """Its number in the CSV, from 1."""
    differences: Mapping[Protocol, Sequence[Difference]] = field(default_factory=dict)
    """What the methods of each form differ by, each with each; see `differences_of`."""

    @property
    def name(self) -> tuple[str, ...]:
        """Benchmark, model, metric variant, retain set."""
        return tuple(str(self.identity[part]) for part in NAME)

    @property
    def definitions(self) -> str:
        """Variant and retain set as a reader is told them; the usual retain set goes without saying."""
        _, _, variant, retain = self.name
        return f"{variant} definitions" + (f", retain set {retain}" if retain != "all" else "")

    @property
    def roles(self) -> MetricRoles:
        """Which part its benchmark's metrics play."""
        return roles_of(str(self.identity["benchmark"]))

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics that any row has, the headline first, others in the order they were measured."""
        seen, headline = dict.fromkeys(m for row in self.rows for m in row.values), self.roles.headline
        return [m for m in headline if m in seen] + [m for m in seen if m not in headline]

    @property
    def ranks(self) -> bool:
        """Whether any of its rows has a rank, or a tie."""
        return any(row.rank == "tie" or row.rank.isdecimal() for row in self.rows)

    @property
    def shown(self) -> Sequence[Row]:
        """Its rows without runs of a reference that stands above them already."""
        return [row for row in self.rows if row.method not in self.references]

    def title(self, metric: str) -> str:
        """A metric's heading: of the headline as it is declared, of others their name."""
        return title_of(metric) if metric in self.roles.headline else metric.replace("_", " ")

    def example(self, metric: str) -> Measurement | None:
        """A measurement of it, for what all of them share."""
        return next((v.example for row in self.rows if isinstance(v := row.values.get(metric), Value)), None)


def single(item: Measurement | Absent) -> Value | Absent:
    """A reference's measurement as a row's; it ties with nothing."""
    if isinstance(item, Absent):
        return item
    return Value(item, item.value, 1, item.value, item.value, item.interval_95, item.across_references, item.floor, tie=False)


def measured(row: Row, metric: str) -> list[Measurement]:
    """What each of its seeds measured, where it did."""
    return [m for run in row.runs if isinstance(m := run.last.get(metric), Measurement)]
