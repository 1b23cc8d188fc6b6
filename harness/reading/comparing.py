"""What may be compared: runs into rows, rows into tables, ranks within a table. From records alone; imports no torch.

A row is a method with its settings; its runs differ in the seed alone. What stands for a run is its last point, never a point
picked by looking at the numbers that are reported: that one (the largest forget quality × utility) is told apart as an oracle.
A table holds what may be compared: one benchmark, model and data, and one version of every metric.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.core.arithmetic import in_words
from harness.core.costs import Phase
from harness.core.errors import UsageError
from harness.core.interfaces import Absent, Difference, Measurement, metric_of, roles_of, title_of
from harness.core.metric import MetricRoles, in_text
from harness.reading.differences import differences
from harness.statistics.measurements import NOT_RANKED
from harness.storage.cache import canonical, digest
from harness.storage.records import Point, RunResult, RunSpec
from harness.storage.store import Store

Oracle = tuple[int, tuple[float, ...]]
"""A point's step, and its numbers whose product is the oracle's score, in the benchmark's order."""
Protocol = Literal["published", "tuned", "by hand", "other"]
PROTOCOLS: Mapping[Protocol, str] = {
    "published": "the published number of epochs, constants and batch; on mini the learning rate alone is scaled",
    "tuned": "settings found with the same number of tries for every method; not comparable to published numbers",
    "by hand": "settings given on the command line",
    "other": "the record does not say how its settings were chosen",
}

FORMS: Sequence[Protocol] = ("published", "tuned")
"""Protocols whose methods are compared each with each."""
MOST_COMPARED = 30
"""With more rows of one form than these nothing is compared each with each."""

REFERENCE_ARMS = ("untouched", "retrained")
"""Arms of every run, and methods too: the two ends that others stand between. They are shown and never ranked."""

DIRECTIONS = {"higher": "↑", "lower": "↓", "closer": "→", None: ""}


# ---------------------------------------------------------------- what is read


@dataclass(frozen=True)
class Run:
    """What a row needs of a record."""

    spec: RunSpec
    """What was asked."""
    folder: str
    """Its place in the `runs` folder."""
    link: str
    """What a page links to, relative to the `runs` folder: its folder, or the file that it is packed in."""
    status: str
    """`done`, `failed` or `interrupted`."""
    error: str
    """The first line of why it failed."""
    selection: str
    """On what its settings were chosen."""
    notes: Sequence[str]
    """What a reader must know of its benchmark."""
    step: int
    """Of the last point; 0 if there is none."""
    index: int
    """Of the last point; -1 if there is none."""
    last: Mapping[str, Measurement | Absent]
    """What the last point measured."""
    oracle: Oracle | None
    """Where the oracle's score is largest; None for fewer than two points."""
    arms: Mapping[str, Sequence[Measurement | Absent]]
    """The untouched and the retrained model."""
    cost: Phase | None
    """Of unlearning."""
    command: str
    """What to type to run it again."""
    machine: str
    """On what it ran."""
    weights: str
    """The fingerprint of the weights before unlearning: one recipe gives others on another kind of processor."""
    kind: str
    """That kind, as far as it was recorded."""

    @property
    def counts(self) -> bool:
        """Whether its last point is the end of its way."""
        return self.status == "done" and bool(self.last)

    @property
    def versions(self) -> Mapping[str, int]:
        """Evaluator or metric → version of its definition."""
        return {**self.spec.evaluators, **{m.metric: m.version for m in self.last.values() if isinstance(m, Measurement)}}


def protocol(selection: str) -> Protocol:
    """Which protocol a record's words about its settings stand for."""
    if "by hand" in selection or selection == "settings of a recorded run":
        return "by hand"
    if selection.startswith("published form"):
        return "published"
    return "tuned" if selection.startswith("tuned form") else "other"


def read_runs(root: Path, skipped: Callable[[str], None]) -> list[Run]:
    """Every run of a results folder, sorted by its place.

    Args:
        root: the results folder.
        skipped: told of each record that cannot be read.

    Raises:
        UsageError: if there is none, or one was written by a newer version.
    """
    store = Store(root)
    runs = []
    for place in store.places():
        try:
            packed = store.packed(place)
            runs.append(_run(place, packed.path.name if packed else f"{place}/", store.read(place)))
        except UsageError as error:
            if store.newer_schema(place):
                raise  # a leaderboard without the newest runs would look complete
            skipped(str(error))
    if not runs:
        raise UsageError(
            f"there are no runs in {store.runs_folder}. harness run --method kfade --bench tofu10 makes one "
            "(--results DIR looks elsewhere)."
        )
    return runs


