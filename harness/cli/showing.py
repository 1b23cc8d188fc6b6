"""`harness show`, `score` and `power`: what a run, a method, a log and a benchmark say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import LOOK, READ, app
from harness.cli.control import Json, Results, print_json, results_root
from harness.cli.flags import Words, command
from harness.core.errors import UsageError, unknown
from harness.core.fields import read
from harness.running.bench_request import PowerRequest, ScoreRequest

if TYPE_CHECKING:
    from harness.storage.records import RunResult
    from harness.storage.store import Store


def _shown(incomplete: str) -> list[str]:
    from harness.core.method import METHODS

    return [name for name in METHODS.names() if name.startswith(incomplete)]


@app.command(rich_help_panel=LOOK)
def show(
    name: Annotated[
        str, typer.Argument(help="A run's id (its beginning is enough), or a method's name.", autocompletion=_shown)
    ],
    samples: Annotated[
        bool, typer.Option("--samples", help="A run's questions with the true answer, and what is answered before and after.")
    ] = False,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Show a run as it is recorded, or the settings of a method, or of models that are fine-tuned on the spot.

    harness show kfade

    harness show finetuned

    harness show 843c --samples
    """
    from harness.core.method import METHODS
    from harness.storage.store import Store

    if name in METHODS.names():
        if samples:
            raise UsageError(f"{name} is a method, and --samples tells of a run: give the beginning of its id.")
        _show_method(name, as_json)
        return
    if name == "finetuned":
        _show_finetuning(as_json)
        return
    if not re.fullmatch("[0-9a-f]+", name):
        raise _neither_run_nor_method(name)
    store = Store(results_root(results))
    folder, result = store.by_id(name)
    if samples:
        _show_samples(result, store, as_json)
    else:
        _show_run(folder, result, as_json)


def _show_method(name: str, as_json: bool) -> None:
    from harness.core.config import describe, written
    from harness.core.method import METHODS
    from harness.core.presets import ANY
    from harness.reading.columns import settings_table
    from harness.reading.console import stdout

    method = METHODS.get(name)
    rows = describe(method.config)
    if as_json:
        print_json([{"setting": n, "default": d, "about": a} for n, d, a in rows])
        return
    adapter = ", takes --adapter" if method.takes_adapter else ""
    stdout().print(settings_table(rows, f"{name} ({method.source}), version {method.version}{adapter}"))
    for entry in method.presets:
        benches = ", ".join("any benchmark" if bench == ANY else bench for bench in entry.benches)
        values = ", ".join(f"{key}={written(value)}" for key, value in entry.settings.items())
        stdout().print(f"{entry.preset} for {benches} on {', '.join(entry.families)}: {values}", highlight=False)
        stdout().print(f"    from {entry.source}", style="dim", highlight=False)


def _show_finetuning(as_json: bool) -> None:
    from harness.core.config import describe
    from harness.models.finetuning import Finetuning
    from harness.reading.columns import settings_table
    from harness.reading.console import stdout

    rows = describe(Finetuning)
    if as_json:
        print_json([{"setting": n, "default": d, "about": a} for n, d, a in rows])
        return
    stdout().print(settings_table(rows, "models fine-tuned on the spot: --model smollm2-135m@epochs=4,replay=200"))


def _show_run(folder: Path, result: RunResult, as_json: bool) -> None:
    from harness.core.arithmetic import in_words
    from harness.core.config import describe, to_json
    from harness.core.method import METHODS
    from harness.reading.columns import settings_table
    from harness.reading.console import stdout
    from harness.reading.run_list import given_settings
    from harness.reading.run_report import run_report

    if as_json:
        print_json(to_json(result))
        return
    console = stdout()
    console.print(run_report(result))
    about = {}
    if result.spec.method in METHODS.names():  # else it is another installation's, or no longer there
        about = {name: meaning for name, _, meaning in describe(METHODS.get(result.spec.method).config)}
    if result.spec.settings:
        about["adapter"] = "What was trained in place of the weights."
        about["optimizer"] = "How AdamW was kept."
        rows = [(key, value, about.get(key, "")) for key, value in result.spec.settings.items()]
        given = given_settings(result)
        title = "settings (*: neither the default nor the preset's)" if given else "settings"
        console.print(settings_table(rows, title, marked=given))
    if result.provenance:
        console.print(f"again: {result.provenance.command}", soft_wrap=True, highlight=False)
        for plugin, files in result.provenance.plugins.items():
            code = ", ".join(f"{file} (SHA-256 {digest[:12]}…)" for file, digest in files.items())
            console.print(f"and --plugins for {plugin}: {code}", soft_wrap=True, highlight=False)
        packages = ", ".join(f"{package} {version}" for package, version in result.provenance.packages.items())
        console.print(f"made with {packages}, on {result.provenance.processor}", soft_wrap=True, highlight=False)
        if kind := in_words(result.provenance.arithmetic):
            console.print(f"rounding of {kind}", soft_wrap=True, highlight=False)
    console.print(f"record: {folder}", soft_wrap=True, highlight=False)


def _show_samples(result: RunResult, store: Store, as_json: bool) -> None:
    from harness.reading.budget_table import where_it_stands
    from harness.reading.console import stdout
    from harness.reading.samples import Samples, written_samples

    samples = written_samples(result, store)
    if as_json:
        print_json([vars(sample) for sample in samples])
    else:
        if result.spec.budgets:
            print(f"answers {where_it_stands(result.points[-1])}")
        stdout().print(Samples(samples))


def _neither_run_nor_method(name: str) -> UsageError:
    from harness.core.benchmark import BENCHMARKS
    from harness.core.evaluator import EVALUATORS
    from harness.core.figure import FIGURES
    from harness.core.method import METHODS

    for registry, listing in ((BENCHMARKS, "benches"), (EVALUATORS, "evals"), (FIGURES, "figures")):
        if name in registry.entries:
            a = "an" if registry.kind[0] in "aeiou" else "a"
            return UsageError(
                f"{name} is {a} {registry.kind}, and harness show tells of runs and methods; see harness list {listing}."
            )
    return unknown("method or run", name, METHODS.names(), "harness list methods")


@command(app, ScoreRequest, panel=READ)
def score(
    words: Words,
    log: Annotated[
        Path, typer.Argument(help="An evaluation log: ToFU's, SimNPO's, NPO's or open-unlearning's, or its summary.")
    ],
    as_json: Json = False,
) -> None:
    """Compute the metrics of an evaluation log that another program wrote."""
    from dataclasses import asdict

    from harness.core.benchmark import BENCHMARKS
    from harness.reading.console import stdout
    from harness.reading.run_report import by_name, measurement_table
    from harness.running.logs import score_log

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
