"""`harness leaderboard` and `harness plot`: what is made of the records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import READ, app
from harness.cli.control import Json, Results, results_root
from harness.core.errors import UsageError
from harness.core.fields import Given, names


@app.command(rich_help_panel=READ)
def leaderboard(
    results: Results = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail where the stored leaderboard differs.")] = False,
) -> None:
    """Make the leaderboard's page and tables from the records of runs."""
    from harness.reading.leaderboard import build, difference, write

    root = results_root(results)
    files = build(root, lambda text: print(f"skipped: {text}", file=sys.stderr))
    if not check:
        print(write(root, files))
    elif found := difference(root, files):
        print(f"{found}\nharness leaderboard makes it anew.", file=sys.stderr)
        raise typer.Exit(1)
    else:
        print("the leaderboard is what the records make of it.")


@app.command(rich_help_panel=READ)
def plot(
    name: Annotated[str, typer.Argument(help="A figure or table; see harness list figures.")],
    results: Results = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the files go; figures/ of the results by default.")] = None,
    bench: Annotated[str, typer.Option("--bench", "-b", help="Only runs on this benchmark.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only runs with this model.")] = "",
    method: Annotated[str, typer.Option("--method", "-m", help="Only these methods, parted by commas.")] = "",
    by: Annotated[str, typer.Option("--by", help="The setting whose values are compared, for ablation.")] = "",
    study: Annotated[str, typer.Option("--study", help="Only the runs of this study; compares by its setting.")] = "",
    format_: Annotated[str, typer.Option("--format", help="svg, png, pdf, csv, md, tex; all by default.")] = "",
    as_json: Json = False,
) -> None:
    """Draw a figure or write a table from what is recorded; an unchanged store gives the same files."""
    from harness.core.interfaces import FIGURES, FigureOptions
    from harness.reading.figures import draw, formats_of, select
    from harness.storage.store import Store

    chosen, root = formats_of(format_), results_root(results)
    if name not in FIGURES.entries:
        FIGURES.get(name)  # says which there are, before anything is read
    runs = select(Store(root), bench, model, names("a method")(Given(method, f"--method {method}")))
    if study:
        from harness.running.studies import runs_of, study_of

        runs, by = runs_of(runs, study), by or study_of(study).by
    try:
        files = draw(name, runs, FigureOptions(root, by), out or root / "figures", chosen)
    except UsageError as error:
        what, advice, _ = str(error).partition(" Make ")
        if not (study and advice):
            raise
        raise UsageError(
            f"{what} Make the study's runs: harness study {study}{f' --bench {bench}' if bench else ''}"
        ) from error
    print(json.dumps([str(file) for file in files]) if as_json else "\n".join(map(str, files)))
