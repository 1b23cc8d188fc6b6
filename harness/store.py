"""Records of runs: what was asked, what was measured, what it cost, on what.

    results/runs/<bench>/<model>/<method>/<run id>/
        run.json              RunResult without its points; written first, rewritten at the end
        points.jsonl          one Point a line, appended and flushed as it is measured
        per_example.parquet   the row-by-row tables of all points, or of the last one (--rows last)
        generations.jsonl     the texts of the same points
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from harness.cache import canonical, digest, disk_errors
from harness.errors import UsageError, cut
from harness.interfaces import Absent, Measurement, Row
from harness.record_files import ROWS, RUN, TEXTS, Question, read_questions, read_rows, read_texts
from harness.record_reading import read_run, status_of
from harness.record_writing import PART, Record, replace_file
from harness.records import SCHEMA_VERSION, Provenance, RunResult, RunSpec

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


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
        folder = self.runs_folder / spec.folder
        return read_run(folder) if (folder / RUN).exists() else None

    def read(self, place: str) -> RunResult:
        """The record at a place.

        Args:
            place: the run's folder, relative to `runs`, as in the frame.

        Raises:
            UsageError: if it cannot be read.
        """
        return read_run(self.runs_folder / place)

    def rows(self, spec: RunSpec, point: int) -> pd.DataFrame | None:
        """The row-by-row tables of a run's point, merged; None where none are stored or can be read, of that point perhaps."""
        path = self.runs_folder / spec.folder / ROWS
        if not path.exists():
            return None
        try:
            table = read_rows(path)
        except UsageError as error:
            log.warning("%s The run counts without its rows; harness validate --set-aside moves it away.", error)
            return None
        found = table[table["point"] == point]
        return found if len(found) else None

    def status(self, spec: RunSpec) -> str | None:
        """How a run stands, from its run.json alone; None where there is none that can be read."""
        return status_of(self.runs_folder / spec.folder)

    def began_otherwise(self, spec: RunSpec, weights: str) -> Provenance | None:
        """What a run on the same model was made on that began with other weights; one record of each method is looked at.

        Args:
            spec: of a run.
            weights: the fingerprint of the weights that it began with.
        """
        for method in sorted((self.runs_folder / spec.folder).parent.parent.glob("*")):
            for file in sorted(method.glob("*/run.json"))[:1]:
                with suppress(UsageError):
                    found = read_run(file.parent)
                    alike = (found.spec.dtype, found.spec.device) == (spec.dtype, spec.device)
                    if alike and found.provenance and found.provenance.weights != weights:
                        return found.provenance
        return None

    def runs(self) -> Iterator[RunResult]:
        """Every record, sorted by its folder; one that cannot be read is skipped (`harness list runs` names it)."""
        for file in sorted(self.runs_folder.glob("*/*/*/*/run.json")):
            with suppress(UsageError):
                yield read_run(file.parent)

    def frame(self) -> pd.DataFrame:
        """Everything that was measured: one row per (run, point, metric), and per (run, arm, metric) of the reference arms.

        Returns:
            Columns: what names the run (`run`, `bench`, `model`, `source`, `method`, `method_version`, `seed`, `variant`,
            `retain`, `limit`, `selection`, `status`, `folder`; `config`: its settings as JSON; `comparable`: equal for runs
            whose numbers of one metric version may be compared), the place on the way (`arm`: `method`, `untouched` or
            `retrained`; `index`, `step`, `seconds`, NaN for the arms; `logged`: the method's own numbers as JSON), and every
            field of a `Measurement` (intervals as `low` and `high`, references as `across_low` and `across_high`; `absent`
            holds the reason where there is no number). Sorted by folder, arm, index and metric.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for file in sorted(self.runs_folder.glob("*/*/*/*/run.json")):
            try:
                result = read_run(file.parent)
            except UsageError:
                continue
            spec = result.spec
            run = {
                "run": spec.run_id,
                "bench": spec.bench,
                "model": spec.model,
                "source": digest(spec.sources.get("base"))[:8],
                "method": spec.method,
                "method_version": spec.method_version,
                "seed": spec.seed,
                "variant": spec.variant,
                "retain": spec.retain,
                "limit": spec.limit,
                "selection": result.selection,
                "status": result.status,
                "folder": file.parent.relative_to(self.runs_folder).as_posix(),
                "config": canonical(spec.config),
                "comparable": spec.comparable,
            }
            places: list[tuple[Any, ...]] = [
                ("method", p.index, p.step, p.unlearn_seconds, canonical(p.logged), p.measurements) for p in result.points
            ]
            places += [(arm, None, None, None, None, found) for arm, found in result.arms.items()]
            for arm, index, step, seconds, logged, found in places:
                place = {**run, "arm": arm, "index": index, "step": step, "seconds": seconds, "logged": logged}
                rows += [{**place, **_flat(item)} for item in found]
        table = pd.DataFrame(rows)
        return table.sort_values(["folder", "arm", "index", "metric"], ignore_index=True) if len(table) else table

    def texts(self, folder: str, point: int) -> dict[tuple[str, ...], str]:
        """The answers of one point: the user's turns → the text; empty where none are recorded.

        Args:
            folder: the run's, as in the frame.
            point: the point's index.
        """
        try:
            found = list(read_texts(self.runs_folder / folder / TEXTS))
        except UsageError as error:
            log.warning("%s The run counts without its texts.", error)
            return {}
        return {tuple(each.turns): each.text for each in found if each.point == point}

    def keep_questions(self, spec: RunSpec, rows: Mapping[str, Sequence[tuple[str, Row]]]) -> None:
        """Write down once what the runs on this data are asked, so that a reader can put answers beside the truth.

        Args:
            spec: of one of the runs.
            rows: task → (the question as it is put to the model, the row of the data set).
        """
        path = self.root / "questions" / spec.questions_file
        if path.is_file() and self.questions(spec):
            return
        asked = [
            {"task": task, "row": row["row"], "cluster": row["cluster"], "turns": [prompt]}
            | {key: row[key] for key in ("question", "answer") if key in row}
            for task, of in rows.items()
            for prompt, row in of
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in asked)
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
        """The folder and record of the run whose id begins so.

        Raises:
            UsageError: if no run, or more than one, begins so.
        """
        found = sorted(f.parent for f in self.runs_folder.glob(f"*/*/*/{run_id}*/run.json")) if run_id.isalnum() else []
        if len(found) != 1:
            what = "no run" if not found else f"{len(found)} runs"
            verb = "begins" if not found else "begin"
            raise UsageError(f"{what} in {self.runs_folder} {verb} with '{cut(run_id)}'. See harness list runs.")
        return found[0], read_run(found[0])

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
        seen = folder
        try:
            begun = (new / RUN).exists()
            _settle(folder, new, earlier)  # what a killed process left
            taken_over = begun and not new.exists()
            with disk_errors(f"the results folder {self.root}", "Choose another with --results"):
                if force and (folder / RUN).exists() and not taken_over:
                    folder = new
                folder.mkdir(parents=True, exist_ok=True)
            empty = RunResult(schema_version=SCHEMA_VERSION, spec=spec, status="interrupted")
            record = Record(folder, read_run(folder) if (folder / RUN).exists() else empty)
            if record.result.status != "done":
                for part in folder.glob(f"*{PART}"):
                    part.unlink()  # what a killed process was writing
                record.keep_points(len(record.points))
            yield record
        finally:
            _settle(seen, new, earlier)
            lock.release()


def _flat(item: Measurement | Absent) -> dict[str, Any]:
    """A measurement as one row's columns."""
    if isinstance(item, Absent):
        return {"metric": item.metric, "absent": item.reason}
    told = {
        name: getattr(item, name)
        for name in ("metric", "version", "value", "unit", "better", "n", "reference", "floor", "note")
    }
    for name, pair in (("", item.interval_95), ("across_", item.across_references)):
        told[f"{name}low"], told[f"{name}high"] = pair or (None, None)
    return {**told, "interval_method": item.interval_method, "resampled": item.resampled, "absent": None}


def _settle(folder: Path, new: Path, earlier: Path) -> None:
    """Leave one record of a run in sight: the new one once it is done, or where the one in sight is not done either.

    Args:
        folder: where a record is seen.
        new: where one is made while there is one to be seen.
        earlier: where the one that was seen lies for a moment, while they change places.
    """
    if earlier.is_dir() and not (folder / RUN).exists():
        shutil.rmtree(folder, ignore_errors=True)  # a process was killed at that moment
        earlier.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
    for record in (folder, new):
        if not (record / RUN).exists():
            shutil.rmtree(record, ignore_errors=True)
    if new.exists() and (status_of(new) == "done" or status_of(folder) != "done"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(earlier)
        new.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
