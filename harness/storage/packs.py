"""Finished runs of a benchmark in one file, `runs/<bench>.zip`, in place of a folder for each.

    about.json       the layout's number
    runs.jsonl.xz    a run a line: `place`, `rows` (which of the tables has its rows, or null), `run` (its run.json), `points`
    texts.jsonl.xz   a run a line: `place`, `texts` (the lines of its generations.jsonl); none for a run without that file
    rows-N.parquet   the rows of all runs whose tables have the same columns; the first column, `run`, is the place

Everything a run's folder says is in it; what runs share is stored once, because it is compressed together. A run that has a
folder of its own is read from there: what was made later supersedes what is packed. `harness results pack` makes such a file,
`harness results unpack` the folders again. Imports neither torch nor pandas.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.documents import Malformed, Unreadable, parse_json, place
from harness.core.errors import UsageError
from harness.storage.record_files import KEYS, Text, next_points, text_of
from harness.storage.record_reading import result_of
from harness.storage.records import RunResult

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LAYOUT = 1
"""The layout's number: what is written here, and the latest that can be read."""
ABOUT, RUNS, TEXTS = "about.json", "runs.jsonl.xz", "texts.jsonl.xz"
SUFFIX = ".zip"
_LINE = re.compile(rb'\{"place": "([^"\\]+)", ')
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time that every member bears: equal runs give equal files."""


@dataclass(frozen=True)
class PackedRun:
    """A record as plain data."""

    place: str
    """Its folder, relative to `runs`."""
    run: Any
    """What run.json says."""
    points: Sequence[Any]
    """The lines of points.jsonl."""
    rows: pa.Table | None
    """per_example.parquet; None where there is none."""
    texts: Sequence[Any] | None
    """The lines of generations.jsonl; None where there is none."""


class Pack:
    """A file of packed runs, as it was when it was opened.

    Args:
        path: the file.

    Raises:
        Malformed: if it is no such file, or was damaged.
        Unreadable: if it cannot be read.
        UsageError: if a newer version wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables: dict[str, pa.Table] = {}
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        except OSError as error:
            raise Unreadable(f"{place(path)} cannot be read: {error.strerror}.") from None
        except zipfile.BadZipFile as error:
            raise self._damaged(error) from None
        about = parse_json(self._member(ABOUT), f"{place(path)}, {ABOUT}")
        layout = about.get("layout") if isinstance(about, dict) else None
        if type(layout) is not int:
            raise Malformed(f"{place(path)}: {ABOUT} names no layout.")
        if layout > LAYOUT:
            raise UsageError(f"{place(path)} was written by a newer version of unlearning-harness; to read it, update.")
        self._lines = self._by_place(RUNS)

    @property
    def places(self) -> Sequence[str]:
        """The runs in it, by their folders relative to `runs`."""
        return list(self._lines)

    def __contains__(self, place: str) -> bool:
        return place in self._lines

    def line(self, place: str) -> str:
        """All that is said of a run, as text."""
        return self._lines[place].decode(errors="replace")

    def document(self, place: str) -> Mapping[str, Any]:
        """A run's `run`, `points` and `rows`, as plain data.

        Raises:
            Malformed: if it is no such line.
        """
        content = parse_json(self._lines[place], f"{self.path.name}, {place}")
        if not (isinstance(content, dict) and isinstance(content.get("points"), list) and {"run", "rows"} <= content.keys()):
            raise Malformed(f"{self.path.name}, {place}: JSON of something else.")
        return content

    def result(self, place: str) -> RunResult:
        """A record.

        Raises:
            Malformed: naming what is wrong with it.
            UsageError: if it is of a newer schema.
        """
        document = self.document(place)
        return result_of(document["run"], next_points(document["points"]), f"{self.path.name}, {place}")

    def rows(self, place: str) -> pd.DataFrame | None:
        """The row-by-row tables of all points of a run; None where there are none.

        Raises:
            Malformed: if they are no tables of rows.
        """
        table = self.table(place)
        if table is None:
            return None
        if missing := [name for name in ("point", *KEYS) if name not in table.column_names]:
            raise Malformed(f"{self.path.name}, {place}: its rows have no column '{missing[0]}'.")
        return table.to_pandas()

    def table(self, place: str) -> pa.Table | None:
        """The same as it is stored.

        Raises:
            Malformed: if it is not there.
        """
        import pyarrow.compute as compute

        name = self.document(place)["rows"]
        if name is None:
            return None
        every = self._table(str(name))
        return every.filter(compute.equal(every.column(0), place)).remove_column(0)

    def texts(self, place: str) -> list[Text]:
        """The texts of all points of a run.

        Raises:
            Malformed: naming what is wrong with them.
        """
        where = f"{self.path.name}, {place}"
        return [text_of(line, f"{where}, text {number}") for number, line in enumerate(self.text_lines(place) or (), start=1)]

    def text_lines(self, place: str) -> list[Any] | None:
        """The same as plain data; None where there are none.

        Raises:
            Malformed: if it is no such line.
        """
        if place not in self._texts:
            return None
        content = parse_json(self._texts[place], f"{self.path.name}, {place}")
        if not (isinstance(content, dict) and isinstance(content.get("texts"), list)):
            raise Malformed(f"{self.path.name}, {place}: its texts are JSON of something else.")
        return list(content["texts"])

    def packed(self, place: str) -> PackedRun:
        """All of a run as plain data."""
        document = self.document(place)
        return PackedRun(place, document["run"], document["points"], self.table(place), self.text_lines(place))

    @cached_property
    def _texts(self) -> dict[str, bytes]:
        return self._by_place(TEXTS)

    def _by_place(self, member: str) -> dict[str, bytes]:
        try:
            lines = lzma.decompress(self._member(member)).splitlines()
        except lzma.LZMAError as error:
            raise self._damaged(error) from None
        matches = [(_LINE.match(line), line) for line in lines]
        if any(match is None for match, _ in matches):
            raise Malformed(f"{place(self.path)}: a line of {member} names no run.")
        return {match[1].decode(errors="replace"): line for match, line in matches if match}

    def _table(self, member: str) -> pa.Table:
        if member not in self._tables:
            import pyarrow as pa
            import pyarrow.parquet as parquet

            content = self._member(member)
            try:
                self._tables[member] = parquet.ParquetFile(pa.BufferReader(content)).read()
            except pa.ArrowException as error:
                raise self._damaged(error) from None
        return self._tables[member]

    def _member(self, name: str) -> bytes:
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, KeyError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> Malformed:
        return Malformed(
            f"{place(self.path)} cannot be read ({type(error).__name__}: {str(error).strip(chr(34)).rstrip('.')})."
        )


