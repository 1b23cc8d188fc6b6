"""What may be compared: runs into tables, of one benchmark, model and data, and one version of every metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from statistics import median
from typing import Any, get_args

from harness.core.benchmark import roles_of
from harness.core.evaluator import metric_of, title_of
from harness.core.measurement import Absent, Difference, Measurement
from harness.core.metric import in_text
from harness.core.options import Preset, Protocol
from harness.reading.compared import Run
from harness.reading.differences import differences
from harness.reading.ranking import noise_floor, order, rank
from harness.reading.rows import REFERENCE_METHODS, Row, Section, Value
from harness.storage.cache import canonical
from harness.storage.identity import FIELDS, IDENTITY
from harness.storage.store import Store

FORMS: Sequence[Protocol] = get_args(Preset)
"""Protocols whose methods are compared each with each."""

MOST_COMPARED = 30
"""With more rows of one form than these nothing is compared each with each."""


def sections(runs: Iterable[Run]) -> list[Section]:
    """Runs sorted into tables of what may be compared, by name."""
    alike: dict[str, tuple[dict[str, object], list[Run]]] = {}
    for run in runs:
        identity = {part.title: part.shown(run.spec) for part in IDENTITY}
        alike.setdefault(canonical(identity), (identity, []))[1].append(run)
    tables = [table for identity, group in alike.values() for table in _by_versions(identity, group)]
    tables.sort(key=lambda section: [str(value) for value in section.identity.values()])
    for index, section in enumerate(tables, 1):
        section.index = index
        others = [other for other in tables if other is not section and other.name == section.name]
        differing = [n for n in section.identity if any(o.identity.get(n) != section.identity[n] for o in others)]
        if differing:
            parts = ", ".join(f"{n} ({section.identity[n]} here)" for n in differing)
            which = "another table" if len(others) == 1 else f"{len(others)} other tables"
            section.notes.append(f"Not to be compared with {which} of this benchmark and model; they differ in: {parts}.")
    return tables


def _by_versions(identity: Mapping[str, object], runs: Sequence[Run]) -> list[Section]:
    """Numbers of one name and different versions are different numbers: each version gets a table of its own."""
    seen: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        for name, version in run.versions.items():
            seen[name].add(version)
    mixed = sorted(name for name, versions in seen.items() if len(versions) > 1)
    parts: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        parts[", ".join(f"{name} {run.versions.get(name, 'absent')}" for name in mixed)].append(run)
    return [
        _section({**identity, **({"metric versions": versions} if mixed else {})}, part) for versions, part in parts.items()
    ]


def _section(identity: Mapping[str, object], runs: Sequence[Run]) -> Section:
    roles = roles_of(str(identity["benchmark"]))
    rows = _rows(runs, roles.ranking)
    why_not = rank(rows, roles.ranking)
    rows.sort(key=lambda row: order(row, roles))
    references: dict[str, Mapping[str, Measurement | Absent]] = {}
    for run in runs:
        for name, measured in run.references.items():
            if len(measured) > len(references.get(name, ())):
                references[name] = {m.metric: m for m in measured}
    section = Section(identity, rows, references, [run for run in runs if not run.counts])
    notes = sorted({note for run in runs for note in run.notes})
    section.notes += [*notes, *_notes(section, why_not), *_notes_on_runs(section, runs)]
    return section


def _rows(runs: Sequence[Run], ranking: str) -> list[Row]:
    """One for each method with its settings; of runs that are done."""
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.counts:
            alike[canonical([_setting(run), run.selection])].append(run)
    rows = []
    for group in alike.values():
        group.sort(key=lambda run: run.spec.seed)
        metrics = dict.fromkeys(metric for run in group for metric in run.last)
        rows.append(Row(group, {metric: _value(metric, group, ranking) for metric in metrics}))
    for method in {row.method for row in rows}:
        _tell_apart([row for row in rows if row.method == method])
    return rows


def _notes(section: Section, why_not: str) -> list[str]:
    """What a reader must know of the numbers: what ranks, where chance lies."""
    roles, notes = section.roles, []
    if why_not:
        notes.append(f"Not ranked on {in_text(title_of((*roles.forgetting, roles.ranking)[0]))}: {why_not}.")
    elif section.rows and roles.ranking in section.metrics and all(noise_floor(r, roles.ranking) is None for r in section.rows):
        notes.append("No noise floor: it takes two retrained models to say what two of them differ by.")
    falling = [m for m in section.metrics if (example := section.example(m)) and example.better == "lower"]
    declared = [match[1] for metric in falling if (match := metric_of(metric))]
    for chance in sorted({metric.chance for metric in declared if metric.chance is not None}):
        notes.append(f"Accuracies that are to fall end at chance ({chance}): below it nothing more is forgotten.")
    return notes


def _notes_on_runs(section: Section, runs: Sequence[Run]) -> list[str]:
    """What a reader must know of the runs: what is absent, on what they were made."""
    notes = []
    reasons = {(m.metric, m.reason) for row in section.rows for m in row.values.values() if isinstance(m, Absent)}
    notes += [f"Absent: {metric}: {reason}" for metric, reason in sorted(reasons)]
    if (models := len({run.weights for run in runs if run.weights})) > 1:
        kinds = sorted({run.kind for run in runs if run.kind})
        which = f": {'; '.join(kinds)}" if len(kinds) > 1 else ", say"
        notes.append(
            f"These runs began with {models} models that one recipe made (on different kinds of processor{which}): what they "
            "differ by is not the methods' alone."
        )
    machines = sorted({run.machine for run in runs if run.machine})
    if machines:
        notes.append(f"Times and memory are those of: {'; '.join(machines)}.")
    return notes


def _setting(run: Run) -> dict[str, Any]:
    """All of a spec that does not name its table, seed left out."""
    return {f.name: getattr(run.spec, f.name) for f in fields(run.spec) if f.name not in (*FIELDS, "seed", "form")}


def _tell_apart(rows: Sequence[Row]) -> None:
    """Say of each row what the other rows of its method have otherwise, protocol and seed left out."""
    settings = []
    for row in rows:
        setting = _setting(row.runs[0])
        flat = {**{k: v for k, v in setting.items() if k != "config"}, **setting["config"]}
        settings.append({name: canonical(value) for name, value in flat.items()})
    names = sorted({name for each in settings for name in each})
    differing = [n for n in names if len({each.get(n) for each in settings}) > 1]
    for row, each in zip(rows, settings, strict=True):
        row.settings = ", ".join(f"{n}={each[n].strip(chr(34))}" for n in differing if n in each)


def _value(metric: str, runs: Sequence[Run], ranking: str) -> Value | Absent:
    numbers = [m for run in runs if isinstance(m := run.last.get(metric), Measurement)]
    if not numbers:
        absent = (m for run in runs if isinstance(m := run.last.get(metric), Absent))
        return next(absent, Absent(metric=metric, reason="it was not measured"))
    values = [m.value for m in numbers]
    intervals = [m.interval_95 for m in numbers if m.interval_95]
    across = [m.across_references for m in numbers if m.across_references]
    floor = max((m.floor for m in numbers if m.floor is not None), default=None)
    middle = median(values)
    return Value(
        example=numbers[0],
        value=middle,
        seeds=len(values),
        seed_low=min(values),
        seed_high=max(values),
        interval=(median(i[0] for i in intervals), median(i[1] for i in intervals)) if intervals else None,
        across=(min(a[0] for a in across), max(a[1] for a in across)) if across else None,
        floor=floor,
        tie=metric == ranking and floor is not None and middle <= floor,
    )


def differences_of(section: Section, store: Store) -> dict[Protocol, Sequence[Difference]]:
    """What the methods of each form differ by on the same rows, each with each; one family of comparisons for each form.

    Settings by hand are not compared, nor are the references: the more is asked, the less is told apart.
    """
    by_preset: dict[Protocol, Sequence[Difference]] = {}
    for form in FORMS:
        rows = [row for row in section.rows if row.protocol == form and row.method not in REFERENCE_METHODS]
        names = [row.method if not row.settings else f"{row.method} ({row.settings})" for row in rows]
        alone = len({row.method for row in rows}) == len(rows)
        if not 1 < len(rows) <= MOST_COMPARED:
            continue
        measured = {
            (row.method if alone else name): [(run.spec, run.index) for run in row.runs]
            for name, row in zip(names, rows, strict=True)
        }
        if pairs := differences(measured, store):
            by_preset[form] = pairs
    return by_preset
