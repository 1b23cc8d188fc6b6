"""`harness list`: what there is, and which runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from harness.cli.app import LOOK, app
from harness.cli.control import Json, Results, print_json, results_root
from harness.cli.flags import Words, command
from harness.core.errors import UsageError, unknown
from harness.core.fields import Field, names, read, text, word
from harness.core.options import Protocol

if TYPE_CHECKING:
    from harness.core.registry import Registry

KINDS = ("methods", "benches", "models", "templates", "evals", "studies", "figures", "runs")
"""What `harness list` can list."""
PROTOCOLS: Sequence[Protocol] = get_args(Protocol)
"""On what a run's settings stand."""
ELSEWHERE = {
    **{"benchmarks": "harness list benches", "datasets": "harness list benches"},
    **{"metrics": "harness list evals", "evaluators": "harness list evals", "plots": "harness list figures"},
    **{"presets": "harness show METHOD", "settings": "harness show METHOD"},
}
"""What one may look for under another name → the command that lists it."""
OF_RUNS = "Of runs alone"
"""A heading of `--help`."""


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """Which runs are listed."""

    bench: Annotated[str, Field(text, OF_RUNS, short="-b", metavar="NAME", completes="benches")] = ""
    """Only runs on this benchmark."""
    method: Annotated[tuple[str, ...], Field(names("a method"), OF_RUNS, short="-m", metavar="NAMES", completes="methods")] = ()
    """Only runs of these methods, parted by commas."""
    preset: Annotated[
        str,
        Field(word(*PROTOCOLS), OF_RUNS, metavar="WORD", completes="|".join(PROTOCOLS)),
    ] = ""
    """Only runs with settings as published, tuned, tuned2, given 'by hand', or other ones."""


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


@command(app, ListRequest, name="list", panel=LOOK)
def list_(
    words: Words,
    kind: Annotated[str, typer.Argument(help=f"What to list: {', '.join(KINDS)}.", autocompletion=_kinds)],
    results: Results = None,
    as_json: Json = False,
) -> None:
    """List what there is.

    harness list methods

    harness list runs --bench tofu10 --method kfade,npo
    """
    if kind in ELSEWHERE:
        raise UsageError(f"{kind} are listed by {ELSEWHERE[kind]}.")
    if kind not in KINDS:
        raise unknown("kind of thing to list", kind, KINDS)
    if kind == "runs":
        _list_runs(read(ListRequest, words.environment, words.typed), results_root(results), as_json)
        return
    if words.typed:
        raise UsageError(f"--{next(iter(words.typed))} picks runs; write harness list runs.")
    print_rows(_rows(kind), as_json)


def _list_runs(request: ListRequest, root: Path, as_json: bool) -> None:
    from harness.reading.console import stdout
    from harness.reading.run_list import RunTables, listed_runs
    from harness.storage.store import Store

    store = Store(root)
    store.check()

    def skipped(why: str) -> None:
        print(f"skipped: {why}", file=sys.stderr)

    runs = listed_runs(store, skipped, request.bench, request.method, request.preset)
    if as_json:
        print_json([run.row() for run in runs])
    elif not runs:
        print("none")
    else:
        stdout().print(RunTables(runs))


def _rows(kind: str) -> list[dict[str, Any]]:
    if kind == "studies":
        from harness.running.studies import ABOUT

        return [{"name": name, "about": about} for name, about in ABOUT.items()]
    if kind == "models":
        from harness.core.benchmark import BENCHMARKS

        known: dict[str, tuple[str, list[str]]] = {}
        for bench, benchmark in BENCHMARKS.all().items():
            for name, about in benchmark.models.items():
                known.setdefault(name, (about, []))[1].append(bench)
        return [{"model": name, "benches": ", ".join(benches), "about": about} for name, (about, benches) in known.items()]
    if kind == "templates":
        return _templates()
    return [{"name": entry.name, "about": entry.summary} for entry in _registry(kind).listed()]


def _templates() -> list[dict[str, Any]]:
    """What a benchmark's questions can be put in, and what that makes of one."""
    from harness.core.benchmark import BENCHMARKS
    from harness.core.text import Template
    from harness.numerics.chat_templates import CHAT

    several = {bench: dict(getattr(benchmark, "templates", {})) for bench, benchmark in BENCHMARKS.all().items()}
    benches: dict[Template, list[str]] = {}
    for bench, templates in several.items():
        for template in templates.values():
            benches.setdefault(template, []).append(bench)
    rows = [
        {"template": each.name, "benches": ", ".join(of), "prompt": json.dumps(each.prompt("QUESTION") + each.scored_tag)[1:-1]}
        for each, of in benches.items()
    ]
    takes = ", ".join(bench for bench, templates in several.items() if templates)
    return [*rows, {"template": CHAT, "benches": takes, "prompt": "as the tokenizer's own chat template has it"}]


def _registry(kind: str) -> Registry[Any]:
    """What registers a kind; of the others nothing is imported."""
    if kind == "methods":
        from harness.core.method import METHODS

        return METHODS
    if kind == "benches":
        from harness.core.benchmark import BENCHMARKS

        return BENCHMARKS
    if kind == "evals":
        from harness.core.evaluator import EVALUATORS

        return EVALUATORS
    from harness.core.figure import FIGURES

    return FIGURES


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table of rows of words with equal keys, or JSON."""
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not rows:
        print("none")
        return
    from rich.table import Table

    from harness.reading.console import stdout

    table = Table(*rows[0], header_style="bold")
    for row in rows:
        table.add_row(*row.values())
    stdout().print(table)
