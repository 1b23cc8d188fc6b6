"""The Challenge's files: forget sets and running text, as joeljang/knowledge-unlearning keeps them.

They are CSV files with a field `text`, whose line breaks belong to it, carriage returns among them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.core.documents import place
from harness.core.errors import UsageError
from harness.core.problem import Row

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


def forget_sets(data_dir: Path | None, size: int) -> list[Path]:
    """The files of the draws of a size, in order of their numbers.

    Raises:
        UsageError: where there is none, saying where it was looked for.
    """
    draws: dict[int, Path] = {}
    for file in files(data_dir, f"lm_extraction_{size}_*.csv"):
        if number := re.fullmatch(rf"lm_extraction_{size}_(\d+)\.csv", file.name):
            draws.setdefault(int(number[1]), file)
    if draws:
        return [draws[number] for number in sorted(draws)]
    where = f"the data folder has no {FOLDER}/lm_extraction_{size}_0.csv" if data_dir else "there is no data folder"
    raise UsageError(
        f"{where}. Put the forget sets of joeljang/knowledge-unlearning (data/main) into DIR/{FOLDER} and give --data-dir DIR "
        "(or HARNESS_DATA), or take the embedded model: --model mini."
    )


def texts(file: Path) -> list[Row]:
    """The rows of a file: text, and what names it as `cluster`.

    Raises:
        UsageError: for a file that is no such CSV, with the line where reading ended.
    """
    rows = list(_rows(file))
    if not rows:
        raise UsageError(f"{place(file)} holds no text.")
    clusters = [str(row.get("doc_id") or number) for number, row in enumerate(rows)]
    named = clusters if len({*clusters}) == len(clusters) else [str(number) for number in range(len(rows))]
    return [{"text": row["text"], "cluster": cluster} for row, cluster in zip(rows, named, strict=True)]


def _rows(file: Path) -> Iterator[dict[str, str]]:
    where, most = place(file), csv.field_size_limit(LARGEST_FIELD)
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            if "text" not in (reader.fieldnames or ()):
                raise UsageError(f"{where} is no CSV file with a column 'text': its first line is {reader.fieldnames}.")
            width = len(reader.fieldnames or ())
            for row in reader:
                if None in row or any(value is None for value in row.values()):
                    got = sum(value is not None for key, value in row.items() if key) + len(row.get(None, ()))
                    raise UsageError(
                        f"{where}, line {reader.line_num}: {got} fields, the first line names {width}. A text with quotes, "
                        "commas or line breaks must stand in quotes, its own quotes doubled."
                    )
                if row["text"].strip():
                    yield row
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


def numbered(rows: Sequence[Row]) -> list[Row]:
    """Rows with their numbers, as evaluators want them."""
    return [{"row": number, **row} for number, row in enumerate(rows)]
