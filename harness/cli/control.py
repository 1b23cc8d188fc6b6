"""How a command is done and shown, apart from what it is asked: where records go, how progress is told, what is printed."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.core.fields import Field, number, path, switch, word
from harness.numerics.group import is_first

if TYPE_CHECKING:
    from harness.storage.records import RunResult

OUTPUT, DOING = "Output", "How it is done"
"""Headings of `--help`."""

Results = Annotated[
    Path | None,
    typer.Option(
        "--results", envvar="HARNESS_RESULTS", show_default="harness-results", help="Where records are.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True, kw_only=True)
class Control:
    """What every command that runs something takes."""

    results: Annotated[Path | None, Field(path, OUTPUT, metavar="DIR", variable="HARNESS_RESULTS")] = None
    """Where records go; ./harness-results by default."""
    progress: Annotated[
        str, Field(word("auto", "bar", "plain", "none"), OUTPUT, metavar="WORD", completes="auto|bar|plain|none")
    ] = "auto"
    """How far it is: bars on a terminal, else a plain line every 30 s (auto); bar, plain or none."""
    quiet: Annotated[bool, Field(switch, OUTPUT, short="-q", switch=True)] = False
    """No progress; the table alone."""
    json: Annotated[bool, Field(switch, OUTPUT, switch=True)] = False
    """Print JSON for scripts, nothing else."""

    @property
    def silent(self) -> bool:
        """Whether nothing is said on the way."""
        return self.quiet or self.json or self.progress == "none"

    @property
    def root(self) -> Path:
        """The results folder."""
        return results_root(self.results)


@dataclass(frozen=True, kw_only=True)
class RunControl(Control):
    """How a run is done."""

    spec: Annotated[Path | None, Field(path, DOING, metavar="FILE")] = None
    """Repeat a recorded run: its run.json."""
    save_model: Annotated[Path | None, Field(path, DOING, metavar="DIR")] = None
    """Folder for the unlearned checkpoint."""
    save_update: Annotated[Path | None, Field(path, DOING, metavar="FILE")] = None
    """File for the weight difference."""
    force: Annotated[bool, Field(switch, DOING, switch=True)] = False
    """Run anew even if it is done."""


@dataclass(frozen=True, kw_only=True)
class SweepControl(Control):
    """How the runs of a sweep or a study are done."""

    executor: Annotated[str, Field(word("local", "ray"), DOING, metavar="WORD", completes="local|ray")] = "local"
    """Here (local), or on the Ray cluster of RAY_ADDRESS (ray; a shared file system is needed)."""
    jobs: Annotated[int | None, Field(number(1, 1000), DOING, short="-j", metavar="NUMBER")] = None
    """So many runs at a time, each in a process of its own."""
    dry_run: Annotated[bool, Field(switch, DOING, switch=True)] = False
    """Only say which runs it is and how long they will take."""
    yes: Annotated[bool, Field(switch, DOING, switch=True)] = False
    """Go ahead with more than 10,000 runs."""


def results_root(given: Path | None) -> Path:
    """The results folder: as given, by `--results` or HARNESS_RESULTS, else `harness-results` in the current folder."""
    return given or Path("harness-results")


def no_bars() -> None:
    """Show no bars of single runs; tqdm asks when it is imported."""
    os.environ["TQDM_DISABLE"] = "1"


def choose_progress(control: Control) -> None:
    """Let bars be shown as asked, or not at all; of several processes only the first one shows any."""
    os.environ["HARNESS_PROGRESS"] = "none" if control.silent or not is_first() else control.progress
    if control.silent or not is_first():
        no_bars()


def tell_costs() -> None:
    """Let the modules that estimate memory and a judge's work say so."""
    for name in ("harness.models.memory", "harness.core.judging"):
        logging.getLogger(name).setLevel(logging.INFO)


def print_json(value: Any) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(value, ensure_ascii=False))


def report_failures(runs: Sequence[object], results: Sequence[RunResult]) -> None:
    """Name what is not done, at the end, and leave with exit code 2."""
    failed = [(run, result) for run, result in zip(runs, results, strict=True) if result.status != "done"]
    for run, result in failed:
        reason = result.error.partition("\n")[0] or "no reason is recorded"
        print(f"not done: {run} ({result.status}, run {result.spec.run_id}): {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(2)
