"""Folders of finished runs into one file for each benchmark, and back: what a store holds takes a fifth of the room.

A file is written beside its place, read back and compared with the folders, and then takes its place in one step; only then
are the folders removed. Whoever is killed in between leaves both forms, and both whole. What is not done, not sound, or being
written stays in its folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from harness.core.documents import parse_json, read_json
from harness.core.errors import UsageError
from harness.storage.cache import disk_errors
from harness.storage.packs import SUFFIX, Pack, PackedRun, opened, write_pack
from harness.storage.record_files import POINTS, ROWS, RUN, TEXTS, lines_of, read_points
from harness.storage.record_writing import PART, run_text, whole_file
from harness.storage.store import Store
from harness.storage.validate import problems_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
Stamp = Sequence[tuple[str, int, int]]


@dataclass(frozen=True)
class Packing:
    """What became of a benchmark's runs."""

    path: Path
    """The file."""
    runs: int
    """How many are in it."""
    bytes: int
    """Its size."""
    left: Sequence[str]
    """Why runs stay in their folders: a sentence for each, naming the run."""


# ---------------------------------------------------------------- into one file


def pack(store: Store) -> Iterator[Packing]:
    """Pack every finished run of a store that has a folder of its own, benchmark by benchmark.

    Raises:
        UsageError: if the store cannot be read or written, or another process packs it.
    """
    store.check()
    for bench in sorted({place.partition("/")[0] for place in store.places()}):
        with _alone(store, bench):
            packing = _pack(store, bench)
        if packing:
            yield packing


def _pack(store: Store, bench: str) -> Packing | None:
    path = store.runs_folder / f"{bench}{SUFFIX}"
    for part in store.runs_folder.glob(f"{path.name}.*{PART}"):
        part.unlink()  # what a killed process was writing
    anyones = _out_of_sight(store, f"{bench}/?/?/{'?' * 12}")
    for left_over in anyones.parent.glob(anyones.name):
        shutil.rmtree(left_over, ignore_errors=True)
    own, left = {}, []
    for place in store.places(f"{bench}/*/*/*"):
        if not store.packed(place):
            run, why = _read(store, place)
            if run:
                own[place] = run
            left += [f"{place} {why}"] if why else []
    if not own:
        return Packing(path, 0, 0, left) if left else None
    earlier = opened(path) if path.exists() else None
    runs = {place: earlier.packed(place) for place in earlier.places} if earlier else {}
    runs |= {place: run for place, (run, _) in own.items()}
    every = [runs[place] for place in sorted(runs, key=lambda place: place.split("/"))]
    with whole_file(path) as part:
        write_pack(part, every)
        _compare(Pack(part), every)
    for place, (_, stamp) in own.items():
        _remove(store, place, stamp)
    return Packing(path, len(every), path.stat().st_size, left)


def _read(store: Store, place: str) -> tuple[tuple[PackedRun, Stamp] | None, str]:
    """A finished run from its folder, with what tells that it has not changed since; or why it stays there."""
    folder = store.runs_folder / place
    with _lock(store, place) as free:
        if not free:
            return None, "is being written"
        if problem := next(problems_of(folder, place), None):
            return None, f"is not sound ({problem.what})"
        document = read_json(folder / RUN)
        if document["status"] != "done":
            return None, f"is not done ({document['status']})"
        texts = [line for line in lines_of(folder / TEXTS) if line] if (folder / TEXTS).exists() else None
        run = PackedRun(
            place,
            document,
            read_points(folder),
            _table(folder / ROWS) if (folder / ROWS).exists() else None,
            None if texts is None else [parse_json(line, TEXTS, number) for number, line in enumerate(texts, start=1)],
        )
        return (run, _stamp(folder)), ""


def _table(path: Path) -> pa.Table:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        return file.read().replace_schema_metadata(None)


def _compare(packed: Pack, runs: Sequence[PackedRun]) -> None:
    """Look whether a file gives back what was put into it.

    Raises:
        RuntimeError: naming the run of which it does not; nothing has been removed then.
    """
    if packed.places != [run.place for run in runs]:
        raise RuntimeError(f"{packed.path.name} does not hold the runs that were packed")
    for run in runs:
        again = packed.packed(run.place)
        same = json.dumps([run.run, run.points, run.texts]) == json.dumps([again.run, again.points, again.texts])
        if not same or (run.rows is None) != (again.rows is None) or not (run.rows is None or _equal(run.rows, again.rows)):
            raise RuntimeError(f"{packed.path.name} does not give back {run.place} as it was packed")


