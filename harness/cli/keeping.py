"""`harness doctor`, `validate` and `cache`: what is here, whether it is whole, and what may go."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.app import KEEP, app, cache_app, results_app
from harness.cli.control import Json, Results, results_root
from harness.cli.listing import print_rows

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", envvar="HARNESS_DATA", help="A folder laid out by hub id, used before the hub.")
]


@app.command(rich_help_panel=KEEP)
def doctor(
    bench: Annotated[str, typer.Option("--bench", "-b", help="Also look at what this benchmark needs.")] = "",
    model: Annotated[str, typer.Option("--model", help="Also look at what this model needs.")] = "mini",
    data_dir: DataDir = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Say what is here, what is missing, and where to get it."""
    from harness.running.doctor import examine

    findings = examine(bench, model, data_dir, results_root(results))
    if as_json:
        print(json.dumps([{"what": f.what, "found": f.result, "fine": f.fine} for f in findings]))
    else:
        from rich.table import Table
        from rich.text import Text

        from harness.reading.console import stdout

        table = Table(header_style="bold")
        for heading in ("", "what", "found"):
            table.add_column(heading)
        for finding in findings:
            mark = Text("ok", style="green") if finding.fine else Text("!", style="red")
            table.add_row(mark, finding.what, finding.result)
        stdout().print(table)
    if any(not f.fine for f in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=KEEP)
def validate(
    results: Results = None,
    aside: Annotated[bool, typer.Option("--set-aside", help="Move records that cannot be read out of the way.")] = False,
    as_json: Json = False,
) -> None:
    """Check every record of a store; exit code 1 and one line for each problem."""
    from harness.storage.store import Store
    from harness.storage.validate import problems, set_aside

    store = Store(results_root(results))
    faults = list(problems(store))
    if as_json:
        print(json.dumps([vars(problem) for problem in faults], ensure_ascii=False))
    else:
        for problem in faults:
            print(problem)
        if not faults:
            count = len(store.places())
            print(f"{count} record{'s' * (count != 1)}, no problem")
    for problem in faults if aside else ():
        if problem.unreadable:
            target = set_aside(store, problem)
            print(f"set aside: {target}" if target else f"left alone, it is being written: {problem.where}", file=sys.stderr)
    if faults:
        raise typer.Exit(1)


@results_app.command("pack")
def results_pack(results: Results = None) -> None:
    """Put the finished runs of each benchmark into one file, a fifth of the size; every command reads them there."""
    from harness.reading.formats import mebibytes
    from harness.storage.packing import pack
    from harness.storage.store import Store

    for packing in pack(Store(results_root(results))):
        if packing.runs:
            print(f"{packing.path}: {packing.runs} runs, {mebibytes(packing.bytes)}", flush=True)
        for sentence in packing.left:
            print(f"left in its folder: {sentence}", file=sys.stderr)


@results_app.command("unpack")
def results_unpack(
    name: Annotated[str, typer.Argument(metavar="[RUN]", help="Only the run whose id begins so, to copy it elsewhere.")] = "",
    results: Results = None,
) -> None:
    """Give packed runs folders of their own again; prints them."""
    from harness.storage.packing import unpack
    from harness.storage.store import Store

    for folder in unpack(Store(results_root(results)), name):
        print(folder)


@results_app.command("export")
def results_export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's id; its beginning is enough.")],
    out: Annotated[Path, typer.Option("--out", help="A folder; it gets TOFU_EVAL.json and TOFU_SUMMARY.json.")],
    results: Results = None,
) -> None:
    """Write what a run measured as open-unlearning's evaluation files, marked as this project's; prints them."""
    from harness.running.logs import write_log
    from harness.storage.store import Store

    store = Store(results_root(results))
    _, result = store.by_id(name)
    for path in write_log(result, store, out):
        print(path)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """What is kept, how large it is, and what it cost to make."""
    from harness.reading.formats import mebibytes, seconds
    from harness.storage.cache import Cache

    cache = Cache()
    entries = list(cache.entries())
    rows: list[dict[str, Any]] = []
    for entry in entries:
        about = {"kind": entry.kind, "entry": entry.path.name[:12], "about": str(entry.facts.get("name", ""))}
        if as_json:
            rows.append({**about, "MiB": round(entry.bytes / 2**20, 2), "seconds": round(entry.seconds, 1)})
        else:
            rows.append({**about, "size": mebibytes(entry.bytes), "made in": seconds(entry.seconds)})
    print_rows(rows, as_json)
    if not as_json:
        print(f"{mebibytes(sum(entry.bytes for entry in entries))} in {cache.root}")


@cache_app.command("clear")
def cache_clear(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="Only this kind: model, curvature, gradient, continuations, generations, evaluations, verdicts, attack."
        ),
    ] = None,
) -> None:
    """Remove what is kept; what another process is making is left alone."""
    from harness.reading.formats import mebibytes
    from harness.storage.cache import Cache

    print(f"freed {mebibytes(Cache().clear(kind))}")
