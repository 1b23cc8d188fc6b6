"""`harness list`, `show`, `score` and `power`: what there is and what it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.app import LOOK, READ, app
from harness.cli.control import Json, Results, results_root
from harness.cli.flags import Words, command
from harness.core.errors import UsageError, unknown
from harness.core.fields import read
from harness.running.request import PowerRequest, ScoreRequest

KINDS = ("methods", "benches", "models", "evals", "studies", "figures", "runs")
"""What `harness list` can list."""


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


@app.command("list", rich_help_panel=LOOK)
def list_(
    kind: Annotated[str, typer.Argument(help=f"What to list: {', '.join(KINDS)}.", autocompletion=_kinds)],
    results: Results = None,
    as_json: Json = False,
) -> None:
    """List what there is."""
    rows: list[dict[str, Any]]
    if kind not in KINDS:
        raise unknown("kind of thing to list", kind, KINDS)
    if kind == "runs":
        rows = _run_rows(results_root(results))
    elif kind == "studies":
        from harness.running.studies import STUDIES

        rows = [{"name": name, "about": study.about} for name, study in STUDIES.items()]
    elif kind == "models":
        from harness.core.benchmark import BENCHMARKS

        known: dict[str, tuple[str, list[str]]] = {}
        for bench, benchmark in BENCHMARKS.all().items():
            for name, about in benchmark.models.items():
                known.setdefault(name, (about, []))[1].append(bench)
        rows = [{"model": name, "benches": ", ".join(benches), "about": about} for name, (about, benches) in known.items()]
    else:
        from harness.core.benchmark import BENCHMARKS
        from harness.core.evaluator import EVALUATORS
        from harness.core.figure import FIGURES
        from harness.core.method import METHODS

        registries = {"methods": METHODS, "benches": BENCHMARKS, "evals": EVALUATORS, "figures": FIGURES}
        registry: Any = registries[kind]
        rows = [{"name": entry.name, "about": entry.summary} for entry in registry.entries.values()]
    print_rows(rows, as_json)


_USUAL = {"retain": "all", "status": "done"}
"""What goes without saying: a column that holds nothing else is left out as well."""


def _run_rows(root: Path) -> list[dict[str, Any]]:
    from harness.core.benchmark import roles_of
    from harness.core.measurement import Measurement
    from harness.reading.compared import protocol
    from harness.storage.store import Store

    rows = []
    store = Store(root)
    store.check()
    roles = [roles_of(bench) for bench in sorted({Path(place).parts[0] for place in store.places()})]
    # What a list of runs says of their last points; a column that would be empty is left out of the table.
    listed = dict.fromkeys(metric for each in roles for metric in (*each.forgetting, *each.kept))
    for place in store.places():
        try:
            result = store.read(place)
        except UsageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        last = result.points[-1].measurements if result.points else ()
        values = {m.metric: m.value for m in last if isinstance(m, Measurement)}
        spec = result.spec
        rows.append(
            {
                "run": spec.run_id,
                "bench": spec.bench,
                "model": spec.model,
                "retain": spec.retain,
                "method": spec.method,
                "preset": protocol(result.selection),
                "seed": spec.seed,
                "status": result.status,
                "points": len(result.points),
                **{metric: values.get(metric) for metric in listed},
            }
        )
    return sorted(rows, key=lambda row: [row[name] for name in ("bench", "model", "method", "preset", "seed")])


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table of rows with equal keys, or JSON."""
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    from rich.table import Table

    from harness.reading.columns import Columns
    from harness.reading.console import stdout
    from harness.reading.formats import number

    if not rows:
        print("none")
        return
    names = [name for name in rows[0] if any(row[name] not in (None, _USUAL.get(name)) for row in rows)]
    headings = [name.removesuffix("_accuracy").replace("_", " ") for name in names]
    table: Columns | Table
    if any(isinstance(value, int | float) for value in rows[0].values()):
        table = Columns(headings, left=range(len(names)))
    else:
        table = Table(*headings, header_style="bold")  # of words, which may be wrapped
    for row in rows:
        cells = [row[name] for name in names]
        table.add_row(*[number(v) if isinstance(v, float) else "–" if v is None else str(v) for v in cells])
    stdout().print(table)