def _equal(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables are equal to the last bit; NaN equals NaN."""
    return bool(one.schema == other.schema and one.to_pandas().equals(other.to_pandas()))


def _remove(store: Store, place: str, stamp: Stamp) -> None:
    """Remove a folder that has been packed, if it has not changed since; out of sight first, so that no half of it is seen."""
    folder = store.runs_folder / place
    with _lock(store, place) as free:
        if not free or _stamp(folder) != stamp:
            return  # it is done anew, and supersedes what is packed
        removed = _out_of_sight(store, place)
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        with suppress(OSError):  # where there are others
            for parent in folder.relative_to(store.runs_folder).parents[:-1]:
                (store.runs_folder / parent).rmdir()


def _stamp(folder: Path) -> Stamp:
    """What tells that the files of a folder have changed."""
    return sorted((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir())


# ---------------------------------------------------------------- and back


def unpack(store: Store, name: str = "") -> list[Path]:
    """Give packed runs folders of their own again.

    Args:
        store: where they are packed.
        name: the beginning of one run's id: it alone gets a folder, which may be copied elsewhere; its packed form stays, and
            the folder supersedes it. Without it all runs are unpacked, and the files removed.

    Returns:
        The folders, in the order of `Store.places`.

    Raises:
        UsageError: if no run, or more than one, begins so; or the store cannot be read or written.
    """
    store.check()
    if name:
        place = store.by_id(name)[1].spec.folder.as_posix()
        with _alone(store, place.partition("/")[0]):
            packed = store.packed(place)
            return [_unpack(store, packed, place) if packed else store.runs_folder / place]
    folders = []
    for pack in store.packs():
        with _alone(store, pack.path.stem):
            latest = opened(pack.path)
            folders += [_unpack(store, latest, place) for place in latest.places if store.packed(place)]
            latest.path.unlink()
    return folders


def _unpack(store: Store, pack: Pack, place: str) -> Path:
    folder = store.runs_folder / place
    with disk_errors("the results folder", "Free some space or choose another with --results"), _lock(store, place) as free:
        if not free:
            raise UsageError(f"run {place} is being written; unpack it when that is done.")
        if (folder / RUN).exists():
            return folder  # it has been done anew meanwhile
        new = _out_of_sight(store, place)
        for left_over in (new, folder):
            shutil.rmtree(left_over, ignore_errors=True)
        new.mkdir()
        run = pack.packed(place)
        (new / RUN).write_text(run_text(run.run), encoding="utf-8")
        (new / POINTS).write_text(_lines(run.points), encoding="utf-8")
        if run.rows is not None:
            run.rows.to_pandas().to_parquet(new / ROWS, compression="zstd", index=False)
        if run.texts is not None:
            (new / TEXTS).write_text(_lines(run.texts), encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.rename(folder)
    return folder


def _out_of_sight(store: Store, place: str) -> Path:
    """Where a run's folder lies while it is made or removed."""
    bench, _, _, run_id = place.split("/")
    return store.runs_folder / ".locks" / f"{run_id}.{bench}.packed"


def _lines(lines: Sequence[object]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


# ---------------------------------------------------------------- locks


@contextmanager
def _alone(store: Store, bench: str) -> Iterator[None]:
    """Be the only process that packs or unpacks a benchmark's runs.

    Raises:
        UsageError: if another one does, or the folder cannot be written.
    """
    locks = store.runs_folder / ".locks"
    with disk_errors(f"the results folder {store.root}", "Choose another with --results", whatever=True):
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{bench}{SUFFIX}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"another process packs or unpacks the runs of {bench} now; wait for it.") from None
    try:
        with disk_errors(f"the results folder {store.root}", "Free some space or choose another with --results"):
            yield
    finally:
        lock.release()


@contextmanager
def _lock(store: Store, place: str) -> Iterator[bool]:
    """A run's lock; whether it is free."""
    lock = FileLock(store.runs_folder / ".locks" / f"{Path(place).name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
