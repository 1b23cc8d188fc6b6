"""`harness leaderboard` and `harness plot`: what is made of the records."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import READ, app
from harness.cli.control import OUTPUT, Results, results_root
from harness.cli.flags import Words, command
from harness.core.errors import UsageError
from harness.core.fields import Field, names, path, read, switch, text


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
    elif differing := difference(root, files):
        print(f"{differing}\nharness leaderboard makes it anew.", file=sys.stderr)
        raise typer.Exit(1)
    else:
        print("the leaderboard is what the records make of it.")


@dataclass(frozen=True, kw_only=True)
class FigureRequest:
    """What a figure is drawn from."""

    bench: Annotated[str, Field(text, short="-b", metavar="NAME", completes="benches")] = ""
    """Only runs on this benchmark."""
    model: Annotated[str, Field(text, metavar="NAME", completes="models")] = ""
    """Only runs with this model."""
    method: Annotated[tuple[str, ...], Field(names("a method"), short="-m", metavar="NAMES", completes="methods")] = ()
    """Only these methods, parted by commas."""
    by: Annotated[str, Field(text, metavar="SETTING")] = ""
    """The setting whose values are compared, for ablation."""
    study: Annotated[str, Field(text, metavar="NAME")] = ""
    """Only the runs of this study; compares by its setting."""


@dataclass(frozen=True, kw_only=True)
class FigureControl:
    """Where a figure's files go."""

    results: Annotated[Path | None, Field(path, OUTPUT, metavar="DIR", variable="HARNESS_RESULTS")] = None
    """Where records are; ./harness-results by default."""
    out: Annotated[Path | None, Field(path, OUTPUT, metavar="DIR")] = None
    """Where the files go; figures/ of the results by default."""
    formats: Annotated[str, Field(text, OUTPUT, flag="--format", metavar="NAMES")] = ""
    """svg, png, pdf, csv, md, tex, parted by commas; all by default."""
    json: Annotated[bool, Field(switch, OUTPUT, switch=True)] = False
    """Print JSON for scripts."""


@command(app, FigureRequest, FigureControl, panel=READ)
def plot(
    words: Words,
    control: FigureControl,
    name: Annotated[str, typer.Argument(help="A figure or table; see harness list figures.")],
) -> None:
    """Draw a figure or write a table from what is recorded; an unchanged store gives the same files."""
    from harness.core.figure import FIGURES, FigureOptions
    from harness.reading.figures import draw, formats_of, select
    from harness.storage.store import Store

    request = read(FigureRequest, words.environment, words.typed)
    chosen, root, by = formats_of(control.formats), results_root(control.results), request.by
    if name not in FIGURES.entries:
        FIGURES.get(name)  # says which there are, before anything is read
    runs = select(Store(root), request.bench, request.model, request.method)
    if request.study:
        from harness.running.studies import runs_of, study_of

        runs, by = runs_of(runs, request.study), by or study_of(request.study).by
    try:
        files = draw(name, runs, FigureOptions(root, by), control.out or root / "figures", chosen)
    except UsageError as error:
        what, advice, _ = str(error).partition(" Make ")
        if not (request.study and advice):
            raise
        bench = f" --bench {request.bench}" if request.bench else ""
        raise UsageError(f"{what} Make the study's runs: harness study {request.study}{bench}") from error
    print(json.dumps([str(file) for file in files]) if control.json else "\n".join(map(str, files)))
