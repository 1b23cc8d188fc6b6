"""Runs with budgets on a terminal: a row for each point, at the damage where it stands, and why a budget has none.

No point stands for such a run, so that nothing here shows its last one alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.evaluator import metric_of, title_of
from harness.core.measurement import Absent, Measurement
from harness.core.metric import in_text
from harness.reading.added import added
from harness.reading.columns import Columns
from harness.reading.formats import NO_NUMBER, arrow, number, of_unit, seconds
from harness.storage.records import Point, RunResult

OWN = "own"
"""What stands for the budget of a model that has a damage of its own, such as a retrained one."""
READING = (
    "damage: KL from the model before unlearning, nats per token, on rows that nothing trains on and nothing reports; a budget "
    "is met within 2 %."
)


def budget_table(results: Sequence[RunResult]) -> RenderableType:
    """Runs with budgets on one benchmark and model: a row a method and budget, between the references and the reasons.

    Args:
        results: of each method.
    """
    first = next((result for result in results if result.references), results[0])
    spec, shown = first.spec, _shown(results)
    seeds = sorted({result.spec.seed for result in results})
    title = f"{spec.bench} · model {spec.model} · seed {', '.join(map(str, seeds))} · at equal damage"
    table = Columns(("", "budget", "damage", *(f"{name} {sign}".strip() for name, sign in shown.values()), "time"), title)
    for name, items in first.references.items():
        cells = _cells({m.metric: m for m in items}, shown)
        table.add_row(name, "", "", *cells, "", style="dim")
    for result in results:
        table.sections.append(len(table.rows))
        for budget, point in at_budgets(result):
            measured = {m.metric: m for m in point.measurements} if point else {}
            cells = _cells(measured, shown) if point else ["absent", *[""] * (len(shown) - 1)]
            damage = number(point.damage) if point else NO_NUMBER
            cost = seconds(point.unlearn_seconds) if point else ""
            table.add_row(result.spec.method, budget, damage, *cells, cost, style=None if point else "dim")
    return Group(table, *(Text(note, style="dim") for note in (*_reasons(results), *_reading(results, shown))))


def at_budgets(result: RunResult) -> list[tuple[str, Point | None]]:
    """A run's budgets as they are written, in order, each with its point; one at its own damage stands behind them."""
    points = {f"{point.budget:g}": point for point in result.points if point.budget is not None}
    places: list[tuple[str, Point | None]] = [
        (budget, points.get(budget))
        for budget in (f"{each:g}" for each in result.spec.budgets)
        if budget in points or budget in result.unreached
    ]
    return places + [(OWN, point) for point in result.points if point.budget is None]


def where_it_stands(point: Point) -> str:
    """A point's place, in words."""
    damage = f"a damage of {number(point.damage)}"
    return f"at {damage}" + (f" (budget {point.budget:g})" if point.budget is not None else " (its own)")


def met_in_short(result: RunResult) -> str:
    """Which budgets a run met and which not, in a line."""
    met = [f"{point.budget:g}" for point in result.points if point.budget is not None]
    own = [f"its own damage is {number(point.damage)}" for point in result.points if point.budget is None]
    parts = [f"met at {', '.join(met)}"] * bool(met) + own
    parts += [f"absent at {', '.join(result.unreached)}"] if result.unreached else []
    return "; ".join(parts) or "no point"


def _shown(results: Sequence[RunResult]) -> dict[str, tuple[str, str]]:
    """The benchmark's brief metrics that a point measured, with heading and arrow; all of them where it names none."""
    measured: dict[str, Measurement] = {}
    for result in results:
        for point in result.points:
            measured |= {m.metric: m for m in point.measurements if isinstance(m, Measurement)}
    bench = results[0].spec.bench
    names = [metric for metric in (*roles_of(bench).brief, *added(bench, measured)) if metric in measured]
    headings = {}
    for metric in dict.fromkeys(names or measured):
        match = metric_of(metric)
        name = ((match[1].short or in_text(title_of(metric))) if match else "") or metric.replace("_", " ")
        headings[metric] = (name, arrow(measured[metric].better))
    return headings


def _cells(measured: Mapping[str, Measurement | Absent], shown: Iterable[str]) -> list[str]:
    return [_cell(measured.get(metric)) for metric in shown]


def _cell(value: Measurement | Absent | None) -> str:
    return of_unit(value.value, value.unit) if isinstance(value, Measurement) else "absent" if value else NO_NUMBER


def _reasons(results: Sequence[RunResult]) -> Iterable[str]:
    """Why there is no point, and why no number."""
    for result in results:
        for budget, reason in result.unreached.items():
            yield f"{result.spec.method} at {budget}: absent: {reason}"
        for reason in dict.fromkeys(
            f"{m.metric}: absent: {m.reason}" for p in result.points for m in p.measurements if isinstance(m, Absent)
        ):
            yield f"{result.spec.method}: {reason}"
        if result.error:
            yield f"{result.spec.method} {result.status}: {result.error.splitlines()[0]}"


def _reading(results: Sequence[RunResult], shown: Mapping[str, object]) -> Iterable[str]:
    """What is needed to read the table."""
    yield READING
    ranking = roles_of(results[0].spec.bench).ranking
    every = [m for result in results for point in result.points for m in point.measurements]
    floors = [m.floor for m in every if isinstance(m, Measurement) and m.metric == ranking and m.floor is not None]
    if floors and ranking in shown:
        yield f"{title_of(ranking)}s at or under {number(max(floors))} are ties: two retrained models differ by as much."
    yield "settings: " + "; ".join(sorted({r.selection.replace(f" of {r.spec.method} ", " ") for r in results}))
    yield from (f"note: {note}" for note in dict.fromkeys(note for result in results for note in result.notes))
