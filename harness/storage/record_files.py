"""The files of a record as they lie on the disk, and what can be wrong with them: each fault is one sentence naming the file.

    run.json              all but the points
    points.jsonl          one point a line
    per_example.parquet   the row-by-row tables, with the `point` that each row belongs to
    generations.jsonl     one text a line: `point`, `turns`, `text`
    questions/*.jsonl     beside the runs: one question a line

A process may have been killed in the middle of a line: lines are read up to there. Everything else that is not as it was
written was damaged later. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from harness.core.documents import Malformed, Unreadable, json_lines, parse_json, place

if TYPE_CHECKING:
    import pandas as pd

RUN, POINTS, ROWS, TEXTS = FILES = ("run.json", "points.jsonl", "per_example.parquet", "generations.jsonl")
KEYS = ("task", "row", "cluster")
"""Columns that every row-by-row table has."""
_NAMED = 8
"""Fields that a message names; a file that lacks more of them is something else altogether."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Text:
    """What a line of generations.jsonl says."""

    point: int
    """The point whose model said it."""
    turns: list[str]
    """What it was asked."""
    text: str
    """What it said."""
    seed: int = 0
    """Of the sampling, where it was not greedy."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Question:
    """What a line of a file of questions says."""

    task: str
    """Which of the benchmark's sets it is from."""
    row: Any
    """The row in it."""
    cluster: Any
    """What the row belongs together with."""
    turns: list[str]
    """How it is put to the model."""
    question: str = ""
    """As the data set has it."""
    answer: Any = ""
    """The true one."""


_TEXT, _QUESTION = TypeAdapter(Text), TypeAdapter(Question)


def check_kinds(folder: Path) -> None:
    """Look whether what has a file's name is a file.

    Raises:
        Unreadable: naming what is none.
    """
    try:
        odd = [entry.name for entry in os.scandir(folder) if entry.name in FILES and not entry.is_file()]
    except OSError as error:
        raise Unreadable(f"{place(folder)} cannot be read: {error.strerror}.") from None
    if odd:
        raise Unreadable(f"{place(folder / odd[0])} cannot be read: it is no file.")


def lines_of(path: Path) -> list[str]:
    """The lines of a file and what follows the last one: nothing, or what a killed process had begun.

    It may have been killed in the middle of a character. Without a file there is nothing.

    Raises:
        Unreadable: if it cannot be read.
    """
    try:
        return path.read_bytes().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return [""]
    except OSError as error:
        raise Unreadable(f"{place(path)} cannot be read: {error.strerror}.") from None


def read_points(folder: Path) -> list[Any]:
    """The lines of points.jsonl as plain data, up to the first that is not the next point's.

    Raises:
        Unreadable: if it cannot be read.
    """
    return next_points(_parsed(line) for line in lines_of(folder / POINTS))


def next_points(lines: Iterable[Any]) -> list[Any]:
    """Points as plain data, up to the first that is not the next one."""
    points: list[Any] = []
    for line in lines:
        if _number(line) != len(points):
            break  # a line that a killed process had not finished
        points.append(line)
    return points


def point_of(line: str) -> int:
    """The point that a line belongs to; -1 where it does not say."""
    return _number(_parsed(line))


def _parsed(line: str) -> Any:
    """What a line says; None where it is no JSON."""
    try:
        return parse_json(line, "a line")
    except ValueError:
        return None


def _number(line: Any) -> int:
    number = line.get("point", line.get("index")) if isinstance(line, dict) else None
    return number if type(number) is int else -1


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of all points.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: if it is no table of rows.
    """
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except MemoryError:
        raise
    except Exception as error:  # whatever a library says of bytes that are no parquet
        if isinstance(error, OSError) and error.errno:  # the system says it, of a file that may be whole
            raise Unreadable(f"{place(path)} cannot be read: {error.strerror}.") from error
        raise Malformed(f"{place(path)} cannot be read ({type(error).__name__}).") from error
    if missing := [name for name in ("point", *KEYS) if name not in table]:
        raise Malformed(f"{place(path)} has no column '{missing[0]}'.")
    if not pd.api.types.is_integer_dtype(table["point"]):
        raise Malformed(f"{place(path)}: 'point' holds no whole numbers.")
    return table


def read_texts(path: Path) -> Iterator[Text]:
    """Every text, up to what a killed process had not finished.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: naming the line and what is wrong with it.
    """
    *lines, _ = lines_of(path)
    for number, line in enumerate(lines, start=1):
        if line:
            yield text_of(parse_json(line, place(path), number), f"{place(path)}, line {number}")


def text_of(line: Any, where: str) -> Text:
    """A text out of plain data.

    Raises:
        Malformed: naming what is wrong with it.
    """
    text: Text = _checked(_TEXT, line, where)
    return text


def read_questions(path: Path) -> list[Question]:
    """Every question.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: naming the line and what is wrong with it.
    """
    return [_checked(_QUESTION, line, f"{place(path)}, line {number}") for number, line in json_lines(path)]


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with what a file says, and where; of fields that it lacks, all in that place."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":
        beside = first["loc"][:-1]
        return lacks([".".join(map(str, e["loc"])) for e in errors if e["type"] == "missing" and e["loc"][:-1] == beside])
    where = "".join(f"{part}." for part in first["loc"]).rstrip(".")
    return f"a field is unknown or of a wrong type ({f'{where}: ' if where else ''}{first['msg']})"


def lacks(fields: Sequence[str]) -> str:
    """How to say which fields a file does not have."""
    more = f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
    return f"it lacks {', '.join(fields[:_NAMED])}{more}"


def _checked(kind: TypeAdapter[Any], value: Any, where: str) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise Malformed(f"{where}: {fault(error)}.") from None
