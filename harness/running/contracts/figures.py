"""What a figure promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError
from harness.core.figure import Figure, FigureOptions, Sheet
from harness.running.contracts.promises import Check, keep

if TYPE_CHECKING:
    import pandas as pd


def checks(figure: Figure, runs: pd.DataFrame, results: Path) -> Iterator[Check]:
    """All of them.

    Args:
        figure: whose.
        runs: the table of recorded runs.
        results: where they are recorded.
    """
    options = FigureOptions(results)
    promises: Mapping[str, Callable[[], None]] = {
        "it draws from the runs' table, or refuses in a sentence": lambda: draws_or_refuses(figure, runs, options),
        "it refuses a table without runs in a sentence": lambda: draws_or_refuses(figure, runs.iloc[:0], options),
    }
    for promise, run in promises.items():
        yield Check(f"figure {figure.name}", promise, run)


def draws_or_refuses(figure: Figure, runs: pd.DataFrame, options: FigureOptions) -> None:
    """Drawings and sheets by name, and the table as it was; or a UsageError of one line."""
    before = runs.copy()
    try:
        made: Any = figure.drawn(runs, options)
    except UsageError as error:
        keep("\n" not in str(error) and str(error), "what it refuses with is no sentence")
        return
    keep(runs.equals(before), "it changes the table that it is given: copy it first")
    keep(made, "it draws nothing and refuses nothing: raise UsageError, naming the command that makes what is missing")
    for name, each in made.items():
        keep(isinstance(each, Sheet) or hasattr(each, "savefig"), f"'{name}' is neither a drawing nor a Sheet")
