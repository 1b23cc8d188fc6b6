"""What a person sees of one run on a terminal: the headline on the first screen, everything on request. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.costs import Phase
from harness.core.measurement import Absent, Measurement
from harness.reading.added import added
from harness.reading.budget_table import budget_table, where_it_stands
from harness.reading.columns import Columns
from harness.reading.formats import NO_NUMBER, arrow, gibibytes, interval, number, of_unit, seconds
from harness.storage.records import Point, RunResult

Values = Mapping[str, Measurement | Absent]
FIRST = 5
"""Metrics on the first screen."""


def by_name(measurements: Iterable[Measurement | Absent]) -> Values:
    """Measurements by metric name."""
    return {m.metric: m for m in measurements}


def at_last(result: RunResult) -> Values:
    """What the last point measured."""
    return by_name(result.points[-1].measurements) if result.points else {}


def first_screen(result: RunResult) -> RenderableType:
    """The benchmark's headline of a run between its references, at most 80 columns wide, and how to see the rest.

    The metrics are the first ones of the benchmark's headline that were measured, or of all where none of it was; and of those
    of plug-ins that it does not know.
    """
    values, parts = at_last(result), _head(result)
    if result.spec.budgets:
        rest = Text(f"all metrics, notes, settings and the command: harness show {result.spec.run_id}")
        return Group(*parts, budget_table([result]), *map(_dim, _cost(result.costs.get("unlearning"))), rest)
    headline = [metric for metric in roles_of(result.spec.bench).headline if metric in values]
    beside = added(result.spec.bench, values)
    shown = [*dict.fromkeys([*(headline or values)][:FIRST] + beside[:FIRST])]
    if shown:
        references = {name: by_name(measured) for name, measured in result.references.items()}
        table = Columns(("metric", result.spec.method, *references))
        for metric in shown:
            value = values[metric]
            sign = arrow(value.better) if isinstance(value, Measurement) else ""
            table.add_row(f"{metric} {sign}".strip(), _main(value), *(_plain(of.get(metric)) for of in references.values()))
        parts.append(table)
        parts += [_dim(line) for line in (*_reached(result), *_remarks({metric: values[metric] for metric in shown}))]
        parts += [_dim(line) for line in _floor(values.get(roles_of(result.spec.bench).ranking), shown)]
    left = len(values) - len(shown)
    more = f"{left} more metric{'s' * (left > 1)}, all notes" if left else "all notes"
    parts += [_dim(line) for line in (f"settings: {result.selection}", *_cost(result.costs.get("unlearning")))]
    parts.append(Text(f"{more}, settings and the command: harness show {result.spec.run_id}"))
    return Group(*parts)


def run_report(result: RunResult) -> RenderableType:
    """Everything that is recorded of one run's measurements."""
    spec, parts = result.spec, _head(result)
    if spec.budgets:
        references = {name: by_name(measured) for name, measured in result.references.items()}
        tables = [
            measurement_table({spec.method: by_name(point.measurements), **references}, where_it_stands(point))
            for point in result.points
        ]
        notes = map(_dim, (*_trial(result), *_costs(result.costs)))
        return Group(*parts, budget_table([result]), *tables, *notes)
    if len(result.points) > 1:
        measured = by_name(result.points[0].measurements)
        parts.append(_trajectory(result.points, [*roles_of(spec.bench).trajectory, *added(spec.bench, measured)]))
    parts += [_dim(line) for line in _reached(result)]
    if result.points:
        last = result.points[-1]
        columns = {spec.method: by_name(last.measurements)}
        columns |= {name: by_name(measured) for name, measured in result.references.items()}
        title = f"after {last.step} steps" if last.step != 1 else "after 1 step"
        parts.append(measurement_table(columns, title if len(result.points) > 1 else None))
        parts += [_dim(line) for line in _footnotes(result, columns[spec.method], last)]
    parts += [_dim(line) for line in _costs(result.costs)]
    return Group(*parts)


def measurement_table(columns: Mapping[str, Values], title: str | None = None, digits: int = 3) -> Columns:
    """Measurements side by side, the first column's with interval, direction and noise floor.

    Args:
        columns: heading → its measurements; the first one is the subject.
        title: above the table.
        digits: after the decimal point.
    """
    (subject, values), *others = columns.items()
    names = [name for name, _ in others]
    table = Columns(("metric", subject, "95 % interval", *names, "better", "noise floor", "n"), title)
    for metric, value in values.items():
        if isinstance(value, Absent):
            table.add_row(metric, "absent", *[""] * (4 + len(others)), style="dim")
            continue
        ends = interval(*value.interval_95, digits) if value.interval_95 else NO_NUMBER
        better = "→ retrained" if value.better == "closer" else arrow(value.better)
        cells = [_cell(other.get(metric), digits) for _, other in others]
        table.add_row(metric, _cell(value, digits), ends, *cells, better, number(value.floor, digits), str(value.n))
    return table


def _head(result: RunResult) -> list[RenderableType]:
    spec = result.spec
    head = Text.assemble(
        (f"{spec.method}", "bold"), f" on {spec.bench} · model {spec.model} · seed {spec.seed} · run ", (spec.run_id, "bold")
    )
    if result.status == "done":
        return [head]
    return [head, Text(f"{result.status}: {result.error.splitlines()[0] if result.error else 'not finished'}", style="red")]


