"""Several methods side by side on a terminal, at their last points, with what they differ by on the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from rich.console import Group, RenderableType
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.evaluator import metric_of, title_of
from harness.core.measurement import Absent, Difference, Measurement
from harness.core.metric import MetricRoles, in_text
from harness.reading.added import added
from harness.reading.budget_table import budget_table, met_in_short
from harness.reading.columns import Columns
from harness.reading.differences import LEVEL
from harness.reading.formats import NO_NUMBER, arrow, gibibytes, interval, number, of_unit, seconds
from harness.reading.run_report import Values, at_last, by_name
from harness.storage.records import Point, RunResult


def comparison(results: Sequence[RunResult], differences: Sequence[Difference] = ()) -> RenderableType:
    """Several methods on one benchmark and model side by side, at their last points, between the two references.

    Args:
        results: of each method.
        differences: by how much they differ from one of them, on the same rows.
    """
    if any(result.spec.budgets for result in results):
        return budget_table(results)
    first = next((result for result in results if result.references), results[0])
    spec, roles, shown = first.spec, roles_of(first.spec.bench), _shown(results)
    kept = roles.kept if set(roles.brief) & shown.keys() else ()
    oracle = ["best on the way*"] if roles.oracle_score and set(roles.oracle_score) <= shown.keys() else []
    title = f"{spec.bench} · model {spec.model} · seed {spec.seed}"
    table = Columns(("", *(f"{name} {sign}".strip() for name, sign in shown.values()), *oracle, "time", "memory"), title)
    for name, measured in first.references.items():
        table.add_row(name, *_cells(by_name(measured), shown, kept), *("" for _ in oracle), "", "", style="dim")
    table.sections.append(len(table.rows))
    for result in results:
        if result.points:
            phase = result.costs.get("unlearning")
            costs = (seconds(phase.full_seconds), gibibytes(phase.peak_bytes)) if phase else (NO_NUMBER, NO_NUMBER)
            best = [_best(result.points, roles.oracle_score) for _ in oracle]
            style = None if result.status == "done" else "red"
            table.add_row(result.spec.method, *_cells(at_last(result), shown, kept), *best, *costs, style=style)
    for result in results:
        if not result.points:
            table.add_row(result.spec.method, result.status, *[""] * (len(table.headings) - 2), style="red")
    notes = [f"{result.spec.method} {result.status}: {result.error.splitlines()[0]}" for result in results if result.error]
    notes += _reading(results, shown, roles, bool(oracle))
    notes.append("settings: " + "; ".join(sorted({r.selection.replace(f" of {r.spec.method} ", " ") for r in results})))
    notes += [f"note: {note}" for note in first.notes]
    return Group(table, *([_differences(differences)] if differences else []), *(Text(note, style="dim") for note in notes))


def _reading(results: Sequence[RunResult], shown: Mapping[str, object], roles: MetricRoles, oracle: bool) -> Iterable[str]:
    """What is needed to read the table."""
    distance = next((values[roles.ranking] for r in results if roles.ranking in (values := at_last(r))), None)
    if isinstance(distance, Measurement) and distance.floor is not None:
        yield (
            f"{title_of(roles.ranking)}s at or under {number(distance.floor)} are ties: two retrained models differ by as "
            f"much. In brackets: {in_text(title_of(roles.forgetting[0]))} against each retrained model; "
            f"{in_text(title_of(roles.kept[0]))}'s 95 % interval, by author. → is best closest to retrained."
        )
    if not set(roles.brief) & shown.keys():
        yield "In brackets: the 95 % interval."
    if oracle:
        names = [in_text(title_of(metric)) for metric in roles.oracle_score]
        yield (
            f"* the point with the largest {' × '.join(names)}, found by looking at the rows that are reported (an "
            f"oracle): its step, {', '.join(names)}"
        )


def _differences(differences: Sequence[Difference]) -> RenderableType:
    """Each method minus the one that all are compared with."""
    metrics, methods = dict.fromkeys(each.metric for each in differences), dict.fromkeys(each.first for each in differences)
    cells = {(each.first, each.metric): each for each in differences}
    headings = [f"{heading(metric)[0]} difference" for metric in metrics]
    table = Columns(("", *headings), f"less {differences[0].second}")
    for method in methods:
        of_method = [cells.get((method, metric)) for metric in metrics]
        table.add_row(method, *[NO_NUMBER if each is None else _difference(each) for each in of_method])
    reading = (
        "95 % interval by resampling whole authors or groups of questions, the same for both methods; *: not 0 at "
        f"{100 * LEVEL:g} % (Holm, {len(differences)} comparisons). How much seeds differ is not in it."
    )
    return Group(table, Text(reading, style="dim"))


def _difference(each: Difference) -> str:
    star = "*" if each.p_corrected <= LEVEL else ""
    return f"{number(each.value, signed=True)}{star}\n({interval(each.low, each.high, signed=True)})"


def _shown(results: Sequence[RunResult]) -> dict[str, tuple[str, str]]:
    """The metrics that are compared, with heading and arrow: the benchmark's, or all that were measured if none was."""
    measured = {metric: value for result in results for metric, value in at_last(result).items()}
    brief = roles_of(results[0].spec.bench).brief
    if brief and (not measured or measured.keys() & set(brief)):
        return {metric: heading(metric) for metric in (*brief, *added(results[0].spec.bench, measured))}
    signs = {metric: arrow(value.better) if isinstance(value, Measurement) else "" for metric, value in measured.items()}
    return {metric: (metric.replace("_", " "), sign) for metric, sign in signs.items()}


