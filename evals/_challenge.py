"""Files of the Training Data Extraction Challenge, as joeljang/knowledge-unlearning keeps them: where they lie, CSV files.

A field's line breaks belong to it, carriage returns among them.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from harness.core.documents import place
from harness.core.errors import UsageError

FOLDER = "tdec"
"""The folder in the data folder: the files themselves, or a checkout of that repository."""
LARGEST_FIELD = 50_000_000
"""Characters of one field."""


def files(data_dir: Path | None, pattern: str) -> list[Path]:
    """The files of a name, sorted; none where there is no data folder.

    Args:
        data_dir: the data folder.
        pattern: of the name; `*` is any part.
    """
    return sorted((data_dir / FOLDER).rglob(pattern)) if data_dir else []


class CsvRow(NamedTuple):
    """A row of a CSV file."""

    where: str
    """Its file and the line it ends on, for messages."""
    fields: dict[str, str]
    """Column → what it holds."""


def csv_rows(file: Path, needed: Collection[str]) -> list[CsvRow]:
    """The rows of a CSV file; those whose needed fields are all blank are left out.

    Args:
        file: the file, whose first line names the columns.
        needed: columns that each row must have.

    Raises:
        UsageError: for a file that is no such CSV, or has no such row, with the line where reading ended.
    """
    if rows := list(_rows(file, needed)):
        return rows
    raise UsageError(f"{place(file)} holds no {' and '.join(needed)}.")


def _rows(file: Path, needed: Collection[str]) -> Iterator[CsvRow]:
    where, most = place(file), csv.field_size_limit(LARGEST_FIELD)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            if missing := [column for column in needed if column not in (reader.fieldnames or ())]:
                raise UsageError(f"{where} is no CSV file with a column '{missing[0]}': its first line is {reader.fieldnames}.")
            width = len(reader.fieldnames or ())
            for row in reader:
                at = f"{where}, line {reader.line_num}"
                if None in row or any(value is None for value in row.values()):
                    got = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                    raise UsageError(
                        f"{at}: {got} fields, the first line names {width}. A text with quotes, commas or line breaks must "
                        "stand in quotes, its own quotes doubled."
                    )
                blank = [column for column in needed if not row[column].strip()]
                if len(blank) == len(needed):
                    continue
                if blank:
                    raise UsageError(f"{at}: the field '{blank[0]}' is empty.")
                yield CsvRow(at, row)
    except csv.Error as error:
        raise UsageError(
            f"{where}, line {reader.line_num}: the quotes are broken ({error}). A text must stand in quotes, its own "
            "quotes doubled."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is no UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}.") from None
    finally:
        csv.field_size_limit(most)