def _dim(line: str) -> Text:
    return Text(line, style="dim")


def _plain(value: Measurement | Absent | None) -> str:
    """The number alone."""
    return of_unit(value.value, value.unit) if isinstance(value, Measurement) else "absent" if value else NO_NUMBER


def _main(value: Measurement | Absent) -> str:
    """The number with its interval."""
    ends = value.interval_95 if isinstance(value, Measurement) else None
    return f"{_plain(value)} [{interval(*ends)}]" if ends else _plain(value)


def _cell(value: Measurement | Absent | None, digits: int) -> str:
    if not isinstance(value, Measurement):
        return NO_NUMBER
    text = of_unit(value.value, value.unit, digits)
    # What is computed against a retrained model depends on which one, so all of them are shown.
    if value.reference is None and value.across_references and len(set(value.across_references)) > 1:
        low, high = (of_unit(end, value.unit) for end in value.across_references)
        text += f"\n({low} to {high})"
    return text


def _floor(ranked: Measurement | Absent | None, shown: Sequence[str]) -> Iterable[str]:
    if isinstance(ranked, Measurement) and ranked.floor is not None and ranked.metric in shown:
        yield f"{ranked.metric}: two retrained models differ by {number(ranked.floor)}, its noise floor"


def _trajectory(points: Sequence[Point], metrics: Sequence[str]) -> Columns:
    measured = by_name(points[0].measurements)
    shown = [m for m in metrics if m in measured] or list(measured)
    table = Columns(("step", *shown), "every measured point", left=())
    for point in points:
        values = by_name(point.measurements)
        table.add_row(str(point.step), *(_plain(values.get(metric)) for metric in shown))
    return table


def _reached(result: RunResult) -> Iterable[str]:
    """The first measured point at which enough was forgotten, by the metric that the benchmark marks it with."""
    metric, points = roles_of(result.spec.bench).reached, result.points
    values = [by_name(point.measurements).get(metric) for point in points]
    marks = [value.value if isinstance(value, Measurement) else None for value in values]
    if 1 in marks:
        first, epochs = points[marks.index(1)], result.spec.settings.get("epochs")
        # A point is measured after every epoch, so that steps are as many to each.
        counted = isinstance(epochs, int) and not isinstance(epochs, bool) and len(points) == epochs
        place = f"{marks.index(1) + 1} of {epochs} epochs" if counted else f"step {first.step} of {points[-1].step}"
        yield f"{metric}: after {place}"
    elif 0 in marks:
        yield f"{metric}: at none of the measured points"


def _remarks(values: Values) -> Iterable[str]:
    """Why there is no number, or what a reader could stumble over; of metrics of which the same is said, once."""
    remarks: dict[str, list[str]] = {}
    for metric, value in values.items():
        if remark := f"absent: {value.reason}" if isinstance(value, Absent) else value.note:
            remarks.setdefault(remark, []).append(metric)
    yield from (f"{', '.join(metrics)}: {remark}" for remark, metrics in remarks.items())


def _footnotes(result: RunResult, values: Values, last: Point) -> Iterable[str]:
    if result.references.get("retrained"):
        known = any(isinstance(value, Measurement) and value.floor is not None for value in values.values())
        yield (
            "retrained: the model that never saw the forget set; forget quality compares with it, so it scores 1 against "
            "itself (in brackets: against each retrained model). "
            + (
                "Noise floor: what two retrained models differ by."
                if known
                else "No noise floor: it takes two retrained models."
            )
        )
    yield from _remarks(values)
    yield f"settings: {result.selection}"
    yield from _trial(result)
    if "measured_kl" in last.logged:
        yield (
            f"KL on retain rows: measured {number(last.logged['measured_kl'])}, predicted α²/2 = "
            f"{number(last.logged['predicted_kl'])} nats per token, step size {number(last.logged['step_size'])}"
        )
    for note in result.notes:
        yield f"note: {note}"


def _trial(result: RunResult) -> Iterable[str]:
    if trial := result.trial:
        by = f"chosen by {trial.metric}" if trial.metric else "nothing chosen"
        yield f"try {trial.index + 1} of {trial.tries} ({trial.search}), {by} on {trial.split}"


def _time(phase: Phase) -> str:
    full = f" ({seconds(phase.full_seconds)} with nothing cached)" if phase.full_seconds > phase.seconds + 0.05 else ""
    return f"{seconds(phase.seconds)}{full}"


def _cost(unlearning: Phase | None) -> Iterable[str]:
    """Of unlearning alone."""
    if unlearning:
        yield f"unlearning: {_time(unlearning)}, {gibibytes(unlearning.peak_bytes)} at most"


def _costs(costs: Mapping[str, Phase]) -> Iterable[str]:
    if not costs:
        return
    phases = [f"{name} {_time(phase)}" for name, phase in costs.items()]
    yield f"time: {', '.join(phases)}; peak memory {gibibytes(max(phase.peak_bytes for phase in costs.values()))}"
