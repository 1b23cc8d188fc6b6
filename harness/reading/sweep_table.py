"""A sweep's tries on a terminal, with their settings and numbers, the best by a metric first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from harness.core.benchmark import roles_of
from harness.core.config import written
from harness.core.evaluator import metric_of
from harness.core.measurement import Measurement
from harness.reading.added import added
from harness.reading.budget_table import OWN
from harness.reading.columns import Columns
from harness.reading.comparison_table import heading
from harness.reading.formats import NO_NUMBER, of_unit
from harness.reading.run_report import at_last
from harness.storage.records import RunResult

FACTS: Mapping[str, Callable[[RunResult], str]] = {
    "method": lambda result: result.spec.method,
    "benchmark": lambda result: result.spec.bench,
    "model": lambda result: result.spec.model,
    "retain": lambda result: result.spec.retain,
    "seed": lambda result: str(result.spec.seed),
    "status": lambda result: result.status,
    "budget": lambda result: _budget(result),
}
"""What tells a sweep's runs apart besides their settings."""


def sweep_table(settings: Sequence[Mapping[str, object]], results: Sequence[RunResult], by: str = "") -> RenderableType:
    """Every try with its settings and its numbers at the last point, the best by a metric first and what broke off last.

    What is the same in all tries stands in the title, and what another number contains is left out. A run with budgets has a
    row for each of its points, and the best at one budget stand together.

    Args:
        settings: what the grid set in each try.
        results: in the same order.
        by: the metric; the order of the tries if empty, or if no try measured it.
    """
    places = [(chosen, each) for chosen, result in zip(settings, results, strict=True) for each in _places(result)]
    settings, results = [chosen for chosen, _ in places], [each for _, each in places]
    measured = {metric for result in results for metric in at_last(result)}
    swept = _swept(results, measured)
    shown = _shown(measured, swept, by)
    order = sorted(places, key=lambda item: _at(item[1]))
    if by in measured:
        order.sort(key=lambda item: (_at(item[1]), _rank(item[1], by)))
    varied = list(dict.fromkeys(key for chosen in settings for key in chosen))
    facts = {name: [of(result) for _, result in order] for name, of in FACTS.items()}
    for name, usual in (("retain", "all"), ("status", "done"), ("budget", "")):
        if set(facts[name]) == {usual}:
            del facts[name]
    same = [name for name in ("benchmark", "model", "retain", "seed") if len(set(facts.get(name, ()))) == 1]
    title = " · ".join(f"{name} {facts.pop(name)[0]}" for name in same)
    headings = [" ".join(heading(metric) if metric in swept else (metric, "")).strip() for metric in shown]
    table = Columns(("run", *facts, *varied, *headings), title, left=range(100))
    for (chosen, result), *of_try in zip(order, *facts.values(), strict=True):
        settings_of_try = [written(chosen[key]) if key in chosen else "" for key in varied]
        table.add_row(result.spec.run_id, *of_try, *settings_of_try, *_cells(result, shown))
    if not by or by in measured:
        return table
    names = ", ".join(sorted(measured)) or "none"
    return Group(table, Text(f"no try measured '{by}'; in the order of the tries. Measured were: {names}", style="red"))


def _places(result: RunResult) -> list[RunResult]:
    """The run itself; of one with budgets, as many as it has points, each with one of them."""
    return [replace(result, points=[point]) for point in result.points] if result.spec.budgets and result.points else [result]


def _at(result: RunResult) -> float:
    """The budget that a row stands at; 0 for one without."""
    return (result.points[-1].budget or float("inf")) if result.spec.budgets and result.points else 0.0


def _budget(result: RunResult) -> str:
    budgets = [point.budget for point in result.points if result.spec.budgets]
    return "" if not budgets else OWN if budgets[-1] is None else f"{budgets[-1]:g}"


def _swept(results: Sequence[RunResult], measured: Collection[str]) -> list[str]:
    """The metrics that the benchmarks want to see of a sweep, and those of plug-ins that they do not know."""
    benches = dict.fromkeys(result.spec.bench for result in results)
    wanted = [metric for bench in benches if (roles := roles_of(bench)) for metric in (roles.selection, *roles.brief)]
    return [*wanted, *(metric for bench in benches for metric in added(bench, sorted(measured)))] if any(wanted) else wanted


def _shown(measured: set[str], swept: Sequence[str], by: str) -> list[str]:
    contained = {part for whole in measured if (match := metric_of(whole)) for part in match[1].contains}
    shown = [m for m in dict.fromkeys((by, *swept)) if m in measured and (m == by or m not in contained)]
    return shown if set(shown) - {by} else shown + sorted(measured - set(shown))


def _cells(result: RunResult, shown: Sequence[str]) -> list[str]:
    """Numbers; `absent` where one could not be computed or there is no point, a dash where nobody measured it at a point."""
    values = at_last(result)
    none = NO_NUMBER if result.points else "absent"
    return [
        of_unit(v.value, v.unit) if isinstance(v := values.get(metric), Measurement) else "absent" if v else none
        for metric in shown
    ]


def _rank(result: RunResult, by: str) -> tuple[bool, float]:
    """Smallest for the best of the finished tries; one that broke off comes after them: it is not at its end."""
    value = at_last(result).get(by)
    if not isinstance(value, Measurement):
        return True, float("inf")
    if value.better == "closer" and value.reference is not None:
        distance = abs(value.value - value.reference)
    else:
        distance = value.value if value.better == "lower" else -value.value
    return result.status != "done", distance
