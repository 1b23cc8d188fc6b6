"""The program that the commands are registered with.

Torch is imported only by the commands that need it: listing, showing and finding a run that is done do without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated

import typer

from harness import __version__
from harness.cli.mistyped import Group

# Before torch is imported: threads that wait for one another must not spin (seen: seven times slower on shared cores).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

RUN, READ, LOOK, KEEP = "Run", "Read results", "Look around", "Keep house"
PANELS = (RUN, READ, LOOK, KEEP)
"""Headings of `harness --help`, in order."""
COMMANDS: Mapping[str, str] = {
    **{"run": "runs", "transfer": "runs", "sweep": "sweeps", "study": "sweeps", "meta": "sweeps"},
    **{"leaderboard": "pages", "plot": "pages"},
    **{"show": "showing", "score": "showing", "power": "showing", "list": "listing", "test-plugin": "testing"},
    **{"doctor": "keeping", "validate": "keeping", "cache": "keeping", "results": "keeping"},
}
"""Command → the module of this package that registers it."""

app = typer.Typer(
    cls=Group,
    help="Unlearning methods for language models behind one interface, measured alike.",
    epilog="harness run --method kfade --bench tofu10 · harness list methods · harness leaderboard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(cls=Group, help="Trained mini models, curvature and texts kept between runs.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel=KEEP)
results_app = typer.Typer(cls=Group, no_args_is_help=True, help="Results as they are stored.")
app.add_typer(results_app, name="results", rich_help_panel=KEEP)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"unlearning-harness {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    plugins: Annotated[
        str,
        typer.Option(
            "--plugins", envvar="HARNESS_PLUGINS", metavar="DIR", help="A folder, or a file, with plug-ins of your own."
        ),
    ] = "",
) -> None:
    """Unlearning methods for language models behind one interface, measured alike."""


def register(command: str = "") -> typer.Typer:
    """The program with the commands of one module, which is all that running one of them takes; with all for any other word."""
    for module in [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values()):
        import_module(f"harness.cli.{module}")
    app.registered_commands.sort(key=lambda each: PANELS.index(str(each.rich_help_panel)))  # what one comes for first
    return app
