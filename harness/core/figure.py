"""What a figure is: it sees nothing but the table of what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UsageError
from harness.core.registry import Registry

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class FigureOptions:
    """What a figure is told besides the runs' table."""

    results: Path
    """The results folder, for figures that show texts."""
    by: str = ""
    """The setting whose values are compared, for figures that compare settings."""


@dataclass(frozen=True)
class Sheet:
    """A table in two forms."""

    numbers: pd.DataFrame
    """Every number in full, for CSV."""
    shown: pd.DataFrame
    """The same as a reader wants it, all text, for Markdown and LaTeX."""
    caption: str
    """What it shows, in one sentence."""
    notes: Sequence[str] = ()
    """What is needed to read it: rules, intervals, what was left out."""


Draw = Callable[["pd.DataFrame", FigureOptions], "Mapping[str, Drawing | Sheet]"]
"""The runs' table (`Store.frame`) → drawings and tables by name; the name is the file's, behind the figure's own.

Numbers of different benchmarks, models, variants, retain sets or metric versions never share one.
"""


@dataclass(frozen=True)
class Figure:
    """A registered figure, or a table."""

    name: str
    """Its file's name."""
    draw: Draw
    """The figure itself. Raises `UsageError`, naming the command that makes what is missing, where there is nothing to show."""
    at_budgets: bool = False
    """Whether it is of runs with budgets of damage, which have no last point to speak for them; of all others if not."""

    def drawn(self, runs: pd.DataFrame, options: FigureOptions) -> Mapping[str, Drawing | Sheet]:
        """The figure, of those of the runs that it is about.

        Args:
            runs: the runs' table.
            options: what it is told besides.

        Raises:
            UsageError: where there are only runs with budgets, and it is of the others; and what `draw` raises.
        """
        if "budget_rows" in runs:  # an empty table has no columns
            of_those = runs[(runs["budget_rows"] != "") == self.at_budgets]
            if len(runs) and of_those.empty and not self.at_budgets:
                raise UsageError(
                    f"all runs there have budgets of damage, and {self.name} is of runs without any. "
                    "Run methods without --budgets, or take a figure that is of runs with them; see harness list figures."
                )
            runs = of_those
        return self.draw(runs, options)


FIGURES: Registry[Figure] = Registry("figure", "plots", "figure", "harness list figures")


def figure(name: str, at_budgets: bool = False) -> Callable[[Draw], Draw]:
    """Register the decorated function as a figure under its file's name.

    Args:
        name: the file's.
        at_budgets: whether it is of runs with budgets of damage; it sees no others then, and none of them else.
    """

    def register(draw: Draw) -> Draw:
        FIGURES.register(name, Figure(name, draw, at_budgets))
        return draw

    return register
