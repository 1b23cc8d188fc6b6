"""The papers' own tables, as `results/published/*.json` tells them; see the README there.

They are never mixed with what is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.core.documents import read_json
from harness.core.errors import UsageError
from harness.core.evaluator import metric_of
from harness.reading.formats import NO_NUMBER
from harness.storage.record_files import fault

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_CONFIG)
class Cell:
    """A number with what the paper prints beside it."""

    value: float
    """The number."""
    plus_minus: int | float | None = None
    """What follows its ±."""
    interval: tuple[int | float, int | float] | None = None
    """What stands in brackets."""
    doubtful: bool = False
    """Whether it cannot be read surely."""


@dataclass(frozen=True, config=_CONFIG)
class Column:
    """A metric of a table."""

    metric: str
    """In this harness's names."""
    title: str
    """As the paper has it."""
    better: Literal["higher", "lower", "closer"]
    """Which way is good."""
    decimals: Annotated[int, Field(ge=0, le=20)]
    """As printed."""


@dataclass(frozen=True, config=_CONFIG)
class PaperRow:
    """A method."""

    method: str
    """In this harness's names."""
    name: str
    """As the paper has it."""
    values: Mapping[str, float | Cell]
    """By metric; what the paper does not give is left out."""


@dataclass(frozen=True, config=_CONFIG)
class PaperTable:
    """The rows of one benchmark."""

    bench: str
    """The benchmark."""
    rows: Sequence[PaperRow]
    """In the paper's order."""


@dataclass(frozen=True, config=_CONFIG)
class Paper:
    """A file."""

    paper: str
    """Which."""
    source: str
    """Where in it the numbers stand."""
    model: str
    """Of whom they are."""
    protocol: str
    """What they are."""
    columns: Sequence[Column]
    """What was measured."""
    tables: Sequence[PaperTable]
    """One for each benchmark."""
    notes: Sequence[str]
    """What a reader must know."""


_PAPER = TypeAdapter(Paper)


def read_published(root: Path, skipped: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every table of a results folder, its numbers as they are printed.

    Args:
        root: the results folder.
        skipped: told of each file that is no such table.
    """
    papers = []
    for file in sorted((root / "published").glob("*.json")):
        try:
            papers.append(_printed(_PAPER.validate_python(read_json(file))))
        except (UsageError, ValidationError) as error:
            why = fault(error) if isinstance(error, ValidationError) else str(error).rstrip(".")
            skipped(f"published/{file.name} is no table of published numbers: {why}")
    return papers


def _printed(paper: Paper) -> dict[str, Any]:
    tables = [
        {
            "title": f"{table.bench} on {paper.model}",
            "columns": [vars(column) for column in paper.columns],
            "rows": [(row.name, [_number(row.values.get(c.metric), c) for c in paper.columns]) for row in table.rows],
        }
        for table in paper.tables
    ]
    about = {"paper": paper.paper, "source": paper.source, "protocol": paper.protocol, "notes": paper.notes}
    return {**about, "tables": tables}


def _number(value: float | Cell | None, column: Column) -> str:
    if value is None:
        return NO_NUMBER
    cell = value if isinstance(value, Cell) else Cell(value)
    match = metric_of(column.metric)
    scientific = match is not None and match[1].unit == "p-value" and cell.value < 0.1
    text = f"{cell.value:.2e}" if scientific else f"{cell.value:.{column.decimals}f}"
    if cell.plus_minus is not None:
        text += f" ± {cell.plus_minus}"
    if cell.interval:
        text += f" [{cell.interval[0]}, {cell.interval[1]}]"
    return text + ("?" if cell.doubtful else "")
