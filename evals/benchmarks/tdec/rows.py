"""The Challenge's texts: forget sets, and running text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from evals._challenge import FOLDER, csv_rows, files
from harness.core.errors import UsageError, cut
from harness.core.problem import Row


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


class Text(NamedTuple):
    """A text with its tokens counted."""

    row: Row
    """The text, and what names it as `cluster`."""
    tokens: int
    """How many it has."""


def texts(file: Path, count: Callable[[Sequence[str]], Sequence[int]]) -> list[Text]:
    """The texts of a file.

    Args:
        file: one of the Challenge's.
        count: texts → each one's number of tokens.

    Raises:
        UsageError: for a file that is no such CSV, with the line where reading ended; for a text of one token.
    """
    rows = csv_rows(file, ("text",))
    counts = count([row.fields["text"] for row in rows])
    for row, tokens in zip(rows, counts, strict=True):
        if tokens < 2:
            raise UsageError(
                f"{row.where}: '{cut(row.fields['text'])}' is a text of one token, which no token before it predicts. Take it "
                "out of the file."
            )
    clusters = [str(row.fields.get("doc_id") or number) for number, row in enumerate(rows)]
    named = clusters if len({*clusters}) == len(clusters) else [str(number) for number in range(len(rows))]
    return [
        Text({"text": row.fields["text"], "cluster": cluster}, tokens)
        for row, cluster, tokens in zip(rows, named, counts, strict=True)
    ]


def numbered(rows: Sequence[Row]) -> list[Row]:
    """Rows with their numbers, as evaluators want them."""
    return [{"row": number, **row} for number, row in enumerate(rows)]
