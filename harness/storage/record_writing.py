"""Writing a record while its run goes on: what is listed is whole, whenever the process may be killed."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.config import to_json
from harness.core.documents import Malformed
from harness.core.evaluator import GenerationRequest
from harness.core.options import Rows
from harness.storage.cache import disk_errors, flush
from harness.storage.frames import in_one
from harness.storage.record_files import POINTS, ROWS, RUN, TEXTS, lines_of, point_of, read_rows
from harness.storage.records import Point, RunResult

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_KEPT: Mapping[Rows, slice] = {"all": slice(None), "last": slice(-1, None), "none": slice(0)}
"""The points whose rows and texts are kept."""
PART = ".part"
"""How the name of a file ends that is being written."""


class Record:
    """One run's folder, open for writing under its lock; see `Store.open`."""

    def __init__(self, folder: Path, result: RunResult) -> None:
        self.folder = folder
        self.result = result
        self.points: list[Point] = list(result.points)

    def add(self, point: Point, tables: Mapping[str, pd.DataFrame], texts: Mapping[GenerationRequest, str]) -> None:
        """Store a point. Rows and texts go first: a point that is listed has all that belongs to it.

        Raises:
            UsageError: if the disk is full.
        """
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            point = replace(point, rows=self._keep_rows(point.index, tables), texts=len(texts))
            if texts:
                self._keep_texts(point.index, texts)
            with (self.folder / POINTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(to_json(point), ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.points.append(point)

    def keep_points(self, count: int) -> None:
        """Keep the first points only, and cut off what a killed process had written of one that is not listed.

        Raises:
            UsageError: if the disk is full.
        """
        dropped = self.points[count:]
        del self.points[count:]
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            for name in (POINTS, TEXTS):
                self._cut_lines(name, range(count))
            if dropped:
                self._cut_rows(range(count))

    def keep_whole_points(self, rows: Rows = "all") -> None:
        """Keep the points up to the first whose rows or texts are not there as they were written: it is measured anew.

        Args:
            rows: of which points they have to be there.

        Raises:
            UsageError: if the disk is full, or a file cannot be read.
        """
        counted, texts = self._rows_of_points(), Counter(point_of(line) for line in lines_of(self.folder / TEXTS))
        for point in self.points[_KEPT[rows]]:
            lacking = counted is None or point.rows not in (None, counted[point.index])
            if lacking or point.texts not in (None, texts[point.index]):
                log.warning(
                    "rows or texts of point %d of run %s are gone or damaged; from there on it is measured anew",
                    *(point.index, self.result.spec.run_id),
                )
                self.keep_points(point.index)
                return

    def keep_rows(self, rows: Rows) -> None:
        """Let go of the rows and texts of all points but the last one, or of all: they are most of a record's size.

        Raises:
            UsageError: if the disk is full.
        """
        kept = range(len(self.points))[_KEPT[rows]]
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            if rows == "none":
                (self.folder / ROWS).unlink(missing_ok=True)
                (self.folder / TEXTS).unlink(missing_ok=True)
            elif rows == "last":
                self._cut_rows(kept)
                self._cut_lines(TEXTS, kept)

    @property
    def written(self) -> bool:
        """Whether the run got far enough to have a record."""
        return (self.folder / RUN).exists()

    def discard(self) -> None:
        """Take back the record of a run that never came to a point."""
        (self.folder / RUN).unlink(missing_ok=True)

    def write(self, result: RunResult) -> None:
        """Write run.json, whole or not at all."""
        self.result = result
        document = to_json(result)
        del document["points"]
        text = run_text(document)
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            replace_file(self.folder / RUN, text.encode())

    def _keep_texts(self, index: int, texts: Mapping[GenerationRequest, str]) -> None:
        with (self.folder / TEXTS).open("a", encoding="utf-8") as file:
            for request, text in texts.items():
                line = {"point": index, "turns": list(request.turns), "text": text}
                if request.sampling.temperature > 0:
                    line |= {"seed": request.sampling.seed}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _rows_of_points(self) -> Counter[int] | None:
        """How many rows each point has; None where the file is damaged, and then it is put out of the way."""
        path = self.folder / ROWS
        if not path.is_file():
            return Counter()
        try:
            return Counter(read_rows(path)["point"].tolist())
        except Malformed as error:
            log.warning("%s", error)
            path.unlink()
            return None

    def _keep_rows(self, index: int, tables: Mapping[str, pd.DataFrame]) -> int:
        import pandas as pd

        merged = in_one(tables.values())
        if merged is None:
            return 0
        merged = merged.assign(point=index)
        count, path = len(merged), self.folder / ROWS
        if path.exists():
            earlier = read_rows(path)
            # Rows of this point or later ones are left from a process that was killed before it listed them.
            merged = pd.concat([earlier[earlier["point"] < index], merged], ignore_index=True)
        self._write_rows(merged)
        return count

    def _cut_rows(self, points: range) -> None:
        path = self.folder / ROWS
        if path.is_file():
            table = read_rows(path)
            self._write_rows(table[table["point"].isin(points)])

    def _cut_lines(self, name: str, points: range) -> None:
        path = self.folder / name
        if path.is_file():
            lines = lines_of(path)
            kept = [*(line for line in lines if point_of(line) in points), ""]
            if kept != lines:  # a record that is whole is not touched by being opened
                replace_file(path, "\n".join(kept).encode())

    def _write_rows(self, table: pd.DataFrame) -> None:
        with whole_file(self.folder / ROWS) as part:
            table.to_parquet(part, compression="zstd", index=False)


def run_text(document: Mapping[str, Any]) -> str:
    """What run.json says, as it is written."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as part:
        part.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` once all of it is on the disk; half a file is not left behind."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")  # two runs may write down at once what they are asked
    try:
        yield part
        flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    flush(path.parent)
