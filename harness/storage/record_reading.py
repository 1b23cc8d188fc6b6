"""Reading a record from its folder, with one sentence on what is wrong with it and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.core.documents import Malformed, Unreadable, place, read_json
from harness.core.errors import UsageError
from harness.storage.cache import canonical
from harness.storage.record_files import RUN, check_kinds, fault, lacks, read_points
from harness.storage.records import SCHEMA_VERSION, RunResult

_RESULT = TypeAdapter(RunResult)


def read_run(folder: Path) -> RunResult:
    """A record from its folder.

    Raises:
        UsageError: if it is damaged or of a newer schema, with the way out.
    """
    try:
        return parse_run(folder)
    except (Malformed, Unreadable) as error:
        raise UsageError(
            f"the record {'/'.join(folder.parts[-4:])}/run.json cannot be read ({str(error).rstrip('.')}); harness validate "
            "--set-aside moves it away; or run with --force."
        ) from error


def parse_run(folder: Path) -> RunResult:
    """A record from its folder.

    Raises:
        Malformed: naming the file and what is wrong with it.
        Unreadable: likewise.
        UsageError: if it is of a newer schema.
    """
    check_kinds(folder)
    return result_of(read_json(folder / RUN), read_points(folder), place(folder / RUN))


def result_of(document: Any, points: Sequence[Any], where: str) -> RunResult:
    """A record out of plain data.

    Args:
        document: what run.json says.
        points: what the lines of points.jsonl say.
        where: the name in messages.

    Raises:
        Malformed: naming what is wrong with it.
        UsageError: if it is of a newer schema.
    """
    if not isinstance(document, dict):
        raise Malformed(f"{where}: JSON of something else; the object of a record is wanted.")
    version = document.get("schema_version", 0)
    if type(version) is int and version > SCHEMA_VERSION:  # whatever else it has: another version may call it otherwise
        raise UsageError(f"{where}: {_newer(document)}.")
    if lacking := [name for name in ("schema_version", "spec", "status") if name not in document]:
        raise Malformed(f"{where}: JSON of something else: {lacks(lacking)}.")
    if type(version) is not int:
        raise Malformed(f"{where}: schema_version is {version!r:.60} and no whole number.")
    try:
        result: RunResult = _RESULT.validate_python({**document, "points": points})
        canonical([point.logged for point in result.points])  # "nan" is a word, and taken for a number
        return result
    except ValidationError as error:
        raise Malformed(f"{where}: no record of schema {SCHEMA_VERSION} or earlier: {fault(error)}.") from None
    except ValueError as error:
        raise error if isinstance(error, Malformed) else Malformed(f"{where}: {error}.") from None


def newer_schema(document: Any) -> str | None:
    """What is needed to read a record that a newer version wrote; None where it is none.

    Args:
        document: what run.json says.
    """
    with suppress(KeyError, TypeError):
        return _newer(document) if document["schema_version"] > SCHEMA_VERSION else None
    return None


def _newer(document: Mapping[str, Any]) -> str:
    made = document.get("provenance")
    version = made.get("harness_version") if isinstance(made, dict) else None
    return (
        f"written by a newer version of unlearning-harness (schema {document['schema_version']}, this one reads up to "
        f"{SCHEMA_VERSION}); to read it, update to {f'version {version} or later' if version else 'a later version'}"
    )