@app.command(rich_help_panel=LOOK)
def show(
    name: Annotated[str, typer.Argument(help="A run's id (its beginning is enough), or a method's name.")],
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Show a run as it is recorded, or a method's settings."""
    from harness.core.config import describe
    from harness.core.method import METHODS
    from harness.core.presets import ANY
    from harness.reading.columns import settings_table
    from harness.reading.console import stdout
    from harness.reading.run_report import run_report
    from harness.storage.records import to_json
    from harness.storage.store import Store

    if name in METHODS.names():
        method = METHODS.get(name)
        rows = describe(method.config)
        if as_json:
            print(json.dumps([{"setting": n, "default": d, "about": a} for n, d, a in rows]))
            return
        stdout().print(settings_table(rows, f"{name} ({method.source}), version {method.version}"))
        for entry in method.presets:
            benches = ", ".join("any benchmark" if bench == ANY else bench for bench in entry.benches)
            values = ", ".join(
                f"{key}={'none' if value is None else json.dumps(value)}" for key, value in entry.settings.items()
            )
            stdout().print(f"{entry.preset} for {benches} on {', '.join(entry.families)}: {values}", highlight=False)
            stdout().print(f"    from {entry.source}", style="dim", highlight=False)
        return
    if not re.fullmatch("[0-9a-f]+", name):
        raise _neither_run_nor_method(name)
    folder, result = Store(results_root(results)).by_id(name)
    if as_json:
        print(json.dumps(to_json(result), ensure_ascii=False))
        return
    console = stdout()
    console.print(run_report(result))
    about = {}
    if result.spec.method in METHODS.names():  # else it is another installation's, or no longer there
        about = {name: meaning for name, _, meaning in describe(METHODS.get(result.spec.method).config)}
    if result.spec.config:
        rows = [(key, value, about.get(key, "")) for key, value in result.spec.config.items()]
        console.print(settings_table(rows, "settings"))
    if result.provenance:
        from harness.core.arithmetic import in_words

        console.print(f"again: {result.provenance.command}", soft_wrap=True, highlight=False)
        for plugin, files in result.provenance.plugins.items():
            code = ", ".join(f"{file} (SHA-256 {digest[:12]}…)" for file, digest in files.items())
            console.print(f"{plugin} is a plug-in: {code}", soft_wrap=True, highlight=False)
        packages = ", ".join(f"{package} {version}" for package, version in result.provenance.packages.items())
        console.print(f"made with {packages}, on {result.provenance.processor}", soft_wrap=True, highlight=False)
        if kind := in_words(result.provenance.arithmetic):
            console.print(f"rounding of {kind}", soft_wrap=True, highlight=False)
    console.print(f"record: {folder}", soft_wrap=True, highlight=False)


def _neither_run_nor_method(name: str) -> UsageError:
    from harness.core.benchmark import BENCHMARKS
    from harness.core.evaluator import EVALUATORS
    from harness.core.figure import FIGURES
    from harness.core.method import METHODS

    for registry, listing in ((BENCHMARKS, "benches"), (EVALUATORS, "evals"), (FIGURES, "figures")):
        if name in registry.entries:
            return UsageError(
                f"{name} is a {registry.kind}, and harness show tells of runs and methods; see harness list {listing}."
            )
    return unknown("method or run", name, METHODS.names(), "harness list methods")


@command(app, ScoreRequest, panel=READ)
def score(
    words: Words,
    log: Annotated[Path, typer.Argument(help="An evaluation log: ToFU's, SimNPO's, NPO's or open-unlearning's.")],
    as_json: Json = False,
) -> None:
    """Compute the metrics of an evaluation log that another program wrote."""
    from dataclasses import asdict

    from harness.core.benchmark import BENCHMARKS
    from harness.reading.console import stdout
    from harness.reading.run_report import by_name, measurement_table
    from harness.running.measuring import score_log

    request = read(ScoreRequest, words.environment, words.typed)
    scored = score_log(BENCHMARKS.get(request.bench), log, request.reference, request.variant)
    first = next(iter(scored.values()))
    if as_json:
        print(json.dumps({m.metric: asdict(m) for m in first}))
        return
    stdout().print(measurement_table({name: by_name(values) for name, values in scored.items()}, digits=6))
    for item in first:
        if reason := getattr(item, "reason", None) or getattr(item, "note", None):
            stdout().print(f"{item.metric}: {reason}", style="dim", soft_wrap=True)


@command(app, PowerRequest, panel=READ)
def power(words: Words, results: Results = None, as_json: Json = False) -> None:
    """Say the smallest difference that a benchmark can show.

    harness power --bench tofu10
    """
    from dataclasses import asdict

    from rich.table import Table

    from harness.core.measurement import Absent
    from harness.core.options import Options
    from harness.reading.console import stdout
    from harness.reading.formats import number
    from harness.reading.power import smallest_differences
    from harness.storage.store import Store

    request = read(PowerRequest, words.environment, words.typed)
    if not request.bench:
        raise UsageError("give --bench (see harness list benches).")
    options = Options(limit=request.limit, data_dir=request.data_dir, variant=request.variant)
    smallest = smallest_differences(request.bench, request.model, Store(results_root(results)), options)
    if as_json:
        print(json.dumps([asdict(item) for item in smallest]))
        return
    table = Table(
        title=f"differences under these are mostly not shown by one seed on {request.bench} with {request.model}",
        title_justify="left",
        header_style="bold",
    )
    for heading in ("metric", "smallest difference", "rows", "how", "note"):
        table.add_column(heading)
    for item in smallest:
        if isinstance(item, Absent):
            table.add_row(item.metric, "absent", "", "", f"{item.reason}; run several methods: harness run --method a,b")
        else:
            table.add_row(item.metric, number(item.value, 4), str(item.n), item.interval_method or "", item.note or "")
    stdout().print(table)
