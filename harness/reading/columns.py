"""A table of short cells on a terminal, in which no number is ever wrapped or cut."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table

from harness.core.config import written


@dataclass
class Columns:
    """A table of short cells; where it is wider than the console, several below one another, the first column repeated.

    A number that is wrapped or cut short reads as another number, so no cell ever is.
    """

    headings: Sequence[str]
    """Over the columns; wrapped between words where the table is wide."""
    title: str | None = None
    """Above the table."""
    left: Sequence[int] = (0,)
    """Columns that are aligned left; the others are aligned right."""
    rows: list[tuple[list[str], str | None]] = field(default_factory=list)
    """Cells and the style of each row."""
    sections: list[int] = field(default_factory=list)
    """Numbers of rows under which there is a line."""

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """Append a row."""
        self.rows.append(([*cells], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table, or tables, for a console's width."""
        numbers = range(len(self.headings))
        body = [max((_width(cells[i]) for cells, _ in self.rows), default=0) for i in numbers]
        if sum(max(b, _width(h)) + 3 for b, h in zip(body, self.headings, strict=True)) + 1 <= options.max_width:
            yield self._part(list(numbers), self.headings)
            return
        heads = [wrapped(heading, width) for heading, width in zip(self.headings, body, strict=True)]
        widths = [max(b, _width(h)) + 3 for b, h in zip(body, heads, strict=True)]
        parts: list[list[int]] = [[0]]
        for i in numbers[1:]:
            if len(parts[-1]) > 1 and sum(widths[j] for j in parts[-1]) + widths[i] + 1 > options.max_width:
                parts.append([0])
            parts[-1].append(i)
        for part in parts:
            yield self._part(part, heads)

    def _part(self, columns: Sequence[int], headings: Sequence[str]) -> Table:
        table = Table(title=self.title if 1 in columns else None, title_justify="left", header_style="bold")
        for i in columns:
            table.add_column(headings[i], justify="left" if i in self.left else "right", overflow="fold")
        for number, (cells, style) in enumerate(self.rows, start=1):
            table.add_row(*(cells[i] for i in columns), style=style, end_section=number in self.sections)
        return table


def _width(cell: str) -> int:
    return max((cell_len(line) for line in cell.splitlines()), default=0)


def wrapped(heading: str, width: int) -> str:
    """The heading on several lines, none longer than the width or than its longest word."""
    lines = [""]
    for word in heading.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if not lines[-1] or cell_len(longer) <= width else [*lines, word]
    return "\n".join(lines)


def settings_table(rows: Sequence[tuple[str, object, str]], title: str, marked: Collection[str] = ()) -> Table:
    """A method's settings with their values and what they mean.

    Args:
        rows: name, value and meaning.
        title: above the table.
        marked: the settings whose values get an asterisk.
    """
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in ("setting", "value", "meaning"):
        table.add_column(heading)
    for name, value, meaning in rows:
        table.add_row(name, written(value) + " *" * (name in marked), meaning)
    return table
