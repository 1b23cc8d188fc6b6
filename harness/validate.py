"""Whether a store is sound: every record reads, is where it belongs, and its files agree with one another.

Nothing is changed unless records that cannot be read are to be set aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.documents import parse_json, read_json
from harness.errors import UsageError
from harness.interfaces import EVALUATORS
from harness.store import PART, SCHEMA_VERSION, RunResult, Store, lines_of, newer_schema, read_run

ASIDE = "set-aside"
"""The folder in a store that takes what cannot be read."""
_FILES = {"run.json", "points.jsonl", "per_example.parquet", "generations.jsonl"}
_PATH = re.compile(
    r"(?<![\w./:~-])(?:/(?:home|root|Users|tmp|var|mnt|opt|data|work|scratch|private|srv|media)/|[A-Za-z]:\\\\)[\w.-]"
)
"""The beginning of an absolute path, in JSON."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a store."""

    where: str
    """The file or folder, relative to the store's `runs`."""
    what: str
    """What is wrong, in one sentence."""
    unreadable: bool = False
    """Whether it is a record that cannot be read, and may be set aside."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def problems(store: Store) -> Iterator[Problem]:
    """Everything that is wrong with a store, folder by folder."""
    root = store.runs_folder
    for folder in sorted({file.parent for file in root.rglob("*") if file.is_file() and ".locks" not in file.parts}):
        where = folder.relative_to(root).as_posix()
        if len(folder.relative_to(root).parts) != 4:
            names = ", ".join(sorted(f.name for f in folder.iterdir() if f.is_file()))
            yield Problem(where, f"{names} belong to no run (runs lie in <bench>/<model>/<method>/<run id>)")
        elif not (folder / "run.json").is_file():
            yield Problem(where, "there is no run.json", unreadable=True)
        else:
            yield from _of_run(folder, where)


def _of_run(folder: Path, where: str) -> Iterator[Problem]:
    if newer := newer_schema(folder):
        yield Problem(f"{where}/run.json", newer)
        return
    try:
        result = read_run(folder)
    except UsageError:
        yield Problem(f"{where}/run.json", _why_unreadable(folder / "run.json"), unreadable=True)
        return
    if result.spec.folder.as_posix() != where:
        yield Problem(where, f"its spec belongs into {result.spec.folder.as_posix()}: moved, or changed by hand")
    yield from _points(folder, where, result)
    yield from _rows(folder, where, result)
    yield from _texts(folder, where, result)
    for file in sorted(folder.iterdir()):
        if file.name.endswith(PART) and result.status != "done":
            continue  # a process is writing it, or was killed; the run removes it when it goes on
        if file.name not in _FILES:
            yield Problem(f"{where}/{file.name}", "no file of a record")
        elif file.name in ("run.json", "points.jsonl") and (found := _PATH.search("\n".join(lines_of(file)))):
            yield Problem(f"{where}/{file.name}", f"it holds an absolute path ('{found[0]}…')")


def _why_unreadable(path: Path) -> str:
    try:
        told = read_json(path, path.name)
    except UsageError as error:
        return str(error).rstrip(".")
    if not isinstance(told, dict) or "schema_version" not in told:
        return "JSON of something else"
    return f"no record of schema {SCHEMA_VERSION} or earlier: fields are missing, unknown or of a wrong type"


def _points(folder: Path, where: str, result: RunResult) -> Iterator[Problem]:
    path = folder / "points.jsonl"
    lines = [line for line in lines_of(path) if line] if path.is_file() else []
    if len(lines) != len(result.points):
        yield Problem(f"{where}/points.jsonl", f"line {len(result.points) + 1} of {len(lines)} is no next point, or cut off")
    if result.status == "done" and not result.points:
        yield Problem(where, "it is done and has no points")
    steps = [point.step for point in result.points]
    if steps != sorted(set(steps)):
        yield Problem(f"{where}/points.jsonl", f"its steps do not rise: {steps}")


def _rows(folder: Path, where: str, result: RunResult) -> Iterator[Problem]:
    path = folder / "per_example.parquet"
    if not path.is_file():  # an evaluator need not have rows, and committed tries leave out rows and texts
        texts = folder / "generations.jsonl"
        if texts.is_file() and texts.stat().st_size:
            yield Problem(where, "it holds texts and no per_example.parquet")
        return
    import pandas as pd

    try:
        found = set(pd.read_parquet(path, columns=["point"])["point"])
    except (OSError, ValueError, KeyError) as error:
        yield Problem(f"{where}/per_example.parquet", f"it cannot be read ({type(error).__name__})")
        return
    yield from _same_points(f"{where}/per_example.parquet", found, result)


def _texts(folder: Path, where: str, result: RunResult) -> Iterator[Problem]:
    path = folder / "generations.jsonl"
    lines = [line for line in lines_of(path) if line] if path.is_file() else []
    try:
        found = {parse_json(line, where)["point"] for line in lines}
    except (ValueError, KeyError, TypeError):
        yield Problem(f"{where}/generations.jsonl", "a line is no JSON of a text, or cut off")
        return
    if found or ((folder / "per_example.parquet").is_file() and _asked_for_texts(result)):
        yield from _same_points(f"{where}/generations.jsonl", found, result)


def _asked_for_texts(result: RunResult) -> bool:
    return any(EVALUATORS.get(name).asks for name in result.spec.evaluators if name in EVALUATORS.entries)


def _same_points(where: str, found: set[int], result: RunResult) -> Iterator[Problem]:
    listed = {point.index for point in result.points}
    last_only = found == {max(listed, default=0)}  # --rows last, perhaps killed when half of it was cut
    if (missing := sorted(listed - found)) and not last_only:
        yield Problem(where, f"it lacks what belongs to points {missing}")
    # What a killed process wrote of its next point is cut off when the run goes on.
    if result.status == "done" and (more := sorted(found - listed)):
        yield Problem(where, f"it holds points {more}, which are not listed")


def set_aside(store: Store, problem: Problem) -> Path | None:
    """Move a record that cannot be read out of `runs`; None where its run is being written now."""
    where = problem.where.removesuffix("/run.json")
    folder = store.runs_folder / where
    locks = store.runs_folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    try:
        target = store.root / ASIDE / where
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{folder.name}-{number}")
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        return target
    finally:
        lock.release()