def opened(path: Path) -> Pack:
    """A file of packed runs as it is now; one that has not changed is not read again.

    Raises:
        Malformed: if it is no such file, was damaged, or holds runs of another benchmark than its name says.
        Unreadable: if it cannot be read.
        UsageError: if a newer version wrote it.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise Unreadable(f"{place(path)} cannot be read: {error.strerror}.") from None
    return _opened(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@lru_cache(maxsize=8)
def _opened(path: Path, stamp: tuple[int, ...]) -> Pack:
    pack = Pack(path)
    for name in pack.places:
        if name.partition("/")[0] != path.stem or name.count("/") != 3:
            raise Malformed(f"{place(path)} holds {name}, which is no run of {path.stem}.")
    return pack


def write_pack(path: Path, runs: Sequence[PackedRun]) -> None:
    """Write a file of packed runs, where nobody reads it yet.

    Args:
        path: the file.
        runs: sorted by their places.
    """
    about = {"layout": LAYOUT, "what": "finished runs of unlearning-harness; harness results unpack makes folders of them"}
    tables = _tables(runs)
    of_run = {run: name for name, (_, group) in tables.items() for run in group}
    lines = [{"place": run.place, "rows": of_run.get(run.place), "run": run.run, "points": run.points} for run in runs]
    texts = [{"place": run.place, "texts": run.texts} for run in runs if run.texts is not None]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(ABOUT, _EPOCH), json.dumps(about, indent=1) + "\n")
        for name, content in ((RUNS, lines), (TEXTS, texts)):
            text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in content)
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), lzma.compress(text.encode()))
        for name, (table, _) in tables.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), _parquet(table))


def _tables(runs: Sequence[PackedRun]) -> dict[str, tuple[pa.Table, Sequence[str]]]:
    """The runs' rows and places, those of equal columns in one table: no run gets a column, or a type, from its neighbours."""
    import pyarrow as pa

    alike: dict[Any, list[tuple[str, pa.Table]]] = {}
    for run in runs:
        if run.rows is not None:
            alike.setdefault(run.rows.schema, []).append((run.place, run.rows))
    made: dict[str, tuple[pa.Table, Sequence[str]]] = {}
    for number, group in enumerate(alike.values(), start=1):
        every = pa.concat_tables([rows for _, rows in group])
        names = pa.array([name for name, rows in group for _ in range(len(rows))], pa.string())
        made[f"rows-{number}.parquet"] = (every.add_column(0, "run", names), [name for name, _ in group])
    return made


def _parquet(table: pa.Table) -> bytes:
    """A table with its numbers in full: the bytes of floats are stored apart, first bytes with first bytes, also in lists."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    lists = {f.name: f.type.value_type for f in table.schema if pa.types.is_list(f.type) or pa.types.is_large_list(f.type)}
    kinds = {f"{f.name}.list.element" if f.name in lists else f.name: lists.get(f.name, f.type) for f in table.schema}
    floats = [path for path, kind in kinds.items() if pa.types.is_floating(kind)]
    out = io.BytesIO()
    parquet.write_table(
        table,
        out,
        compression="zstd",
        compression_level=19,
        use_dictionary=[path for path in kinds if path not in floats],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        row_group_size=max(1, len(table)),
    )
    return out.getvalue()
