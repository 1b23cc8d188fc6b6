"""`harness test-plugin`: whether a file keeps what plug-ins promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import LOOK, app
from harness.cli.control import Json, no_bars, print_json
from harness.core.config import parse


@app.command("test-plugin", rich_help_panel=LOOK)
def check_plugin(
    file: Annotated[Path, typer.Argument(help="A file with methods, evaluators, benchmarks or figures.")],
    bench: Annotated[
        str, typer.Option("--bench", "-b", help="On whose data methods, evaluators and figures are tried.")
    ] = "tofu10",
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting for the trial, key=value.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check what a plug-in promises, on tiny random models: a line for each check; exit code 1 if one fails.

    harness test-plugin my_method.py --set steps=2
    """
    no_bars()
    from harness.running.contracts.files import checks_of, plugins_of
    from harness.running.contracts.promises import outcomes
    from harness.storage.temporary import temporary_folder

    reported = []
    for kind, name in plugins_of(file):
        with temporary_folder() as folder:
            for outcome in outcomes(checks_of(kind, name, bench, parse(settings or ()), folder)):
                reported.append(outcome)
                if not as_json:
                    print(outcome, flush=True)
    failed = sum(bool(outcome.broken) for outcome in reported)
    if as_json:
        print_json([vars(outcome) for outcome in reported])
    else:
        print(f"{len(reported)} checks, {failed} failed" if failed else f"{len(reported)} checks, all kept")
    if failed:
        raise typer.Exit(1)
