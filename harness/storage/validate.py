"""Whether a store is sound: every record reads, is where it belongs, and its files agree with one another.

Nothing is changed unless records that cannot be read are to be set aside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from harness.core.documents import Malformed, Unreadable, place, read_json
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS
from harness.storage.cache import disk_errors
from harness.storage.packs import SUFFIX, Pack, opened
from harness.storage.record_files import FILES, POINTS, ROWS, RUN, TEXTS, lines_of, read_questions, read_rows, read_texts
from harness.storage.record_reading import newer_schema, parse_run
from harness.storage.record_writing import PART
from harness.storage.records import RunResult
from harness.storage.store import TAKE_APART, Store

ASIDE = "set-aside"
"""The folder in a store that takes what cannot be read."""
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
    """Everything that is wrong with a store, folder by folder, and then with the questions beside the runs.

    Raises:
        UsageError: if there is no such folder.
    """
    store.check()
    root = store.runs_folder
    for path in sorted(root.glob(f"*{SUFFIX}")):
        yield from _of_pack(store, path)
    files = (file for file in root.rglob("*") if file.is_file() and ".locks" not in file.parts and not _of_packs(file, root))
    for folder in sorted({file.parent for file in files}):
        where = folder.relative_to(root).as_posix()
        if len(folder.relative_to(root).parts) != 4:
            names = ", ".join(sorted(f.name for f in folder.iterdir() if f.is_file() and not _of_packs(f, root)))
            yield Problem(where, f"{names} belong to no run (runs lie in <bench>/<model>/<method>/<run id>)")
        elif not (folder / RUN).is_file():
            yield Problem(where, "there is no run.json", unreadable=True)
        else:
            yield from problems_of(folder, where)
    for file in sorted((store.root / "questions").glob("*")):
        if file.name.endswith(PART):
            continue  # a run is writing it, or was killed; what it was to become is there, or the next run writes it
        try:
            read_questions(file)
        except UsageError as error:
            message = f"{_what(error, file)}; remove it, and the next run on its data writes it anew"
            yield Problem(f"questions/{file.name}", message)


def _what(error: UsageError, file: Path) -> str:
    """What is wrong with a file, without its name."""
    return str(error).removeprefix(place(file)).lstrip(":, ").rstrip(".")


def _of_packs(file: Path, root: Path) -> bool:
    """Whether it is a file of packed runs, or becomes one: packing goes on, or was killed, and clears it away the next time."""
    return file.parent == root and (file.suffix == SUFFIX or (file.name.endswith(PART) and f"{SUFFIX}." in file.name))


def _of_pack(store: Store, path: Path) -> Iterator[Problem]:
    try:
        pack = opened(path)
    except (Malformed, Unreadable) as error:
        yield Problem(path.name, _what(error, path), unreadable=True)
        return
    except UsageError as error:
        yield Problem(path.name, _what(error, path))
        return
    for folder in pack.places:
        if store.packed(folder):  # else it has been superseded
            try:
                yield from _of_packed(pack, folder)
            except UsageError as error:
                what = f"{str(error).removeprefix(f'{path.name}, {folder}').lstrip(':, ').rstrip('.')}; {TAKE_APART}"
                yield Problem(f"{path.name}/{folder}", what)


def _of_packed(pack: Pack, folder: str) -> Iterator[Problem]:
    where = f"{pack.path.name}/{folder}"
    if newer := newer_schema(pack.document(folder)["run"]):
        yield Problem(where, newer)
        return
    result = pack.result(folder)
    if result.spec.folder.as_posix() != folder:
        yield Problem(where, f"its spec belongs into {result.spec.folder.as_posix()}: moved, or changed by hand")
    yield from _points(where, len(pack.document(folder)["points"]), result)
    rows = pack.rows(folder)
    if rows is not None:
        expected = {point.index: point.rows for point in result.points}
        yield from _same_points(f"{where}/{ROWS}", Counter(rows["point"].tolist()), expected, result)
    texts = Counter(text.point for text in pack.texts(folder))
    if texts and rows is None:
        yield Problem(where, "it holds texts and no rows")
    yield from _counted_texts(where, texts, rows is not None, result)
    if match := _PATH.search(pack.line(folder)):
        yield Problem(where, f"it holds an absolute path ('{match[0]}…')")


def problems_of(folder: Path, where: str) -> Iterator[Problem]:
    """Everything that is wrong with a record.

    Args:
        folder: where it lies.
        where: the same, relative to the store's `runs`.
    """
    with suppress(OSError, ValueError):
        if newer := newer_schema(read_json(folder / RUN)):
            yield Problem(f"{where}/{RUN}", newer)
            return
    try:
        result = parse_run(folder)
    except (Malformed, Unreadable) as error:
        yield Problem(f"{where}/{RUN}", _what(error, folder / RUN), unreadable=True)
        return
    if result.spec.folder.as_posix() != where:
        yield Problem(where, f"its spec belongs into {result.spec.folder.as_posix()}: moved, or changed by hand")
    yield from _points(where, sum(map(bool, lines_of(folder / POINTS))), result)
    yield from _rows(folder, where, result)
    yield from _texts(folder, where, result)
    for file in sorted(folder.iterdir()):
        if file.name.endswith(PART) and result.status != "done":
            continue  # a process is writing it, or was killed; the run removes it when it goes on
        if file.name not in FILES:
            yield Problem(f"{where}/{file.name}", "no file of a record")
        elif file.name in (RUN, POINTS) and (match := _PATH.search("\n".join(lines_of(file)))):
            yield Problem(f"{where}/{file.name}", f"it holds an absolute path ('{match[0]}…')")


def _points(where: str, lines: int, result: RunResult) -> Iterator[Problem]:
    if lines != len(result.points):
        what = f"line {len(result.points) + 1} of {lines} is no next point, or cut off"
        # A run that is not done goes on and measures again what is missing; one that is done would stay as it is.
        yield Problem(f"{where}/{POINTS}", what, unreadable=result.status == "done")
    if result.status == "done" and not (result.points or result.unreached):
        yield Problem(where, "it is done and has no points")
    if result.spec.budgets:
        yield from _budgets(where, result)
        return
    steps = [point.step for point in result.points]
    if steps != sorted(set(steps)):
        yield Problem(f"{where}/{POINTS}", f"its steps do not rise: {steps}")


def _budgets(where: str, result: RunResult) -> Iterator[Problem]:
    """Several points may lie between the same two steps, and a method may begin anew for each: their budgets rise."""
    met = [point.budget for point in result.points if point.budget is not None]
    if met != sorted(set(met)):
        yield Problem(f"{where}/{POINTS}", f"its budgets do not rise: {met}")
    if result.status == "done" and (met or result.unreached):
        known = {f"{budget:g}" for budget in met} | set(result.unreached)
        if missing := [f"{budget:g}" for budget in result.spec.budgets if f"{budget:g}" not in known]:
            yield Problem(where, f"it has neither a point nor a reason for the budgets {', '.join(missing)}")


def _rows(folder: Path, where: str, result: RunResult) -> Iterator[Problem]:
    path = folder / ROWS
    if not path.is_file():  # an evaluator need not have rows, and committed tries leave out rows and texts
        texts = folder / TEXTS
        if texts.is_file() and texts.stat().st_size:
            yield Problem(where, "it holds texts and no per_example.parquet")
        return
    try:
        counts = Counter(read_rows(path)["point"].tolist())
    except (Malformed, Unreadable) as error:
        yield Problem(f"{where}/{ROWS}", _what(error, path), unreadable=True)
        return
    expected = {point.index: point.rows for point in result.points}
    yield from _same_points(f"{where}/{ROWS}", counts, expected, result)


def _texts(folder: Path, where: str, result: RunResult) -> Iterator[Problem]:
    path = folder / TEXTS
    try:
        if lines_of(path)[-1]:
            raise Malformed("what follows the last line is cut off")
        counts = Counter(text.point for text in read_texts(path))
    except Unreadable as error:
        yield Problem(f"{where}/{TEXTS}", _what(error, path))
        return
    except Malformed as error:
        yield Problem(f"{where}/{TEXTS}", f"a line is no JSON of a text, or cut off ({_what(error, path)})")
        return
    yield from _counted_texts(where, counts, (folder / ROWS).is_file(), result)


def _counted_texts(where: str, counts: Mapping[int, int], has_rows: bool, result: RunResult) -> Iterator[Problem]:
    expected = {point.index: point.texts for point in result.points}
    if counts or (has_rows and (any(expected.values()) or _asked_for_texts(result))):
        yield from _same_points(f"{where}/{TEXTS}", counts, expected, result)


def _asked_for_texts(result: RunResult) -> bool:
    """Whether its evaluators asked for texts: those that put them to a judge did so only where there was one."""
    if any(point.texts is not None for point in result.points):
        return False  # the record says itself how many there are
    known = [EVALUATORS.get(name) for name in result.spec.evaluators if name in EVALUATORS.entries]
    return any(
        each.needs_generation and (not each.rests_on_more or each.name in result.spec.evaluator_inputs) for each in known
    )


def _same_points(
    where: str, counts: Mapping[int, int], expected: Mapping[int, int | None], result: RunResult
) -> Iterator[Problem]:
    """Whether a file has what belongs to each point, as much of it as the point says."""
    last_only = {*counts} == {max(expected, default=0)}  # --rows last, perhaps killed when half of it was cut
    if (missing := sorted(i for i, count in expected.items() if count != 0 and i not in counts)) and not last_only:
        yield Problem(where, f"it lacks what belongs to points {missing}")
    for index, count in expected.items():
        if index in counts and count not in (None, counts[index]):
            yield Problem(where, f"it has {counts[index]} of {count} that belong to point {index}")
    # What a killed process wrote of its next point is cut off when the run goes on.
    if result.status == "done" and (more := sorted({*counts} - {*expected})):
        yield Problem(where, f"it holds points {more}, which are not listed")


def set_aside(store: Store, problem: Problem) -> Path | None:
    """Move a record that cannot be read out of `runs`; None where its run is being written now.

    Raises:
        UsageError: if the folder cannot be written.
    """
    where = "/".join(problem.where.split("/")[:4])
    folder = store.runs_folder / where
    locks = store.runs_folder / ".locks"
    with disk_errors(f"the results folder {store.root}", "Choose another with --results", whatever=True):
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            return _moved(folder, store.root / ASIDE / where)
        finally:
            lock.release()


def _moved(folder: Path, target: Path) -> Path:
    """Move a folder to where there is none yet; returns where that is."""
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(target)