def _run(place: str, link: str, result: RunResult) -> Run:
    last = result.points[-1] if result.points else None
    made = result.provenance
    return Run(
        spec=result.spec,
        folder=place,
        link=link,
        status=result.status,
        error=result.error.strip().partition("\n")[0],
        selection=result.selection,
        notes=result.notes,
        step=last.step if last else 0,
        index=last.index if last else -1,
        last={m.metric: m for m in last.measurements} if last else {},
        oracle=_oracle(result.points, roles_of(result.spec.bench).oracle_score),
        arms=result.arms,
        cost=result.costs.get("unlearning"),
        command=made.command if made else "",
        machine=f"{made.gpu or made.processor}, {result.spec.dtype}" if made else "",
        weights=made.weights if made else "",
        kind=in_words(made.arithmetic) if made else "",
    )


def _oracle(points: Sequence[Point], factors: Sequence[str]) -> Oracle | None:
    """The point where the product of some metrics is largest, the earliest of equal ones."""
    measured: list[Oracle] = []
    for point in points if len(points) > 1 and factors else ():
        values = {m.metric: m.value for m in point.measurements if isinstance(m, Measurement)}
        if values.keys() >= set(factors):
            measured.append((point.step, tuple(values[name] for name in factors)))
    return max(measured, key=lambda at: prod(at[1]), default=None)


# ---------------------------------------------------------------- what may be compared


@dataclass(frozen=True)
class Value:
    """One metric of a row: the median over its seeds."""

    found: Measurement
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
        found = self.values.get(metric)
        return found.value if isinstance(found, Value) else None

    def cost(self, what: Literal["seconds", "full_seconds", "peak_bytes"]) -> float | None:
        """The median over the seeds."""
        found = [getattr(run.cost, what) for run in self.runs if run.cost]
        return median(found) if found else None

    @property
    def oracle(self) -> tuple[str, tuple[float, ...]] | None:
        """Steps, and the medians over the seeds of the numbers at each run's best point."""
        found = [run.oracle for run in self.runs if run.oracle]
        if not found:
            return None
        steps = sorted({at[0] for at in found})
        told = str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return told, tuple(median(of) for of in zip(*(at[1] for at in found), strict=True))


@dataclass
class Section:
    """One table: everything in it may be compared."""

    identity: Mapping[str, object]
    """What all its runs share; two sections differ in at least one of these."""
    rows: Sequence[Row]
    """Methods with their settings; by protocol, then the best of the ranking metric first."""
    arms: Mapping[str, Mapping[str, Measurement | Absent]]
    """The two reference arms."""
    unfinished: Sequence[Run]
    """Failed and interrupted runs."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know."""
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

    def title(self, metric: str) -> str:
        """A metric's heading: of the headline as it is declared, of others their name."""
        return title_of(metric) if metric in self.roles.headline else metric.replace("_", " ")

    def example(self, metric: str) -> Measurement | None:
        """A measurement of it, for what all of them share."""
        return next((v.found for row in self.rows if isinstance(v := row.values.get(metric), Value)), None)


NAME = ("benchmark", "model", "variant", "retain set")
"""What of a table's identity stands in its heading."""
IDENTITY: Mapping[str, Callable[[RunSpec], object]] = {
    "benchmark": lambda spec: spec.bench,
    "model": lambda spec: spec.model,
    "variant": lambda spec: spec.variant,
    "retain set": lambda spec: spec.retain,
    "benchmark version": lambda spec: spec.bench_version,
    "weights": lambda spec: digest(spec.sources.get("base"))[:8],
    "rows per split": lambda spec: spec.limit or "all",
    "data": lambda spec: digest(spec.data)[:8],
    "retrained models": lambda spec: digest(
        [{k: v for k, v in spec.sources.items() if k.startswith("retain-")}, spec.references]
    )[:8],
    "template": lambda spec: digest(spec.template)[:8],
}
"""What numbers must share to be compared, besides the versions of the metrics."""


