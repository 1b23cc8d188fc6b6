"""General text for real models: Alpaca's instructions with their answers, out of the data folder, read when first looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

from harness.core.streams import streams
from harness.core.text import Example, Template
from harness.data.rows import matching, read_rows

DATASET = "tatsu-lab/alpaca"
FILES = ("data/train*.parquet", "alpaca_data.json")
MOST = 1_000
"""Texts that are taken."""
LONGEST_PROMPT = 1_000
"""Characters of a prompt: an answer behind a longer one may be cut off whole."""


@dataclass(frozen=True)
class Instructions(Sequence[Example]):
    """Instructions and their answers; none where the data folder does not hold them: the hub is not asked for them."""

    data_dir: Path | None
    """A folder laid out by hub id."""
    template: Template
    """How they become text."""
    after: int = 0
    """How many of them a metric reads, in the order that is drawn once and for all: these are left out."""

    @cached_property
    def _rows(self) -> tuple[Example, ...]:
        files = matching(self.data_dir / DATASET, FILES) if self.data_dir else []
        rows = [row for file in files for row in read_rows(file, {"instruction": str})]
        streams(0, "instructions of a file").python().shuffle(rows)
        pairs = [(_prompt(row), str(row.get("output") or "")) for row in rows[self.after :]]
        kept = [(prompt, answer) for prompt, answer in pairs if answer.strip() and len(prompt) <= LONGEST_PROMPT]
        return tuple(self.template.example(prompt, answer) for prompt, answer in kept[:MOST])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._rows[index]


def _prompt(row: Mapping[str, object]) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else str(row["instruction"])
