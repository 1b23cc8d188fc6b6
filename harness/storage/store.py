"""Records of runs: what was asked, what was measured, what it cost, on what.

    results/runs/<bench>/<model>/<method>/<run id>/
        run.json              RunResult without its points; written first, rewritten at the end
        points.jsonl          one Point a line, appended and flushed as it is measured
        per_example.parquet   the row-by-row tables of all points, or of the last one (--rows last)
        generations.jsonl     the texts of the same points
    results/runs/<bench>.zip  finished runs in place of their folders; see `harness.storage.packs`
    results/questions/<bench>-<digest>.jsonl   what all runs on that data were asked, with the true answers

A record holds no path of the machine it was made on. A run that is killed leaves status "interrupted" and its points;
run again, it goes on. One process writes a record at a time (a file lock). Where a finished run is done anew, the new record
grows out of sight (`.locks/<run id>.new`) and takes the earlier one's place when it is done.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from harness.core.documents import Malformed, Unreadable, read_json
from harness.core.errors import UsageError, cut
from harness.core.problem import Row
from harness.storage.cache import disk_errors
from harness.storage.frames import frame_of
from harness.storage.packs import SUFFIX, Pack, opened
from harness.storage.record_files import ROWS, RUN, TEXTS, Question, read_questions, read_rows, read_texts
from harness.storage.record_reading import newer_schema, read_run
from harness.storage.record_writing import PART, Record, replace_file
from harness.storage.records import SCHEMA_VERSION, Provenance, RunResult, RunSpec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TAKE_AWAY = "take the file anew from where it came, or harness validate --set-aside moves it away"
TAKE_APART = "harness results unpack gives it a folder, and harness validate --set-aside moves that away; or run with --force"
"""Ways out where a file of packed runs, or a run in one, cannot be read."""


class Store:
    """A results folder.

    Args:
        root: the folder that holds `runs/`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def runs_folder(self) -> Path:
        """Where records lie."""
        return self.root / "runs"

    def check(self) -> None:
        """Look whether there is such a folder: an empty answer about a folder that was mistyped would be a wrong one.

        Raises:
            UsageError: if there is none.
        """
        if not self.root.is_dir():
            raise UsageError(f"there is no results folder {self.root}. Name another with --results; harness run makes one.")

    def find(self, spec: RunSpec) -> RunResult | None:
        """The record of a spec, if there is one.

        Raises:
            UsageError: if it cannot be read.
        """
        place = spec.folder.as_posix()
        return self.read(place) if self.holds(place) else None

    def places(self, pattern: str = "*/*/*/*") -> list[str]:
        """Where records are: their folders relative to `runs`, whether they lie there or are packed; sorted part by part.

        Args:
            pattern: of such a folder.

        Raises:
            UsageError: if a file of packed runs cannot be read.
        """
        while True:
            before = self._stamps()
            files = self.runs_folder.glob(f"{pattern}/{RUN}")
            folders = {file.parent.relative_to(self.runs_folder).as_posix() for file in files}
            packed = {place for pack in self.packs() for place in pack.places if PurePosixPath(place).match(pattern)}
            if self._stamps() == before:  # else another process has just moved runs from the one to the other
                return sorted(folders | packed, key=lambda place: place.split("/"))

    def packs(self) -> list[Pack]:
        """The files of packed runs, sorted by their benchmarks.

        Raises:
            UsageError: if one cannot be read.
        """
        return [pack for path in sorted(self.runs_folder.glob(f"*{SUFFIX}")) if (pack := _opened(path))]

    def packed(self, place: str) -> Pack | None:
        """The file that a run is packed in; None where it is in none, or has a folder of its own, which is later.

        Raises:
            UsageError: if it cannot be read.
        """
        if (self.runs_folder / place / RUN).exists():
            return None
        pack = _opened(self.runs_folder / f"{place.partition('/')[0]}{SUFFIX}")
        return pack if pack and place in pack else None

    def holds(self, place: str) -> bool:
        """Whether there is a record at a place, or packed."""
        return (self.runs_folder / place / RUN).exists() or self.packed(place) is not None

    def path_of(self, place: str) -> Path:
        """The folder of a record, or the file that it is packed in."""
        pack = self.packed(place)
        return pack.path if pack else self.runs_folder / place

    def read(self, place: str) -> RunResult:
        """The record at a place.

        Args:
            place: the run's folder, relative to `runs`, as in the frame.

        Raises:
            UsageError: if it cannot be read.
        """
        try:
            if not (pack := self.packed(place)):
                return read_run(self.runs_folder / place)
        except UsageError:
            if not (pack := self.packed(place)):
                raise  # else it has just been packed
        try:
            return pack.result(place)
        except Malformed as error:
            raise UsageError(f"a packed record cannot be read: {str(error).rstrip('.')}; {TAKE_APART}.") from error

    def document(self, place: str) -> Any:
        """What run.json says, as plain data and unchecked.

        Raises:
            UsageError: if it cannot be read.
        """
        pack = self.packed(place)
        return pack.document(place)["run"] if pack else read_json(self.runs_folder / place / RUN)

    def newer_schema(self, place: str) -> str | None:
        """What is needed to read a record that a newer version wrote; None where it is none."""
        with suppress(UsageError):
            return newer_schema(self.document(place))
        return None

    def rows(self, spec: RunSpec, point: int) -> pd.DataFrame | None:
        """The row-by-row tables of a run's point, merged; None where none are stored or can be read, of that point perhaps."""
        place = spec.folder.as_posix()
        path = self.runs_folder / place / ROWS
        try:
            pack = None if path.exists() else self.packed(place)
            table = pack.rows(place) if pack else read_rows(path) if path.exists() else None
        except UsageError as error:
            log.warning("%s The run counts without its rows; harness validate --set-aside moves it away.", error)
            return None
        rows = table[table["point"] == point] if table is not None else ()
        return rows if len(rows) else None

    def status(self, spec: RunSpec) -> str | None:
        """How a run stands, from its run.json alone; None where there is none that can be read."""
        with suppress(UsageError, KeyError, TypeError):
            return str(self.document(spec.folder.as_posix())["status"])
        return None

    def began_otherwise(self, spec: RunSpec, weights: str) -> Provenance | None:
        """What a run on the same model was made on that began with other weights; one record of each method is looked at.

        Args:
            spec: of a run.
            weights: the fingerprint of the weights that it began with.
        """
        looked_at: set[str] = set()
        for place in self.places(f"{spec.folder.parent.parent.as_posix()}/*/*"):
            method = place.split("/")[2]
            if method in looked_at:
                continue
            looked_at.add(method)
            with suppress(UsageError):
                record = self.read(place)
                alike = (record.spec.dtype, record.spec.device) == (spec.dtype, spec.device)
                if alike and record.provenance and record.provenance.weights != weights:
                    return record.provenance
        return None

    def runs(self) -> Iterator[RunResult]:
        """Every record, sorted by its folder; one that cannot be read is skipped (`harness list runs` names it)."""
        return (result for _, result in self._readable())

    def _readable(self) -> Iterator[tuple[str, RunResult]]:
        for place in self.places():
            with suppress(UsageError):
                yield place, self.read(place)

    def frame(self) -> pd.DataFrame:
        """Everything that was measured: one row per (run, point, metric), and per (run, arm, metric) of the references.

        Returns:
            Columns: what names the run (`run`, `bench`, `model`, `source`, `method`, `method_version`, `seed`, `variant`,
            `retain`, `limit`, `selection`, `status`, `folder`; `config`: its settings as JSON; `comparable`: equal for runs
            whose numbers of one metric version may be compared; `budget_rows`: what damage was measured on, empty for runs
            without budgets), the place on the way (`arm`: `method`, `untouched` or `retrained`; `index`, `step`, `seconds`, NaN
            for the references; `logged`: the method's own numbers as JSON; `budget` and `damage`, NaN without budgets), and
            every field of a `Measurement` (intervals as `low` and `high`, references as `across_low` and `across_high`;
            `absent` holds the reason where there is no number). Sorted by folder, arm, index and metric.
        """
        return frame_of(self._readable())

    def texts(self, folder: str, point: int) -> dict[tuple[str, ...], str]:
        """The answers of one point: the user's turns → the text; empty where none are recorded.

        Args:
            folder: the run's, as in the frame.
            point: the point's index.
        """
        path = self.runs_folder / folder / TEXTS
        try:
            pack = None if path.exists() else self.packed(folder)
            texts = pack.texts(folder) if pack else list(read_texts(path))
        except UsageError as error:
            log.warning("%s The run counts without its texts.", error)
            return {}
        return {tuple(each.turns): each.text for each in texts if each.point == point}

    def _stamps(self) -> list[tuple[str, int, int, int]]:
        """What tells that files of packed runs have come, gone or changed."""
        stamps = []
        for path in sorted(self.runs_folder.glob(f"*{SUFFIX}")):
            with suppress(OSError):
                stat = path.stat()
                stamps.append((path.name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return stamps

    def keep_questions(self, spec: RunSpec, rows: Mapping[str, Sequence[tuple[str, Row]]]) -> None:
        """Write down once what the runs on this data are asked, so that a reader can put answers beside the truth.

        Args:
            spec: of one of the runs.
            rows: task → (the question as it is put to the model, the row of the data set).
        """
        path = self.root / "questions" / spec.questions_file
        if path.is_file() and self.questions(spec):
            return
        questions = [
            {"task": task, "row": row["row"], "cluster": row["cluster"], "turns": [prompt]}
            | {key: row[key] for key in ("question", "answer") if key in row}
            for task, of in rows.items()
            for prompt, row in of
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in questions)
        with disk_errors("the results folder", "Free some space or choose another with --results"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())

    def questions(self, spec: RunSpec) -> list[Question]:
        """What the runs on this data were asked, in order; nothing where that was not recorded or cannot be read any more."""
        path = self.root / "questions" / spec.questions_file
        if not path.exists():
            return []
        try:
            return read_questions(path)
        except UsageError as error:
            log.warning("%s The next run on this data writes it anew.", error)
            return []

    def by_id(self, run_id: str) -> tuple[Path, RunResult]:
        """The folder (or the file of packed runs) and the record of the run whose id begins so.

        Raises:
            UsageError: if no run, or more than one, begins so.
        """
        matches = self.places(f"*/*/*/{run_id}*") if run_id.isalnum() else []
        if len(matches) != 1:
            what = "no run" if not matches else f"{len(matches)} runs"
            verb = "begins" if not matches else "begin"
            raise UsageError(f"{what} in {self.runs_folder} {verb} with '{cut(run_id)}'. See harness list runs.")
        return self.path_of(matches[0]), self.read(matches[0])

    @contextmanager
    def open(self, spec: RunSpec, force: bool = False) -> Iterator[Record]:
        """The record of a spec, locked for this process; what an interrupted run left is in it.

        Args:
            spec: whose.
            force: start afresh, or go on with what was begun afresh and broken off. A finished record stays where it is until
                the new one is done.

        Raises:
            UsageError: if the folder cannot be written, or the disk is full.
        """
        folder = self.runs_folder / spec.folder
        locks = self.runs_folder / ".locks"
        with disk_errors(f"the results folder {self.root}", "Choose another with --results", whatever=True):
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / f"{spec.run_id}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("another process is doing this very run; waiting for it")
                lock.acquire()
        new, earlier = locks / f"{spec.run_id}.new", locks / f"{spec.run_id}.earlier"
        seen, place = folder, spec.folder.as_posix()
        try:
            begun = (new / RUN).exists()
            _settle(folder, new, earlier, self.packed(place) is not None)  # what a killed process left
            taken_over = begun and not new.exists()
            with disk_errors(f"the results folder {self.root}", "Choose another with --results"):
                if force and self.holds(place) and not taken_over:
                    folder = new
                folder.mkdir(parents=True, exist_ok=True)
            recorded = read_run(folder) if (folder / RUN).exists() else self.find(spec) if folder == seen else None
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record = Record(folder, recorded or empty)
            if record.result.status != "done":
                for part in folder.glob(f"*{PART}"):
                    part.unlink()  # what a killed process was writing
                record.keep_points(len(record.points))
            yield record
        finally:
            _settle(seen, new, earlier, self.packed(place) is not None)
            lock.release()


def _opened(path: Path) -> Pack | None:
    """A file of packed runs as it is now; None where there is none.

    Raises:
        UsageError: if it cannot be read, with the way out.
    """
    try:
        return opened(path) if path.exists() else None
    except (Malformed, Unreadable) as error:
        if not path.exists():
            return None  # its runs have just been given folders again
        raise UsageError(f"packed runs cannot be read: {str(error).rstrip('.')}; {TAKE_AWAY}.") from error


def _settle(folder: Path, new: Path, earlier: Path, packed: bool) -> None:
    """Leave one record of a run in sight: the new one once it is done, or where the one in sight is not done either.

    Args:
        folder: where a record is seen.
        new: where one is made while there is one to be seen.
        earlier: where the one that was seen lies for a moment, while they change places.
        packed: whether the run is packed, and therefore done, as long as it has no folder.
    """
    if earlier.is_dir() and not (folder / RUN).exists():
        shutil.rmtree(folder, ignore_errors=True)  # a process was killed at that moment
        earlier.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    for record in (folder, new):
        if not (record / RUN).exists():
            shutil.rmtree(record, ignore_errors=True)
    done = _status(folder) == "done" if folder.exists() else packed
    if new.exists() and (_status(new) == "done" or not done):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(earlier)
        new.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _status(folder: Path) -> str | None:
    """How a run stands, from its run.json alone; None where there is none that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(folder / RUN)["status"])
    return None