def sections(runs: Iterable[Run]) -> list[Section]:
    """Runs sorted into tables of what may be compared, by name."""
    alike: dict[str, tuple[dict[str, object], list[Run]]] = {}
    for run in runs:
        identity = {name: of(run.spec) for name, of in IDENTITY.items()}
        alike.setdefault(canonical(identity), (identity, []))[1].append(run)
    found = [part for identity, group in alike.values() for part in _by_versions(identity, group)]
    found.sort(key=lambda section: [str(value) for value in section.identity.values()])
    for section in found:
        others = [other for other in found if other is not section and other.name == section.name]
        differing = [n for n in section.identity if any(o.identity.get(n) != section.identity[n] for o in others)]
        if differing:
            told = ", ".join(f"{n} ({section.identity[n]} here)" for n in differing)
            tables = "another table" if len(others) == 1 else f"{len(others)} other tables"
            section.notes.append(f"Not to be compared with {tables} of this benchmark and model; they differ in: {told}.")
    return found


def _by_versions(identity: Mapping[str, object], runs: Sequence[Run]) -> list[Section]:
    """Numbers of one name and different versions are different numbers: each version gets a table of its own."""
    seen: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        for name, version in run.versions.items():
            seen[name].add(version)
    mixed = sorted(name for name, versions in seen.items() if len(versions) > 1)
    parts: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        told = ", ".join(f"{name} {run.versions.get(name, 'absent')}" for name in mixed)
        parts[told].append(run)
    return [_section({**identity, **({"metric versions": told} if mixed else {})}, part) for told, part in parts.items()]


def _section(identity: Mapping[str, object], runs: Sequence[Run]) -> Section:
    alike: dict[str, list[Run]] = defaultdict(list)
    roles = roles_of(str(identity["benchmark"]))
    for run in runs:
        if run.counts:
            alike[canonical([_setting(run), run.selection])].append(run)
    rows = []
    for group in alike.values():
        group.sort(key=lambda run: run.spec.seed)
        metrics = dict.fromkeys(metric for run in group for metric in run.last)
        rows.append(Row(group, {metric: _value(metric, group, roles.ranking) for metric in metrics}))
    for method in {row.method for row in rows}:
        _tell_apart([row for row in rows if row.method == method])
    why_not = _rank(rows, roles.ranking)
    rows.sort(key=lambda row: _order(row, roles))
    arms: dict[str, Mapping[str, Measurement | Absent]] = {}
    for run in runs:
        for arm, measured in run.arms.items():
            if len(measured) > len(arms.get(arm, ())):
                arms[arm] = {m.metric: m for m in measured}
    section = Section(identity, rows, arms, [run for run in runs if not run.counts])
    section.notes += sorted({note for run in runs for note in run.notes})
    if why_not:
        section.notes.append(f"Not ranked on {in_text(title_of((*roles.forgetting, roles.ranking)[0]))}: {why_not}.")
    elif rows and all(noise_floor(row, roles.ranking) is None for row in rows) and roles.ranking in section.metrics:
        section.notes.append("No noise floor: it takes two retrained models to say what two of them differ by.")
    declared = [
        match[1] for m in section.metrics if (e := section.example(m)) and e.better == "lower" and (match := metric_of(m))
    ]
    for chance in sorted({metric.chance for metric in declared if metric.chance is not None}):
        section.notes.append(f"Accuracies that are to fall end at chance ({chance}): below it nothing more is forgotten.")
    reasons = {(m.metric, m.reason) for row in rows for m in row.values.values() if isinstance(m, Absent)}
    section.notes += [f"Absent: {metric}: {reason}" for metric, reason in sorted(reasons)]
    if (models := len({run.weights for run in runs if run.weights})) > 1:
        kinds = sorted({run.kind for run in runs if run.kind})
        which = f": {'; '.join(kinds)}" if len(kinds) > 1 else ", say"
        section.notes.append(
            f"These runs began with {models} models that one recipe made (on different kinds of processor{which}): what they "
            "differ by is not the methods' alone."
        )
    machines = sorted({run.machine for run in runs if run.machine})
    if machines:
        section.notes.append(f"Times and memory are those of: {'; '.join(machines)}.")
    return section


def _setting(run: Run) -> dict[str, Any]:
    """All of a spec that does not name its table, seed left out."""
    shared = (
        "bench",
        "bench_version",
        "model",
        "variant",
        "retain",
        "limit",
        "data",
        "sources",
        "references",
        "template",
        "seed",
        "form",
    )
    return {f.name: getattr(run.spec, f.name) for f in fields(run.spec) if f.name not in shared}