def heading(metric: str) -> tuple[str, str]:
    """A metric's heading and arrow, as it is declared."""
    match = metric_of(metric)
    return (match[1].short if match else "") or in_text(title_of(metric)), arrow(match[1].better) if match else ""


def _cells(values: Values, shown: Iterable[str], kept: Sequence[str]) -> list[str]:
    """The cells of some metrics: with the range over references, and the interval of what was kept or of all."""
    return [_cell(values.get(metric), metric in kept or not kept) for metric in shown]


def _cell(value: Measurement | Absent | None, with_interval: bool) -> str:
    if not isinstance(value, Measurement):
        return "absent" if value else NO_NUMBER
    text = of_unit(value.value, value.unit)
    if value.unit == "p-value" and value.across_references:
        low, high = (of_unit(end, value.unit) for end in value.across_references)
        text += f"\n({low} to {high})" if value.across_references[0] != value.across_references[1] else ""
    if with_interval and value.interval_95:
        text += f"\n({interval(*value.interval_95)})"
    return text


def _best(points: Sequence[Point], factors: Sequence[str]) -> str:
    """The step and the numbers of the point with the largest product of some metrics; empty for a single point."""
    scored = []
    for point in points:
        measured = by_name(point.measurements)
        values = [value for metric in factors if isinstance(value := measured.get(metric), Measurement)]
        if len(values) == len(factors):
            scored.append((prod(value.value for value in values), point.step, values))
    if len(points) < 2 or not scored:
        return ""
    _, step, values = max(scored, key=lambda each: each[:2])
    return f"{', '.join(of_unit(value.value, value.unit) for value in values)}\nat step {step}"


def in_short(result: RunResult) -> str:
    """The last point's numbers that matter most, in a line: what was forgotten and kept, or all where there are neither.

    Of a run with budgets, which of them it met.
    """
    if result.spec.budgets:
        return met_in_short(result)
    values, roles = at_last(result), roles_of(result.spec.bench)
    names = {metric: in_text(title_of(metric)) for metric in (*roles.forgetting, *roles.kept)} if roles.brief else {}
    if not names or (values and not values.keys() & set(roles.brief)):
        names = {metric: metric.replace("_", " ") for metric in values}
    elif values:
        names |= {metric: metric.replace("_", " ") for metric in added(result.spec.bench, values)}
    return ", ".join(f"{name} {_number(values.get(metric))}" for metric, name in names.items())


def _number(value: Measurement | Absent | None) -> str:
    return of_unit(value.value, value.unit) if isinstance(value, Measurement) else NO_NUMBER
