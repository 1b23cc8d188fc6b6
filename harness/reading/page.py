"""The leaderboard's page: cells, tables and the plot of `templates/leaderboard.html.j2`, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any
from urllib.parse import quote

from harness.core.evaluator import title_of
from harness.core.figure import Sheet
from harness.core.measurement import Absent, Difference
from harness.core.metric import in_text
from harness.core.options import Protocol
from harness.reading.answers import Answers
from harness.reading.cells import differences_in_one_line, headline, lines_of, unfinished_in_one_line
from harness.reading.compared import PROTOCOLS, protocol
from harness.reading.differences import LEVEL
from harness.reading.equal_damage_section import EqualDamageSection, for_page, table_cells
from harness.reading.formats import ARROWS, NO_NUMBER, arrow, gibibytes, interval, number, p_value, seconds
from harness.reading.glossary import REFERENCES, sources, terms
from harness.reading.looks import look
from harness.reading.pareto import pareto
from harness.reading.rows import REFERENCE_METHODS, Row, Section, Value, measured, single
from harness.storage.identity import NAME, NO_ROWS

LEGEND = (
    "What stands for a run is its last point. Several seeds: the median, with the range over seeds below it; "
    "in square brackets the 95 % interval (for several seeds the medians of its ends); in round ones the range over the "
    "retrained models.",
    "Arrows: ↑ higher is better, ↓ lower is better, → best close to the retrained model's number.",
    "A KS distance at or under the noise floor (what two retrained models differ by) is a tie: not ranked further on forget "
    "quality. Ranks are within a protocol.",
    "* oracle: the measured point with the largest forget quality × utility, found by looking at the rows that are reported; "
    "the papers' rule, and no fair one.",
    "Differences between methods are those on the same questions, by resampling whole authors (WMDP: groups of questions, "
    "single answers to instructions); how much seeds differ is not in their intervals. p-values are Holm-corrected for all "
    "comparisons of one form in one table.",
    "Time is unlearning alone with nothing cached; memory is the most that was held at once meanwhile.",
)


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


def in_order(tables: Sequence[Section]) -> list[Section]:
    """The tables as a reader meets them: first the one in which most is ranked, on the most rows; the others by name."""

    def weight(section: Section) -> tuple[int, int]:
        ranked = section.example(section.roles.ranking) if section.ranks else None
        return (len(section.shown), ranked.n) if ranked else (0, 0)

    first = max(tables, key=weight, default=None)
    return [section for section in tables if section is first] + [section for section in tables if section is not first]


def page(
    tables: Sequence[Section],
    published: Sequence[Mapping[str, Any]],
    answers: Mapping[int, Answers],
    project: bool,
    at_budgets: Sequence[EqualDamageSection] = (),
    meta: Sequence[Sheet] = (),
) -> str:
    """The page: one file that needs no other.

    Args:
        tables: what was measured here.
        published: the papers' own numbers.
        answers: to one question, by a table's number.
        project: whether the results folder lies in the project's checkout, whose README is linked then.
        at_budgets: what was measured at given damages.
        meta: how far each metric is to be trusted.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("harness"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    unfinished = [run for section in tables for run in section.unfinished]
    methods = sorted({row.method for s in tables for row in s.shown} | {run.spec.method for run in unfinished})
    everybody = sorted({*methods, *(method for section in at_budgets for method in section.methods)})
    seen = {row.protocol for s in tables for row in s.rows} | {protocol(run.selection) for run in unfinished}
    return environment.get_template("leaderboard.html.j2").render(
        sections=[_section(section, answers.get(section.index)) for section in in_order(tables)],
        published=published,
        legend=LEGEND,
        methods=methods,
        protocols=[(name, about) for name, about in PROTOCOLS.items() if name in seen],
        directions=ARROWS,
        equal_damage=[for_page(section, number_of) for number_of, section in enumerate(at_budgets, 1)],
        meta=[table_cells(sheet) for sheet in meta],
        terms=terms([*in_order(tables), *at_budgets]),
        references=REFERENCES,
        sources=sources(everybody),
        project=project,
        looks={method: look(method) for method in [*everybody, *REFERENCE_METHODS]},
    )


def _section(section: Section, answers: Answers | None) -> dict[str, Any]:
    bench, model, *_ = section.name
    columns = [_column(section, metric) for metric in section.metrics]
    looks = {column["metric"]: column["look"] for column in columns}
    of_reference = {row.method: _runs(row) for row in section.rows if row.method in section.references}
    return {
        "id": f"table-{section.index}",
        "title": f"{bench} · {model}",
        "definitions": section.definitions,
        "identity": [(name, value) for name, value in section.identity.items() if name not in NAME and value != NO_ROWS],
        "columns": columns,
        "references": [
            (
                name,
                [_cell(single(values[m]) if m in values else None, looks[m]) for m in section.metrics],
                of_reference.get(name),
            )
            for name, values in section.references.items()
        ],
        "rows": [_row(row, section, looks) for row in section.shown],
        "ranks": in_text(title_of((*section.roles.forgetting, section.roles.ranking)[0])) if section.ranks else "",
        "oracle": ", ".join(in_text(title_of(metric)) for metric in section.roles.oracle_score)
        if any(row.oracle for row in section.shown)
        else "",
        "answers": answers,
        "unfinished": [(run, protocol(run.selection), unfinished_in_one_line(run)) for run in section.unfinished],
        "notes": section.notes,
        "differences": [_matrices(section, preset, pairs) for preset, pairs in section.differences.items()],
        "plot": pareto(section),
    }


def _matrices(section: Section, preset: Protocol, pairs: Sequence[Difference]) -> dict[str, Any]:
    """For each metric a square of the methods: the row's number minus the column's."""
    squares = []
    for metric in dict.fromkeys(each.metric for each in pairs):
        of_metric = [each for each in pairs if each.metric == metric]
        methods = list(dict.fromkeys(name for each in of_metric for name in (each.first, each.second)))
        cells = {(each.first, each.second): _difference(each, 1) for each in of_metric}
        cells |= {(each.second, each.first): _difference(each, -1) for each in of_metric}
        rows = [(one, [cells.get((one, other), Cell("")) for other in methods]) for one in methods]
        name = section.title(metric) if metric in section.roles.headline else metric
        squares.append({"title": f"{name} {arrow(of_metric[0].better)}".strip(), "methods": methods, "rows": rows})
    return {"preset": preset, "summary": differences_in_one_line(preset, pairs), "squares": squares}


def _difference(each: Difference, sign: int) -> Cell:
    low, high = sorted((sign * each.low, sign * each.high))
    apart = each.p_corrected <= LEVEL
    ends = interval(low, high, signed=True)
    about = f"95 % interval {ends}, p {p_value(each.p)}, corrected {p_value(each.p_corrected)}"
    return Cell(number(sign * each.value, signed=True), about, look="apart" if apart else "unsure")


def _column(section: Section, metric: str) -> dict[str, Any]:
    example = section.example(metric)
    return {
        "title": section.title(metric),
        "metric": metric,
        "arrow": arrow(example.better) if example else "",
        "small": _below(section, metric),
        "first": "ascending" if example and example.better == "lower" else "descending",
        "look": "" if metric in headline(section) else "more",
        "about": _about(section, metric),
    }


def _below(section: Section, metric: str) -> str:
    """What stands below a column's title: what a reader must not miss."""
    example = section.example(metric)
    if metric == section.roles.ranking and (floors := _floors(section, metric)):
        return f"noise floor {floors}"
    return "best as retrained" if example and example.better == "closer" else ""


def _row(row: Row, section: Section, looks: Mapping[str, str]) -> dict[str, Any]:
    full, own, peak = row.cost("full_seconds"), row.cost("seconds"), row.cost("peak_bytes")
    cached = own is not None and full is not None and full > own + 0.05
    oracle = Cell(NO_NUMBER)
    if row.oracle:
        steps, values = row.oracle
        oracle = Cell(", ".join(map(number, values)), repr(prod(values)), [f"at step {steps}"])
    rank = "0" if row.rank == "tie" else row.rank if row.rank.isdecimal() else ""
    return {
        "method": row.method,
        "protocol": row.protocol,
        "settings": row.settings,
        "rank": Cell(row.rank or NO_NUMBER, rank, look="tie" if row.rank == "tie" else ""),
        "cells": [_cell(row.values.get(m), looks[m]) for m in section.metrics],
        "costs": [
            Cell(seconds(full), "" if full is None else repr(full), [f"{seconds(own)} with a cache"] if cached else []),
            Cell(gibibytes(peak), "" if peak is None else repr(peak)),
        ],
        "oracle": oracle,
        **_runs(row),
    }


def _runs(row: Row) -> dict[str, Any]:
    """A row's records, and how its settings were chosen."""
    seeds = ", ".join(str(run.spec.seed) for run in row.runs)
    return {
        "selection": row.runs[0].selection,
        "seeds": f"{len(row.runs)} ({'seed' if len(row.runs) == 1 else 'seeds'} {seeds})",
        "count": len(row.runs),
        "runs": [(run, f"../runs/{quote(run.link)}") for run in row.runs],
    }


def _cell(value: Value | Absent | None, look: str) -> Cell:
    main, small = lines_of(value)
    if not isinstance(value, Value):
        return Cell(main, look=f"{look} absent".strip() if value else look)
    return Cell(main, repr(value.value), small, f"{look} tie".strip() if value.tie else look)


def _floors(section: Section, metric: str) -> str:
    floors = {v.floor for row in section.rows if isinstance(v := row.values.get(metric), Value) and v.floor is not None}
    return " to ".join(number(floor) for floor in sorted({min(floors), max(floors)})) if floors else ""


def _about(section: Section, metric: str) -> list[str]:
    """Unit, range, rows, version, noise floor, and how the interval was made."""
    example = section.example(metric)
    if not example:
        return ["absent"] + [""] * 5
    counts = sorted({m.n for row in section.rows for m in measured(row, metric)})
    limits = " to ".join(f"{limit:g}" for limit in example.range) if example.range else NO_NUMBER
    rows = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    how = (example.interval_method or "none") + (f", by {example.resampled}" if example.resampled else "")
    return [example.unit, limits, rows, str(example.version), _floors(section, metric) or NO_NUMBER, how]