def _tell_apart(rows: Sequence[Row]) -> None:
    """Say of each row what the other rows of its method have otherwise, protocol and seed left out."""
    told = []
    for row in rows:
        setting = _setting(row.runs[0])
        flat = {**{k: v for k, v in setting.items() if k != "config"}, **setting["config"]}
        told.append({name: canonical(value) for name, value in flat.items()})
    names = sorted({name for each in told for name in each})
    for row, each in zip(rows, told, strict=True):
        differing = [n for n in names if len({other.get(n) for other in told}) > 1]
        row.settings = ", ".join(f"{n}={each[n].strip(chr(34))}" for n in differing if n in each)


def _value(metric: str, runs: Sequence[Run], ranking: str) -> Value | Absent:
    found = [m for run in runs if isinstance(m := run.last.get(metric), Measurement)]
    if not found:
        absent = (m for run in runs if isinstance(m := run.last.get(metric), Absent))
        return next(absent, Absent(metric=metric, reason="it was not measured"))
    values = [m.value for m in found]
    intervals = [m.interval_95 for m in found if m.interval_95]
    across = [m.across_references for m in found if m.across_references]
    floor = max((m.floor for m in found if m.floor is not None), default=None)
    middle = median(values)
    return Value(
        found=found[0],
        value=middle,
        seeds=len(values),
        seed_low=min(values),
        seed_high=max(values),
        interval=(median(i[0] for i in intervals), median(i[1] for i in intervals)) if intervals else None,
        across=(min(a[0] for a in across), max(a[1] for a in across)) if across else None,
        floor=floor,
        tie=metric == ranking and floor is not None and middle <= floor,
    )


def noise_floor(row: Row, ranking: str) -> float | None:
    """Of the metric that ranks."""
    found = row.values.get(ranking)
    return found.floor if isinstance(found, Value) else None


def _rank(rows: Sequence[Row], ranking: str) -> str:
    """Give each row its rank among those of its protocol; says why where the measurements forbid it."""
    distances = [(row, v) for row in rows if isinstance(v := row.values.get(ranking), Value)]
    told = (m.note.partition(f"{NOT_RANKED}: ")[2] for row, _ in distances for m in measured(row, ranking) if m.note)
    why_not = next(filter(None, told), "")
    rivals: dict[Protocol, list[tuple[bool, float]]] = defaultdict(list)
    for row, found in distances:
        if row.method not in REFERENCE_ARMS:
            rivals[row.protocol].append((not found.tie, found.value))
    for each in rivals.values():
        each.sort()
    for row, found in distances:
        if row.method in REFERENCE_ARMS:
            row.rank = "reference"
        elif why_not:
            row.rank = "not ranked"
        else:
            row.rank = "tie" if found.tie else str(1 + bisect_left(rivals[row.protocol], (True, found.value)))
    return why_not


def measured(row: Row, metric: str) -> list[Measurement]:
    """What each of its seeds measured, where it did."""
    return [m for run in row.runs if isinstance(m := run.last.get(metric), Measurement)]


def _order(row: Row, roles: MetricRoles) -> tuple[Any, ...]:
    """Ties are not ranked further, so that what was kept sorts them; others by distance."""
    found = row.values.get(roles.ranking)
    distance = found.value if isinstance(found, Value) else float("inf")
    tie = isinstance(found, Value) and found.tie
    kept = row.number(roles.kept[0]) if roles.ranking and roles.kept else None
    order = (*PROTOCOLS,).index(row.protocol)
    return (order, 0.0 if tie else 1 + distance, 0.0 if kept is None else -kept, row.method, row.runs[0].folder)


def differences_of(section: Section, store: Store) -> dict[Protocol, Sequence[Difference]]:
    """What the methods of each form differ by on the same rows, each with each; one family of comparisons for each form.

    Settings by hand are not compared, nor are the reference arms: the more is asked, the less is told apart.
    """
    found: dict[Protocol, Sequence[Difference]] = {}
    for form in FORMS:
        rows = [row for row in section.rows if row.protocol == form and row.method not in REFERENCE_ARMS]
        names = [row.method if not row.settings else f"{row.method} ({row.settings})" for row in rows]
        alone = len({row.method for row in rows}) == len(rows)
        if not 1 < len(rows) <= MOST_COMPARED:
            continue
        measured = {
            (row.method if alone else name): [(run.spec, run.index) for run in row.runs]
            for name, row in zip(names, rows, strict=True)
        }
        if of_form := differences(measured, store):
            found[form] = of_form
    return found


def single(item: Measurement | Absent) -> Value | Absent:
    """A reference arm's measurement as a row's; it ties with nothing."""
    if isinstance(item, Absent):
        return item
    return Value(item, item.value, 1, item.value, item.value, item.interval_95, item.across_references, item.floor, tie=False)
